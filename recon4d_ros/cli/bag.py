"""`recon4d bag`: copy a recording into a rosbag2."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path

from tqdm import tqdm

from recon4d_ros.storage.bag_writer import STORAGES, write_bag
from recon4d_ros.storage.source import open_recording

_EPILOG = """examples:
  recon4d bag walking/ walking_bag
  recon4d bag walking/ walking_bag --storage sqlite3 --namespace /front
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "bag",
        help="write a sequence folder or video as a rosbag2",
        description=(
            "Writes the images and the camera_info of a sequence folder or a video as a rosbag2. "
            "Images stay as the camera saw them; the distortion goes into camera_info. An unknown "
            "camera is written as K = 0."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sequence", metavar="SEQUENCE", type=Path, help="folder or video")
    parser.add_argument("out", metavar="OUT", type=Path, help="bag folder to make")
    parser.add_argument(
        "--storage", choices=tuple(STORAGES), default="mcap", help="file format (default: mcap)"
    )
    parser.add_argument(
        "--namespace",
        metavar="NS",
        default="/camera",
        help="topics are NS/image_raw and NS/camera_info (default: /camera)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the bag; a bag that could not be completed is removed."""
    recording = open_recording(args.sequence)
    written = write_bag(recording, args.out, storage=args.storage, namespace=args.namespace)
    existed = args.out.exists()
    try:
        with contextlib.closing(written):
            progress = tqdm(written, "bag", total=recording.num_images, unit="image", disable=None)
            num_images = max(progress, default=0)
    except BaseException:
        if not existed:
            shutil.rmtree(args.out, ignore_errors=True)
        raise
    print(f"{args.out}: {num_images} images on {args.namespace}/image_raw")
    return 0

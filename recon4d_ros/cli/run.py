"""`recon4d run`: reconstruct a recording and write the results into a folder."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from recon4d_ros.cli.config import add_config_arguments
from recon4d_ros.cli.session import Session
from recon4d_ros.cli.summary import draw_summary
from recon4d_ros.config import load_config
from recon4d_ros.datatypes import MapEvent
from recon4d_ros.errors import Recon4DError
from recon4d_ros.pipeline.factory import build_offline_reconstructor, build_reconstructor
from recon4d_ros.storage.results import ResultFolder, check_folder
from recon4d_ros.storage.source import open_source

EXIT_INTERRUPTED = 130

_DESCRIPTION = """\
Reconstructs a recording: camera poses, depth, what moves, and a map of what does not.

SOURCE is a sequence folder (rgb.txt, rgb/, intrinsics.json), a rosbag2 (folder, .mcap or .db3;
Image or CompressedImage, with camera_info beside it) or a video file (unknown camera: its
intrinsics are estimated).

DIR receives
  trajectory.tum               final poses, `t x y z qx qy qz qw`, camera to map
  trajectory_provisional.tum   the poses as each frame had them on its arrival
  map.ply                      static points with colour, confidence, observations
  depth/<stamp_ns>.png         16 bit; intrinsics.json holds depth_scale
  masks/<stamp_ns>.png         255 where the pixel's surface moves
  summary.png, report.json, intrinsics.json, config.yaml
"""

_EPILOG = """examples:
  recon4d run walking/ --out result
  recon4d run drive.mcap --out result --image-topic /camera/image_raw --max-frames 300
  recon4d run phone.mp4 --out result --set window.stride=2 --set map.voxel_size=0.02
  recon4d run walking/ --out result --offline --set predictor.name=pomato --set pomato.model=FILE

--offline aligns all pairs of the clip at once, window by window beyond `offline.window` frames; it
needs a pairwise model, and knows nothing of a frame on its arrival.
Ctrl-C ends the run after the present frame and writes what there is (exit code 130).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "run",
        help="reconstruct a recording",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, bag or video")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the results"
    )
    add_config_arguments(parser)
    parser.add_argument("--image-topic", metavar="T", help="topic to read, if a bag has several")
    parser.add_argument(
        "--max-frames", metavar="N", type=_positive, help="stop after N frames (default: all)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results in DIR by the new ones"
    )
    parser.add_argument(
        "--skip-bad-frames",
        action="store_true",
        help="drop and count images that cannot be used, instead of stopping at the first",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="align the whole clip at once instead of frame by frame; needs a pairwise model",
    )
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Reconstruct; 0, or 130 after Ctrl-C.

    Raises:
        Recon4DError: nothing could be started, or the run ended early; what was made till then
            lies in the folder.
    """
    config = load_config(args.config, tuple(args.set))
    check_folder(args.out, overwrite=args.overwrite)
    source = open_source(args.source, args.image_topic, skip_bad_frames=args.skip_bad_frames)
    reconstructor = (build_offline_reconstructor if args.offline else build_reconstructor)(config)
    results = ResultFolder(args.out, config, overwrite=args.overwrite)
    session = Session(source, reconstructor, results, skip_bad_frames=args.skip_bad_frames)
    total = min(filter(None, (source.num_frames, args.max_frames)), default=None)
    with _stop_on_interrupt() as stop:
        works = (
            lambda: _advance(session, args.max_frames, total, stop),
            lambda: _tell(session.finish()),
        )
        errors = [error for work in works if (error := _failure(work)) is not None]
        error = errors[0] if errors else None
        stopped_by = str(error) if error else "interrupt" if stop else None
        report = session.close(config, stopped_by)
        summary = session.summary(report)
        if summary is not None:
            draw_summary(args.out / "summary.png", summary)
    if error is not None:
        raise type(error)(f"{error}; results up to there are in {args.out}") from error
    print("\n".join(_report_lines(report, args.out)))
    return EXIT_INTERRUPTED if stop else 0


def _failure(work: Callable[[], None]) -> Recon4DError | None:
    """What ended the work early; None when nothing did."""
    try:
        work()
    except Recon4DError as error:
        return error
    return None


def _advance(session: Session, max_frames: int | None, total: int | None, stop: list[int]) -> None:
    with tqdm(total=total, desc="recon4d", unit="frame", disable=None) as progress:
        for events in session.advance(max_frames):
            _tell(events)
            progress.update()
            if stop:
                return


def _tell(events: Iterable[MapEvent]) -> None:
    for event in events:
        tqdm.write(f"{event.kind.value}: {event.message}")


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Let Ctrl-C end the run between two frames; a second one ends it at once.

    Yields:
        The signals that came; empty while the run may go on.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _report_lines(report: dict[str, Any], out: Path) -> list[str]:
    """What a run has to say in a few lines."""
    frames, latency, camera = report["frames"], report["latency_ms"], report["intrinsics"]
    ending = "" if report["complete"] else f" (stopped by {report['stopped_by']})"
    lines = [
        f"frames    {frames['in']} in, {frames['posed']} posed, {frames['lost']} lost, "
        f"{frames['dropped']} dropped; {report['submaps']} submaps{ending}",
        f"rate      {report['rate_hz']:.1f} Hz; latency p50 {latency['p50']:.0f}, "
        f"p95 {latency['p95']:.0f}, p99 {latency['p99']:.0f} ms",
    ]
    if camera["source"] is not None:
        lines.append(f"camera    {camera['source']}, fx {camera['fx']:.1f} px")
    if not {"tracking", "no_parallax"} & report["states"].keys():
        cure = "; or give its intrinsics" if camera["source"] == "estimated" else ""
        lines.append(f"depth     never known: the camera has to move past things at rest{cure}")
    return [*lines, *(f"note      {note}" for note in report["notes"]), f"results   {out}"]

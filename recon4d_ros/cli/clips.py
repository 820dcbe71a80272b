"""`recon4d clips`: look at the synthetic clips that trackers are trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.synthetic.clips import ClipGenerator

_DESCRIPTION = """\
Draws contact sheets of synthetic clips: some frames of each with its tracks (red moves, blue
stands, grey is not judged, hollow is hidden), what moves, and depth.

DIR receives clips_NNNNNN.png with four clips each.
"""

_PER_SHEET, _COLUMNS = 4, 4


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "clips",
        help="look at synthetic clips",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="made if missing")
    parser.add_argument("--count", type=int, default=4, help="how many clips (default 4)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the sheets."""
    generator = ClipGenerator(seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for first in range(args.first, args.first + args.count, _PER_SHEET):
        count = min(_PER_SHEET, args.first + args.count - first)
        path = args.out / f"clips_{first:06d}.png"
        draw_sheet(generator.clips(first, count), first, path)
        print(path)
    return 0


def draw_sheet(clips: Clips, first: int, path: Path) -> None:
    """Write a picture with one row for each clip."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    count, num_frames = clips.rgb.shape[:2]
    shown = np.linspace(0, num_frames - 1, _COLUMNS).round().astype(int)
    figure, axes = pyplot.subplots(
        count, _COLUMNS + 2, figsize=(3 * (_COLUMNS + 2), 3.1 * count), squeeze=False
    )
    for clip, row in enumerate(axes):
        for axis, frame in zip(row, shown, strict=False):
            axis.imshow(clips.rgb[clip, frame].cpu())
            _draw_tracks(axis, clips, clip, int(frame))
            axis.set_title(f"{first + clip}: {clips.camera_motion[clip].value}, frame {frame}")
        middle = num_frames // 2
        _draw_map(row[-2], clips.dynamic_mask, clip, middle, "what moves")
        _draw_map(row[-1], clips.depth, clip, middle, "depth")
        for axis in row:
            axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def _draw_tracks(axis, clips: Clips, clip: int, frame: int) -> None:  # type: ignore[no-untyped-def]
    uv = clips.tracks[clip, frame].cpu().numpy()
    seen = clips.visibility[clip, frame].cpu().numpy()
    moves = clips.moves_in_clip[clip].cpu().numpy()
    judged = clips.is_judged[clip].cpu().numpy()
    colours = np.where(judged, np.where(moves, "red", "deepskyblue"), "grey")
    height, width = clips.rgb.shape[2:4]
    inside = (uv >= 0).all(-1) & (uv <= [width - 1, height - 1]).all(-1)
    for chosen, style in ((seen, {"s": 9}), (inside & ~seen, {"s": 14, "facecolors": "none"})):
        faces = {} if "facecolors" in style else {"c": colours[chosen]}
        axis.scatter(*uv[chosen].T, edgecolors=colours[chosen], linewidths=0.7, **style, **faces)


def _draw_map(axis, maps: Tensor | None, clip: int, frame: int, title: str) -> None:  # type: ignore[no-untyped-def]
    if maps is not None:
        picture = maps[clip, frame].cpu().float()
        axis.imshow(picture, cmap="viridis_r" if title == "depth" else "gray", vmin=0)
        axis.set_title(f"{title}, up to {float(picture.max()):.1f}")

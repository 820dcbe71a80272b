"""Masks with the trained tracker beside those with Lucas-Kanade: large things, real videos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.masks import DAVIS, SILENT
from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder
from recon4d_ros.cli.demo import write_rendered
from recon4d_ros.errors import Recon4DError
from recon4d_ros.evaluation.masks import MaskReport
from recon4d_ros.evaluation.report import evaluate_run
from recon4d_ros.synthetic import scenes

LARGE = Target(0.85, better="higher")
TRACKERS = ("dynpt", "klt")


def benchmark(bench: Workbench) -> Iterator[Row]:
    """IoU of a thing over half of the view and of real videos; silence where nothing moves."""
    yield _row(bench, "large_mover", large_mover(bench.out), LARGE)
    videos = []
    for video in DAVIS:
        videos.append(_row(bench, video, sequence_folder(f"davis16_dev/{video}")))
        yield videos[-1]
    yield _mean_row(videos)
    yield _row(bench, "static_scene", sequence_folder("rendered/static_scene"), SILENT)


def _row(bench: Workbench, case: str, sequence: Path, target: Target | None = None) -> Row:
    """IoU; where nothing moves, the share that is flagged."""
    figure = "pixels flagged" if target is SILENT else "IoU"
    try:
        dynpt, klt = (_masks(bench, sequence, tracker) for tracker in TRACKERS)
    except (RunFailedError, Recon4DError) as error:
        return Row("tracker_masks", case, figure, math.nan, target, {}, str(error))
    ours, peer = (each.flagged_share if target is SILENT else each.iou for each in (dynpt, klt))
    return Row("tracker_masks", case, figure, ours, target, {"klt": peer})


def _mean_row(videos: list[Row]) -> Row:
    """Not worse than with Lucas-Kanade."""
    klt = float(np.mean([row.peers.get("klt", math.nan) for row in videos]))
    mean = float(np.mean([row.ours for row in videos]))
    target = Target(klt, better="higher")
    return Row("tracker_masks", "davis16_dev, mean", "IoU", mean, target, {"klt": klt})


def _masks(bench: Workbench, sequence: Path, tracker: str) -> MaskReport:
    settings = [f"tracker.name={tracker}"]
    folder = bench.run_ours(sequence, f"{tracker}_{sequence.name}", settings)
    masks = evaluate_run(folder, sequence).masks
    assert masks is not None
    return masks


def large_mover(out: Path, num_frames: int = 48) -> Path:
    """A sequence folder of the rendered scene in which a thing covers 53 to 63 % of the view."""
    folder = out / "large_mover"
    if not (folder / "rgb.txt").is_file():
        write_rendered(folder, scenes.large_mover(num_frames))
    return folder

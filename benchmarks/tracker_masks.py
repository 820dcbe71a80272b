"""Masks with the trained tracker beside those with Lucas-Kanade: large things, real videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.masks import DAVIS, SILENT
from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder
from recon4d_ros.cli.demo import write_rendered
from recon4d_ros.errors import Recon4DError
from recon4d_ros.evaluation.report import Report, evaluate_run
from recon4d_ros.synthetic import scenes

LARGE = Target(0.85, better="higher")
TRACKERS = ("dynpt", "klt")


def benchmark(bench: Workbench) -> Iterator[Row]:
    """A thing over half of the view, real videos, silence where nothing moves."""
    scene = large_mover(bench.out)
    runs = _runs(bench, scene)
    yield _row(scene.name, "IoU", runs, _iou, LARGE)
    yield _row(scene.name, "ATE, m", runs, _path_error)
    videos = []
    for video in DAVIS:
        videos.append(
            _row(video, "IoU", _runs(bench, sequence_folder(f"davis16_dev/{video}")), _iou)
        )
        yield videos[-1]
    yield _mean_row(videos)
    still = _runs(bench, sequence_folder("rendered/static_scene"))
    yield _row("static_scene", "pixels flagged", still, _flagged, SILENT)


def _runs(bench: Workbench, sequence: Path) -> list[Report] | str:
    """Reports of a sequence, a tracker each; why there are none."""
    try:
        folders = [
            bench.run_ours(sequence, f"{tracker}_{sequence.name}", [f"tracker.name={tracker}"])
            for tracker in TRACKERS
        ]
        return [evaluate_run(folder, sequence) for folder in folders]
    except (RunFailedError, Recon4DError) as error:
        return str(error)


def _row(
    case: str,
    figure: str,
    runs: list[Report] | str,
    read: Callable[[Report], float],
    target: Target | None = None,
) -> Row:
    if isinstance(runs, str):
        return Row("tracker_masks", case, figure, math.nan, target, {}, runs)
    dynpt, klt = map(read, runs)
    return Row("tracker_masks", case, figure, dynpt, target, {"klt": klt})


def _iou(report: Report) -> float:
    assert report.masks is not None
    return report.masks.iou


def _flagged(report: Report) -> float:
    assert report.masks is not None
    return report.masks.flagged_share


def _path_error(report: Report) -> float:
    """Of the frames that have a pose."""
    assert report.final is not None
    return report.final.ate.rmse


def _mean_row(videos: list[Row]) -> Row:
    """Not worse than with Lucas-Kanade."""
    klt = float(np.mean([row.peers.get("klt", math.nan) for row in videos]))
    mean = float(np.mean([row.ours for row in videos]))
    target = Target(klt, better="higher")
    return Row("tracker_masks", "davis16_dev, mean", "IoU", mean, target, {"klt": klt})


def large_mover(out: Path, num_frames: int = 48) -> Path:
    """A sequence folder of the rendered scene in which a thing covers 53 to 63 % of the view."""
    folder = out / "large_mover"
    if not (folder / "rgb.txt").is_file():
        write_rendered(folder, scenes.large_mover(num_frames))
    return folder

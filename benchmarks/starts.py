"""How much hangs on the image that a stream begins with, beside a plain visual odometry.

The first structure rests on the first images alone. On a clip in which people walk before the
camera, or of a car that sees little but what comes towards it, one lucky or unlucky start says
little of an odometry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import Row
from benchmarks.trajectories import plain_odometry
from benchmarks.workbench import Workbench, all_but, sequence_folder

FIRST_IMAGES = {
    "tum_fr3_walking_halfsphere_clip": (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25),
    "kitti_odo_a": tuple(range(10)),
}


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Mean and largest ATE over the starts."""
    for name, first_images in FIRST_IMAGES.items():
        yield from _rows(bench, name, first_images)


def _rows(bench: Workbench, name: str, first_images: Sequence[int]) -> Iterator[Row]:
    ours, plain = [], []
    for first in first_images:
        folder = begun_at(first, sequence_folder(name), bench.out / "starts")
        poses = bench.report(folder).final_interpolated
        assert poses is not None
        ours.append(poses.ate.rmse)
        plain.append(plain_odometry(folder)["ate"])
    case = f"{name}, begun at {len(first_images)} images"
    for figure, of_all in (("mean ATE m", np.mean), ("largest ATE m", np.max)):
        peers = {"plain VO": float(of_all(plain))}
        yield Row("starts", case, figure, float(of_all(ours)), peers=peers)


def begun_at(first: int, sequence: Path, folder: Path) -> Path:
    """The same sequence without its first images."""
    made = all_but("rgb.txt", sequence, folder / f"{sequence.name}_begun_at_{first}")
    lines = (sequence / "rgb.txt").read_text().splitlines(keepends=True)
    comments = [line for line in lines if line.startswith("#")]
    (made / "rgb.txt").write_text("".join(comments + lines[len(comments) + first :]))
    return made

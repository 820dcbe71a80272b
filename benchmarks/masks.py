"""Masks of what moves: IoU beside plain baselines, silence where nothing moves, ghosts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.plain_masks import BASELINES, mean_iou
from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder
from recon4d_ros.errors import Recon4DError
from recon4d_ros.evaluation.ghosts import evaluate_map
from recon4d_ros.evaluation.masks import MaskReport

DAVIS = ("car-shadow", "cows", "dog", "parkour", "scooter-black")
DAVIS_IOU = Target(0.48, better="higher")
RENDERED = {
    "rendered/room_walkers": Target(0.65, better="higher"),
    "rendered/tossed_objects": Target(0.50, better="higher"),
}
SILENT = Target(0.01)
GHOSTS = Target(0.01)


def benchmark(bench: Workbench) -> Iterator[Row]:
    """IoU per video, their mean, ghosts in the map, the share flagged where nothing moves."""
    davis = []
    for video in DAVIS:
        davis.append(_iou_row(bench, f"davis16_dev/{video}", None))
        yield davis[-1]
    yield _mean_row(davis)
    for name, target in RENDERED.items():
        yield _iou_row(bench, name, target)
    for name in RENDERED:
        yield _ghost_row(bench, name)
    yield _silence_row(bench, "rendered/static_scene", sequence_folder("rendered/static_scene"))
    yield _silence_row(bench, "standing camera, nothing moves", standing_camera(bench.out))


def _iou_row(bench: Workbench, name: str, target: Target | None) -> Row:
    sequence = sequence_folder(name)
    peers = mean_iou(sequence)
    try:
        masks = _masks(bench, sequence)
    except (RunFailedError, Recon4DError) as error:
        return Row("masks", name, "IoU", math.nan, target, peers, str(error))
    return Row("masks", name, "IoU", masks.iou, target, peers, f"recall {masks.recall:.3f}")


def _mean_row(rows: list[Row]) -> Row:
    """Mean over the videos; `better of the two` is the better baseline of each video."""
    peers = {name: float(np.mean([row.peers[name] for row in rows])) for name in BASELINES}
    peers["better of the two"] = float(np.mean([max(row.peers.values()) for row in rows]))
    mean = float(np.mean([row.ours for row in rows]))
    return Row("masks", "davis16_dev, mean", "IoU", mean, DAVIS_IOU, peers)


def _silence_row(bench: Workbench, case: str, sequence: Path) -> Row:
    try:
        flagged = _masks(bench, sequence).flagged_share
    except (RunFailedError, Recon4DError) as error:
        return Row("masks", case, "pixels flagged", math.nan, SILENT, note=str(error))
    return Row("masks", case, "pixels flagged", flagged, SILENT)


def _ghost_row(bench: Workbench, name: str) -> Row:
    sequence, figure = sequence_folder(name), "ghosts in the static map"
    try:
        found = evaluate_map(bench.run_ours(sequence), sequence)
    except (RunFailedError, Recon4DError) as error:
        return Row("masks", name, figure, math.nan, GHOSTS, note=str(error))
    note = f"{found.num_points} points, {100 * found.floating:.1f} % float"
    return Row("masks", name, figure, found.ghosts, GHOSTS, note=note)


def _masks(bench: Workbench, sequence: Path) -> MaskReport:
    masks = bench.report(sequence).masks
    assert masks is not None
    return masks


def standing_camera(out: Path, num_frames: int = 40) -> Path:
    """A sequence folder that shows one image again and again with fresh sensor noise."""
    source = sequence_folder("rendered/static_scene")
    folder = out / "standing_camera"
    for name in ("rgb", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    image = cv2.imread(str(sorted((source / "rgb").iterdir())[0]))
    random = np.random.default_rng(0)
    rows = ["# timestamp filename"]
    for index in range(num_frames):
        noisy = image + random.normal(0.0, 1.0, image.shape)
        name = f"{index:06d}.png"
        cv2.imwrite(str(folder / "rgb" / name), np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / name), np.zeros(image.shape[:2], np.uint8))
        rows.append(f"{index / 30:.6f} rgb/{name}")
    (folder / "rgb.txt").write_text("\n".join(rows) + "\n")
    camera = json.loads((source / "intrinsics.json").read_text())
    (folder / "intrinsics.json").write_text(json.dumps(camera))
    return folder

"""Everything that can be said of a run against the ground truth of its sequence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import EvaluationError, SourceError
from recon4d_ros.evaluation.depth import DepthFrame, DepthReport, evaluate_depth, resize_nearest
from recon4d_ros.evaluation.masks import MaskFrame, MaskReport, evaluate_masks
from recon4d_ros.evaluation.metrics import ErrorStatistics, summarise
from recon4d_ros.evaluation.trajectory import (
    AlignmentMode,
    Association,
    absolute_errors,
    align,
    associate,
    consecutive_pairs,
    fit_similarity,
    interpolate,
    relative_errors,
)
from recon4d_ros.evaluation.truth import (
    SequenceTruth,
    read_depth,
    read_depth_scale,
    read_mask,
    read_truth,
    read_tum,
)

STAMP_TOLERANCE_NS = 1_000_000  # a file named by a stamp that went through a float of seconds


@dataclass(frozen=True)
class TrajectoryReport:
    """Errors of one trajectory.

    Attributes:
        alignment: group of the alignment by positions.
        association: how stamps were paired.
        ate: absolute position errors after the alignment, units of the truth.
        rpe_translation: relative errors over one frame, units of the truth.
        rpe_rotation_deg: the same for rotations, deg.
        scale: truth units per unit of the estimate.
        spread: RMS distance of the true positions from their mean: the ATE of a constant.
        num_posed: frames of rgb.txt that have a pose.
        num_frames: frames of rgb.txt.
        posed_share: their ratio.
    """

    alignment: str
    association: str
    ate: ErrorStatistics
    rpe_translation: ErrorStatistics
    rpe_rotation_deg: ErrorStatistics
    scale: float
    spread: float
    num_posed: int
    num_frames: int
    posed_share: float


@dataclass(frozen=True)
class Report:
    """Figures of one run; None or empty where the sequence has no such truth.

    Attributes:
        run: name of the run's folder.
        sequence: name of the sequence.
        final: final poses, stamps paired with the nearest one of the truth.
        final_interpolated: final poses against the truth interpolated at their stamps.
        provisional: poses as they went out on arrival, nearest stamps.
        depth: figures per set of pixels: `all`; `static` (the true masks say so);
            `outside_own_mask` (the run's own masks say so).
        masks: figures of the masks.
    """

    run: str
    sequence: str
    final: TrajectoryReport | None
    final_interpolated: TrajectoryReport | None
    provisional: TrajectoryReport | None
    depth: dict[str, DepthReport]
    masks: MaskReport | None

    def to_json(self) -> str:
        """The report as JSON text; a figure that is undefined is null."""
        return json.dumps(_without_nan(dataclasses.asdict(self)), indent=1)


def evaluate_run(run_dir: Path, sequence_dir: Path) -> Report:
    """Compare what `recon4d run` wrote with the ground truth of a sequence folder.

    Raises:
        SourceError: a file is missing or malformed.
        EvaluationError: the sequence has no ground truth, or run and truth share nothing.
    """
    if not run_dir.is_dir():
        raise SourceError(f"{run_dir} is no folder; expected the output of `recon4d run`")
    truth = read_truth(sequence_dir)
    if truth.trajectory is None and not truth.depth and not truth.masks:
        raise EvaluationError(
            f"{sequence_dir} has no ground truth; expected groundtruth.txt, depth.txt or masks/"
        )
    return Report(
        run=run_dir.resolve().name,
        sequence=sequence_dir.resolve().name,
        final=_trajectory(run_dir / "trajectory.tum", truth, "nearest"),
        final_interpolated=_trajectory(run_dir / "trajectory.tum", truth, "interpolate"),
        provisional=_trajectory(run_dir / "trajectory_provisional.tum", truth, "nearest"),
        depth=_depth(run_dir, truth),
        masks=_masks(run_dir, truth),
    )


def evaluate_trajectory(
    truth: Trajectory,
    estimate: Trajectory,
    image_stamps_ns: NDArray[np.int64],
    association: Association = "nearest",
    alignment: AlignmentMode = "sim3",
) -> TrajectoryReport:
    """Errors of an estimated trajectory.

    Args:
        truth: true poses.
        estimate: estimated poses.
        image_stamps_ns: (N,) stamps of all frames, posed or not.
        association: how to pair stamps.
        alignment: group of the alignment.

    Raises:
        EvaluationError: too little in common.
    """
    matched = (associate if association == "nearest" else interpolate)(truth, estimate)
    pairs = align(matched, alignment)
    translation, rotation = relative_errors(pairs, consecutive_pairs(len(pairs.truth)))
    positions = pairs.truth[:, :3, 3]
    found = _nearest(image_stamps_ns, estimate.stamps_ns.numpy())
    return TrajectoryReport(
        alignment=alignment,
        association=association,
        ate=summarise(absolute_errors(pairs)),
        rpe_translation=summarise(translation),
        rpe_rotation_deg=summarise(rotation),
        scale=fit_similarity(matched.estimate[:, :3, 3], positions, alignment).scale,
        spread=float(np.sqrt(np.mean(np.sum((positions - positions.mean(0)) ** 2, axis=1)))),
        num_posed=int(found.sum()),
        num_frames=len(image_stamps_ns),
        posed_share=float(found.mean()),
    )


def _trajectory(
    path: Path, truth: SequenceTruth, association: Association
) -> TrajectoryReport | None:
    if truth.trajectory is None:
        return None
    stamps = np.array([image.stamp_ns for image in truth.images], np.int64)
    return evaluate_trajectory(truth.trajectory, read_tum(path), stamps, association)


def _nearest(wanted: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the wanted stamps (N,) occur among `stamps`, up to rounding."""
    if stamps.size == 0:
        return np.zeros(len(wanted), bool)
    after = np.searchsorted(stamps, wanted).clip(0, len(stamps) - 1)
    before = (after - 1).clip(0)
    distance = np.minimum(np.abs(stamps[after] - wanted), np.abs(stamps[before] - wanted))
    near: NDArray[np.bool_] = distance <= STAMP_TOLERANCE_NS
    return near


def _files_by_stamp(folder: Path, truth: SequenceTruth) -> dict[int, Path]:
    """The run's image of each frame's stamp, from names `<stamp_ns>.png`."""
    paths = sorted(folder.glob("*.png"))
    bad = [path for path in paths if not path.stem.isdigit()]
    if bad:
        raise SourceError(f"{bad[0]} is not named <stamp_ns>.png; was it written by recon4d run?")
    named = np.array([int(path.stem) for path in paths], np.int64)
    result = {}
    for image in truth.images:
        distance = np.abs(named - image.stamp_ns)
        if distance.size and distance.min() <= STAMP_TOLERANCE_NS:
            result[image.stamp_ns] = paths[int(distance.argmin())]
    return result


def _depth(run_dir: Path, truth: SequenceTruth) -> dict[str, DepthReport]:
    if not truth.depth:
        return {}
    estimates = _files_by_stamp(run_dir / "depth", truth)
    if not estimates:
        raise EvaluationError(f"{run_dir / 'depth'} has no image of the sequence's frames")
    scale = read_depth_scale(run_dir / "intrinsics.json")
    exclusions = {
        "static": truth.masks,
        "outside_own_mask": _files_by_stamp(run_dir / "masks", truth),
    }

    def frames(excluded: dict[int, Path]) -> Iterator[DepthFrame]:
        for stamp, path in truth.depth.items():
            true = read_depth(path, truth.depth_scale)
            estimate = read_depth(estimates[stamp], scale) if stamp in estimates else None
            yield DepthFrame(true, estimate, _selected(true.shape, excluded.get(stamp)))

    reports = {"all": evaluate_depth(partial(frames, {}))}
    for label, excluded in exclusions.items():
        if excluded:
            reports[label] = evaluate_depth(partial(frames, excluded))
    return reports


def _selected(shape: tuple[int, ...], excluded: Path | None) -> NDArray[np.bool_]:
    """Pixels that an optional mask does not cover, (H, W)."""
    if excluded is None:
        return np.ones(shape, bool)
    return ~resize_nearest(read_mask(excluded), (shape[0], shape[1])).astype(bool)


def _masks(run_dir: Path, truth: SequenceTruth) -> MaskReport | None:
    if not truth.masks:
        return None
    estimates = _files_by_stamp(run_dir / "masks", truth)
    return evaluate_masks(
        MaskFrame(read_mask(path), read_mask(estimates[stamp]) if stamp in estimates else None)
        for stamp, path in truth.masks.items()
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

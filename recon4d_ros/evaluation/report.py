"""Everything that can be said of a run against the ground truth of its sequence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import EvaluationError, SourceError
from recon4d_ros.evaluation.depth import (
    BoolImage,
    DepthFrame,
    DepthReport,
    evaluate_depth,
    resize_nearest,
)
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
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.images import read_depth, read_mask
from recon4d_ros.storage.trajectory import read_trajectory


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
        provisional: poses as they went out on arrival, nearest stamps; None of a run that knew
            none, since it aligned whole clips.
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
        return json_text(dataclasses.asdict(self))


def evaluate_run(run_dir: Path, sequence_dir: Path) -> Report:
    """Compare what `recon4d run` wrote with the ground truth of a sequence folder.

    Raises:
        SourceError: a file is missing or malformed.
        EvaluationError: the sequence has no ground truth, or run and truth share nothing.
    """
    if not run_dir.is_dir():
        raise SourceError(f"{run_dir} is no folder; expected the output of `recon4d run`")
    sequence = SequenceFolder(sequence_dir)
    if not (
        sequence.truth.trajectory_path or sequence.truth.has_depth or sequence.truth.has_masks
    ):
        raise EvaluationError(
            f"{sequence_dir} has no ground truth; expected groundtruth.txt, depth.txt or masks/"
        )
    return Report(
        run=run_dir.resolve().name,
        sequence=sequence.name,
        final=_trajectory(run_dir / "trajectory.tum", sequence, "nearest"),
        final_interpolated=_trajectory(run_dir / "trajectory.tum", sequence, "interpolate"),
        provisional=_provisional(run_dir / "trajectory_provisional.tum", sequence),
        depth=_depth(run_dir, sequence),
        masks=evaluate_run_masks(run_dir, sequence) if sequence.truth.has_masks else None,
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
    num_posed = int(np.isin(image_stamps_ns, estimate.stamps_ns.numpy()).sum())
    return TrajectoryReport(
        alignment=alignment,
        association=association,
        ate=summarise(absolute_errors(pairs)),
        rpe_translation=summarise(translation),
        rpe_rotation_deg=summarise(rotation),
        scale=fit_similarity(matched.estimate[:, :3, 3], positions, alignment).scale,
        spread=float(np.sqrt(np.mean(np.sum((positions - positions.mean(0)) ** 2, axis=1)))),
        num_posed=num_posed,
        num_frames=len(image_stamps_ns),
        posed_share=num_posed / len(image_stamps_ns),
    )


def _trajectory(
    path: Path, sequence: SequenceFolder, association: Association
) -> TrajectoryReport | None:
    truth = sequence.truth.trajectory()
    if truth is None:
        return None
    stamps = np.array([entry.stamp_ns for entry in sequence.entries], np.int64)
    return evaluate_trajectory(truth, read_trajectory(path), stamps, association)


def _provisional(path: Path, sequence: SequenceFolder) -> TrajectoryReport | None:
    if len(read_trajectory(path).stamps_ns) == 0:
        return None
    return _trajectory(path, sequence, "nearest")


def _depth(run_dir: Path, sequence: SequenceFolder) -> dict[str, DepthReport]:
    if not sequence.truth.has_depth:
        return {}
    exclusions: dict[str, Callable[[int], BoolImage | None]] = {"all": lambda _: None}
    if sequence.truth.has_masks:
        exclusions["static"] = partial(_true_mask, sequence)
    if any((run_dir / "masks").glob("*.png")):
        exclusions["outside_own_mask"] = partial(_own_mask, run_dir)
    scale = depth_scale(run_dir / "intrinsics.json")
    return {
        label: evaluate_depth(partial(_depth_frames, run_dir, sequence, scale, excluded))
        for label, excluded in exclusions.items()
    }


def _depth_frames(
    run_dir: Path,
    sequence: SequenceFolder,
    scale: float,
    excluded: Callable[[int], BoolImage | None],
) -> Iterator[DepthFrame]:
    """The frames that have true depth, without the pixels that `excluded` gives for a stamp."""
    for entry in sequence.entries:
        truth = sequence.truth.depth(entry.stamp_ns)
        if truth is not None:
            mask = excluded(entry.stamp_ns)
            shape = (truth.shape[0], truth.shape[1])
            outside = np.ones(shape, bool) if mask is None else ~resize_nearest(mask, shape)
            path = run_dir / "depth" / f"{entry.stamp_ns}.png"
            estimate = read_depth(path, scale).numpy() if path.is_file() else None
            yield DepthFrame(truth.numpy(), estimate, outside)


def evaluate_run_masks(run_dir: Path, sequence: SequenceFolder) -> MaskReport:
    """Compare the masks of a run with those of its sequence.

    Raises:
        SourceError: a mask is damaged.
        EvaluationError: the sequence has no masks.
    """
    stamps = [entry.stamp_ns for entry in sequence.entries]
    truths = {stamp: _true_mask(sequence, stamp) for stamp in stamps}
    return evaluate_masks(
        MaskFrame(truth, _own_mask(run_dir, stamp))
        for stamp, truth in truths.items()
        if truth is not None
    )


def _true_mask(sequence: SequenceFolder, stamp_ns: int) -> BoolImage | None:
    mask = sequence.truth.mask(stamp_ns)
    return None if mask is None else mask.numpy()


def _own_mask(run_dir: Path, stamp_ns: int) -> BoolImage | None:
    path = run_dir / "masks" / f"{stamp_ns}.png"
    return read_mask(path).numpy() if path.is_file() else None


def depth_scale(path: Path) -> float:
    """Stored units per map unit of a run's depth images, from its `intrinsics.json`.

    Raises:
        SourceError: the file does not tell.
    """
    try:
        scale = float(json.loads(path.read_text())["depth_scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: no usable depth_scale ({error!r})") from error
    if not (np.isfinite(scale) and scale > 0):
        raise SourceError(f"{path}: depth_scale={scale}; expected a positive number")
    return scale


def json_text(figures: dict[str, Any]) -> str:
    """Figures as JSON text; one that is undefined is null."""
    return json.dumps(_without_nan(figures), indent=1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

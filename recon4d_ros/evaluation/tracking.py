"""How well points are tracked and how well their mobility is told.

Positions: average Jaccard, share within a distance, occlusion accuracy, as TAP-Vid has them
(Doersch et al., "TAP-Vid: A Benchmark for Tracking Any Point in a Video", NeurIPS 2022, section
3.2), query-first: a point is asked for at one frame and only later frames count. Distances are
measured in a raster of 256 x 256, whatever the size of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.metrics import mean_of_finite

THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)
RASTER_PX = 256.0
MOVING = 0.5  # a score above says that the point moves


@dataclass(frozen=True)
class PositionReport:
    """Figures of positions, each the mean over clips; NaN where no clip has any.

    Attributes:
        average_jaccard: mean over the thresholds of true positives over visible truth plus false
            positives. True positive: seen in both and within; false positive: said to be seen
            while hidden or too far away.
        share_within: "< delta_avg", mean over the thresholds of the share of the visible true
            positions that are nearer than it, whatever the tracker says of being seen.
        occlusion_accuracy: share of frames whose visibility is told right.
        num_clips: clips with a frame that counts.
    """

    average_jaccard: float
    share_within: float
    occlusion_accuracy: float
    num_clips: int


@dataclass(frozen=True)
class MobilityReport:
    """Figures of telling moving points from static ones, over the points of all clips.

    Attributes:
        accuracy: D-ACC, share of points told right.
        balanced_accuracy: mean of the shares of moving and of static points told right; NaN when
            there is only one kind.
        recall: share of the moving points found; NaN without any.
        auroc: probability that a moving point scores above a static one, ties count half; NaN
            when there is only one kind.
        majority_rate: accuracy of always saying the commoner kind.
        num_moving, num_static: points that were judged.
    """

    accuracy: float
    balanced_accuracy: float
    recall: float
    auroc: float
    majority_rate: float
    num_moving: int
    num_static: int


def counted(queries: Tensor, uv: Tensor) -> Tensor:
    """Frames that count (T, N): after the query, and with a truth.

    Args:
        queries: (N, 3) frame, x, y.
        uv: (T, N, 2) px true positions, NaN where unknown.
    """
    frames = torch.arange(len(uv), device=uv.device)[:, None]
    after: Tensor = frames > queries[:, 0]
    return after & torch.isfinite(uv).all(dim=-1)


def distances(uv: Tensor, true_uv: Tensor, size: tuple[int, int]) -> Tensor:
    """Distance (...) in px of the 256 x 256 raster; infinite where the tracker has no position.

    Args:
        uv: (..., 2) px.
        true_uv: (..., 2) px.
        size: (height, width) of the images.
    """
    per_px = torch.tensor([RASTER_PX / size[1], RASTER_PX / size[0]]).to(uv)
    apart: Tensor = torch.linalg.vector_norm((uv - true_uv.to(uv)) * per_px, dim=-1)
    return apart.nan_to_num(nan=torch.inf)


def position_figures(
    apart: Tensor, seen: Tensor, truly_seen: Tensor, counts: Tensor
) -> tuple[float, float, float]:
    """Average Jaccard, share within and occlusion accuracy of one clip.

    Args:
        apart: (T, N) px from the truth, in the raster.
        seen: (T, N) bool, the tracker says so.
        truly_seen: (T, N) bool.
        counts: (T, N) bool.

    Returns:
        Numbers in [0, 1]; NaN where nothing counts.
    """
    limits = torch.tensor(THRESHOLDS_PX).to(apart)[:, None]
    near = apart[counts] < limits
    seen, true = seen[counts], truly_seen[counts]
    num_true = true.sum()
    hits = (near & seen & true).sum(dim=1)
    false = (seen & ~(near & true)).sum(dim=1)
    jaccard = (hits / (num_true + false)).mean()
    within = ((near & true).sum(dim=1) / num_true).mean()
    return float(jaccard), float(within), float((seen == true).double().mean())


def position_report(figures: Sequence[tuple[float, float, float]]) -> PositionReport:
    """Mean over the `position_figures` of clips; those without a frame that counts are left out.

    Raises:
        EvaluationError: no clip has a frame that counts.
    """
    told = [row for row in figures if not np.isnan(row[2])]
    if not told:
        raise EvaluationError(
            f"none of {len(figures)} clips has a true position after its query frame; give "
            "sequences with tracks, and clips of at least two frames"
        )
    jaccard, within, occlusion = (
        mean_of_finite(list(column)) for column in zip(*told, strict=True)
    )
    return PositionReport(jaccard, within, occlusion, len(told))


def mobility_report(score: NDArray[np.float64], moves: NDArray[np.bool_]) -> MobilityReport:
    """Compare scores (P,) in [0, 1] with labels (P,), moving above 0.5.

    Raises:
        EvaluationError: there is no point, or a score is not a number.
    """
    if score.shape != moves.shape or score.size == 0 or np.isnan(score).any():
        raise EvaluationError(
            f"{score.size} mobility scores, {int(np.isnan(score).sum())} of them not a number, "
            f"for {moves.size} points; expected one number for each of at least one point"
        )
    said = score > MOVING
    recall, specificity = _share(said[moves]), _share(~said[~moves])
    return MobilityReport(
        accuracy=float((said == moves).mean()),
        balanced_accuracy=0.5 * (recall + specificity),
        recall=recall,
        auroc=auroc(score, moves),
        majority_rate=float(max(moves.mean(), 1 - moves.mean())),
        num_moving=int(moves.sum()),
        num_static=int((~moves).sum()),
    )


def auroc(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the receiver operating characteristic, from the rank sum; NaN with one kind.

    Source: Hanley and McNeil, Radiology 143, 1982 (the Wilcoxon statistic).
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - 0.5 * (counts - 1))[place]
    above = rank[positive].sum() - 0.5 * num_positive * (num_positive + 1)
    return float(above / (num_positive * num_negative))


def _share(told_right: NDArray[np.bool_]) -> float:
    return float(told_right.mean()) if told_right.size else float("nan")

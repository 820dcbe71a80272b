"""Overlap of estimated and true masks of what moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.depth import BoolImage, resize_nearest
from recon4d_ros.evaluation.metrics import mean_of_finite


@dataclass(frozen=True, eq=False)
class MaskFrame:
    """One frame to compare.

    Attributes:
        truth: (H, W) bool, True where the surface moves.
        estimate: (h, w) bool of the same view at any size; None when the run wrote none.
    """

    truth: BoolImage
    estimate: BoolImage | None


@dataclass(frozen=True)
class MaskReport:
    """Mask figures of a sequence, each a mean over its frames.

    Attributes:
        iou: intersection over union; where nothing moves 1 if nothing is flagged, else 0
            (Perazzi et al., "A benchmark dataset and evaluation methodology for video object
            segmentation", CVPR 2016).
        recall: true pixels found, over the frames that have true pixels; NaN if none has.
        precision: flagged pixels that are true, over the frames with flags; NaN if none has.
        iou_recall: share of frames with an IoU above 0.5.
        flagged_share: flagged pixels over all pixels.
        num_frames: frames with truth; one without an estimate counts as unflagged.
    """

    iou: float
    recall: float
    precision: float
    iou_recall: float
    flagged_share: float
    num_frames: int


def evaluate_masks(frames: Iterable[MaskFrame]) -> MaskReport:
    """Compare the masks of a sequence.

    Raises:
        EvaluationError: there is no frame.
    """
    rows = [_frame_figures(frame) for frame in frames]
    if not rows:
        raise EvaluationError("no true masks to compare with; the folder masks/ is empty")
    iou, recall, precision, flagged = (list(column) for column in zip(*rows, strict=True))
    return MaskReport(
        iou=float(np.mean(iou)),
        recall=mean_of_finite(recall),
        precision=mean_of_finite(precision),
        iou_recall=float(np.mean(np.array(iou) > 0.5)),
        flagged_share=float(np.mean(flagged)),
        num_frames=len(rows),
    )


def _frame_figures(frame: MaskFrame) -> tuple[float, float, float, float]:
    """IoU, recall, precision, flagged share of one frame."""
    size = (frame.truth.shape[0], frame.truth.shape[1])
    if frame.estimate is None:
        estimate = np.zeros(size, bool)
    else:
        estimate = resize_nearest(frame.estimate, size)
    hits = int((estimate & frame.truth).sum())
    flagged, moving = int(estimate.sum()), int(frame.truth.sum())
    union = flagged + moving - hits
    return (
        hits / union if union else 1.0,
        hits / moving if moving else float("nan"),
        hits / flagged if flagged else float("nan"),
        flagged / estimate.size,
    )

"""Depth error with one scale for the whole sequence.

A monocular reconstruction knows depth up to one factor. Choosing that factor anew for every frame
would hide a drifting scale, so it is the median ratio over all compared pixels of the sequence.
AbsRel and delta < 1.25 are those of Eigen et al., "Depth map prediction from a single image using
a multi-scale deep network" (NIPS 2014), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import EvaluationError

DepthImage = NDArray[np.float32]
BoolImage = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """One frame to compare.

    Attributes:
        truth: (H, W) float32 z-depth, NaN where unknown.
        estimate: (h, w) float32 z-depth of the same view at any size, NaN where unknown; None when
            the run wrote none.
        selected: (H, W) bool, the pixels that count.
    """

    truth: DepthImage
    estimate: DepthImage | None
    selected: BoolImage


@dataclass(frozen=True)
class DepthReport:
    """Depth errors of a sequence after scaling the estimate once.

    Attributes:
        abs_rel: mean of |scale * estimate - truth| / truth over the compared pixels.
        delta_125: share of them within a factor of 1.25.
        scale: truth units per unit of the estimate.
        valid_share: compared pixels over selected pixels that have truth, over every frame.
        num_pixels: compared pixels.
        num_frames: frames with truth.
    """

    abs_rel: float
    delta_125: float
    scale: float
    valid_share: float
    num_pixels: int
    num_frames: int


Pixel = TypeVar("Pixel", bound=np.generic)


def resize_nearest(image: NDArray[Pixel], size: tuple[int, int]) -> NDArray[Pixel]:
    """Image (h, w) sampled at the pixel centres of a grid of `size` (H, W)."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for old, new in zip(image.shape, size, strict=True)
    )
    return image[np.ix_(rows, columns)]


def evaluate_depth(frames: Callable[[], Iterable[DepthFrame]]) -> DepthReport:
    """Compare the depth images of a sequence.

    Args:
        frames: gives the frames anew at each call; they are read twice, never held together.

    Raises:
        EvaluationError: no pixel has both truth and estimate.
    """
    ratios, num_truth, num_frames = _RatioHistogram(), 0, 0
    for frame in frames():
        truth, estimate = _compared(frame)
        ratios.add(truth / estimate)
        num_truth += int((np.isfinite(frame.truth) & frame.selected).sum())
        num_frames += 1
    if ratios.count == 0:
        raise EvaluationError(
            f"no pixel of {num_frames} frames has both a true and an estimated depth; "
            "check that run and sequence belong together"
        )
    scale = ratios.median()
    absolute, within = 0.0, 0
    for frame in frames():
        truth, estimate = _compared(frame)
        ratio = scale * estimate / truth
        absolute += float(np.abs(ratio - 1).sum(dtype=np.float64))
        within += int((np.maximum(ratio, 1 / ratio) < 1.25).sum())
    share = ratios.count / num_truth
    return DepthReport(
        absolute / ratios.count, within / ratios.count, scale, share, ratios.count, num_frames
    )


def _compared(frame: DepthFrame) -> tuple[DepthImage, DepthImage]:
    """True and estimated depth of the pixels that have both, each (P,)."""
    if frame.estimate is None:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    estimate = resize_nearest(frame.estimate, (frame.truth.shape[0], frame.truth.shape[1]))
    both = frame.selected & np.isfinite(frame.truth) & np.isfinite(estimate)
    return frame.truth[both], estimate[both]


class _RatioHistogram:
    """Median of any number of positive ratios in bounded memory, to 1 part in 19,000.

    Counts log-ratios in narrow bins: the pixels of a long sequence do not fit into memory.
    """

    LOW, HIGH, BINS = np.log(1e-6), np.log(1e6), 1 << 18

    def __init__(self) -> None:
        self._counts = np.zeros(self.BINS, np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, ratios: NDArray[np.float32]) -> None:
        position = (np.log(ratios.astype(np.float64)) - self.LOW) / (self.HIGH - self.LOW)
        bins = (position * self.BINS).astype(np.int64).clip(0, self.BINS - 1)
        self._counts += np.bincount(bins, minlength=self.BINS)

    def median(self) -> float:
        middle = int(np.searchsorted(np.cumsum(self._counts), self.count / 2))
        return float(np.exp(self.LOW + (middle + 0.5) / self.BINS * (self.HIGH - self.LOW)))

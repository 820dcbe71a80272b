"""Which point tracks move in the world, from two-view geometry alone.

C4D's epipolar test on tracks instead of pixels: what the camera's motion explains has no distance
from its epipolar line. A camera that stands or turns has no epipolar lines; there the whole
displacement, or what a homography leaves of it, speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from recon4d_ros.predictors.classical.rigid import Array

UNKNOWN = 0.5
_REFERENCE_SIDE_PX = 512.0  # lengths below are for images of this long side
_STANDING_PX = 0.5  # median displacement under which the camera stands
_LEAST_SIGMA_PX = 0.1  # noise of a tracked position, however good the fit looks
_SIGMAS = 3.0  # noise that the distance of a static point may reach
_MAX_MEDIAN_PX = 1.0
_FLAT_PX = 0.2  # median distance from a homography under which that is all there is to see
_SEARCH_PX = 0.5
_MIN_TRACKS = 30

# What a model of the camera leaves of the motion between positions (N, 2) and (N, 2), as a squared
# distance (N,) px^2; None where none fits. The third argument is px per unit of the lengths above.
Residual = Callable[[Array, Array, float], Array | None]


def mobility(
    uv: Array,
    long_side: int,
    residual: Residual | None = None,
    max_median_px: float = _MAX_MEDIAN_PX,
) -> Array:
    """Probability-like score of each track, 0.5 at the bound of the noise.

    Args:
        uv: (T, N, 2) px, NaN where not seen.
        long_side: of the image, px.
        residual: what is left of a motion; None takes `off_camera_motion`.
        max_median_px: a pair whose median track keeps more of its motion has no vote, px at a long
            side of 512.

    Returns:
        (N,) in [0, 1], the median over the pairs of frames that see the track; 0.5 for a track
        that no pair could judge.
    """
    left_over = residual or off_camera_motion
    scale = long_side / _REFERENCE_SIDE_PX
    bounds = scale, max_median_px * scale
    votes = [_vote(uv[a], uv[b], left_over, *bounds) for a, b in _pairs(len(uv))]
    stacked = np.stack([*votes, np.full(uv.shape[1], np.nan)])
    heard = np.isfinite(stacked).any(axis=0)
    out = np.full(uv.shape[1], UNKNOWN)
    out[heard] = np.nanmedian(stacked[:, heard], axis=0)
    return out


def _pairs(num_frames: int) -> Iterator[tuple[int, int]]:
    """Pairs half a window apart: motion has had time to show, tracks have not drifted yet."""
    lag = num_frames // 2
    if lag > 0:
        for first in range(num_frames - 1 - lag, -1, -2):
            yield first, first + lag


def _vote(
    first: Array, second: Array, residual: Residual, scale: float, max_median: float
) -> Array:
    """Score (N,) from one pair of frames; NaN where it has no vote."""
    votes = np.full(len(first), np.nan)
    both = np.isfinite(first[:, 0]) & np.isfinite(second[:, 0])
    if both.sum() < _MIN_TRACKS:
        return votes
    squared = residual(first[both], second[both], scale)
    if squared is None:
        return votes
    median = float(np.sqrt(np.median(squared)))
    if median > max_median:
        return votes
    bound = (_SIGMAS * max(1.4826 * median, _LEAST_SIGMA_PX * scale)) ** 2
    votes[both] = squared / (squared + bound)
    return votes


def off_camera_motion(first: Array, second: Array, scale: float) -> Array | None:
    """Squared distance (N,) from the simplest motion of the camera that explains most tracks."""
    shift = second - first
    if np.median(np.linalg.norm(shift, axis=1)) < _STANDING_PX * scale:
        return np.asarray((shift**2).sum(axis=1) / 2)
    flat = off_homography(first, second, scale)
    if flat is not None and np.median(flat) < (_FLAT_PX * scale) ** 2:
        return flat
    return off_epipolar_lines(first, second, scale)


def off_homography(first: Array, second: Array, scale: float) -> Array | None:
    """Squared distance (N,) from the homography that most tracks agree on."""
    H = _fitted(cv2.findHomography, first, second, 2 * _SEARCH_PX * scale)
    if H is None:
        return None
    mapped = cv2.perspectiveTransform(first[None], H)[0]
    return np.asarray(((second - mapped) ** 2).sum(axis=1) / 2)


def off_epipolar_lines(first: Array, second: Array, scale: float) -> Array | None:
    """Squared Sampson distance (N,) from the fundamental matrix that most tracks agree on."""
    F = _fitted(cv2.findFundamentalMat, first, second, _SEARCH_PX * scale)
    if F is None:
        return None
    ones = np.ones((len(first), 1))
    a, b = np.concatenate([first, ones], axis=1), np.concatenate([second, ones], axis=1)
    line_b, line_a = a @ F.T, b @ F
    gradient = (line_b[:, :2] ** 2).sum(axis=1) + (line_a[:, :2] ** 2).sum(axis=1)
    return np.asarray((b * line_b).sum(axis=1) ** 2 / np.maximum(gradient, 1e-20))


def _fitted(
    fit: Callable[..., Any], first: Array, second: Array, inlier_px: float
) -> Array | None:
    """The (3, 3) matrix that most tracks agree on, the same in every run."""
    cv2.setRNGSeed(0)
    try:
        M, _ = fit(first, second, cv2.USAC_MAGSAC, inlier_px, confidence=0.999, maxIters=1000)
    except cv2.error:  # OpenCV asserts where no minimal sample gives a model
        return None
    return None if M is None or M.shape != (3, 3) else np.asarray(M, np.float64)

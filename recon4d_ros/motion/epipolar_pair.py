"""What one pair of frames says about which pixels move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.config import MotionConfig
from recon4d_ros.datatypes import FlowField
from recon4d_ros.motion.background import (
    Background,
    Residual,
    fit_background,
    homography_shift,
    line_normals,
)
from recon4d_ros.motion.ego_flow import AlongLine

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

REFERENCE_SIDE_PX = 512.0
# Absolute tests of a pair: a robust fit calls half of its points inliers by construction.
MAX_MEDIAN_PX = 1.0
MIN_INLIER_SHARE = 0.6
MAX_MOVING_SHARE = 0.9
# Parallax outside the background's range over more of the view than this is depth, not motion.
MAX_PARALLAX_SHARE = 0.4
# Least tolerance of parallax, over the threshold across the line.
PARALLAX_TOLERANCE = 0.5
# Errors of depth lie in patches, no white noise: what a static one may reach.
DEPTH_SIGMAS = 6.0
# Parallax counts as depth if the known depth says so with an error so much smaller.
EXPLAINED_SIGMAS = 4.0
# The structure tensor predicts grey differences for small displacements only.
MAX_LINEAR_PX = 1.5


@dataclass(frozen=True, eq=False)
class PairEvidence:
    """Vote of one pair on the pixels of its source frame.

    Attributes:
        source, target: frame numbers.
        evidence: (H, W) float32, squared residual over its threshold; > 1 speaks for motion.
        decided: (H, W) bool; where False the pair abstains.
        loudness: pairs that the vote counts for.
        unexplained: (H, W) bool, what the background's motion does not explain, be it motion or
            depth; None for matched pointmaps, which know depth.
    """

    source: int
    target: int
    evidence: Floats
    decided: Bools
    loudness: float = 1.0
    unexplained: Bools | None = None


def pair_evidence(
    field: FlowField,
    config: MotionConfig,
    along: AlongLine | None = None,
    region: Bools | None = None,
) -> PairEvidence | None:
    """Vote of one pair, or None when it fails the absolute tests and has no vote.

    Args:
        field: the pair's flow.
        config: thresholds.
        along: what depth known from other pairs leaves unexplained; None when there is none.
        region: (H, W) bool, where the background is; None for wherever most of the flow agrees.
    """
    flow, valid = field.flow.numpy(), field.valid.numpy()
    scale = max(valid.shape) / REFERENCE_SIDE_PX
    fitted = fit_background(flow, valid if region is None else valid & region, scale)
    if fitted is None:
        return None
    background, found = fitted
    threshold = max(config.threshold_px * scale, config.noise_factor * background.noise_px)
    if threshold > config.max_threshold_px * scale:
        return None
    if not _fits(found, background, scale):
        return None
    outside = _outside(found, background, config)
    evidence = (found.across / threshold) ** 2
    far = outside > PARALLAX_TOLERANCE * threshold
    unexplained = valid & ((evidence > 1) | far)
    if along is not None:
        explained = _explained(along, outside, threshold)
        outside[explained], far[explained] = 0, False
    if _is_no_thing(far, background, config):
        outside = np.zeros_like(outside)
    evidence = np.maximum(evidence, (outside / (PARALLAX_TOLERANCE * threshold)) ** 2)
    decided = valid & ~_unseen(field, background, outside, evidence, config)
    if along is not None:
        moved = _moved_along(field, along, background, threshold, config)
        evidence, decided = np.maximum(evidence, moved), decided | (moved > 1)
    if (evidence[decided] > 1).mean() > MAX_MOVING_SHARE:
        return None
    return PairEvidence(field.source, field.target, evidence, decided, unexplained=unexplained)


def _fits(found: Residual, background: Background, scale: float) -> bool:
    across = found.across[background.uv[:, 1], background.uv[:, 0]]
    return bool(
        np.median(across) <= MAX_MEDIAN_PX * scale
        and (across < MAX_MEDIAN_PX * scale).mean() >= MIN_INLIER_SHARE
    )


def _outside(found: Residual, background: Background, config: MotionConfig) -> Floats:
    """How far the parallax lies beyond the background's range, px."""
    low, high = background.parallax
    reach = (0.5 + config.parallax_margin) * (high - low)
    return np.asarray(np.maximum(np.abs(found.parallax - 0.5 * (low + high)) - reach, 0))


def _is_no_thing(far: Bools, background: Background, config: MotionConfig) -> bool:
    """Whether pixels (H, W) are so many, or so widely spread, that they show depth."""
    uv = background.uv
    chosen = far[uv[:, 1], uv[:, 0]]
    much = chosen.mean() > MAX_PARALLAX_SHARE
    return bool(much or spread(uv, chosen, far.shape) > config.max_spread)


def _explained(along: AlongLine, outside: Floats, threshold: float) -> Bools:
    """Where the depth that other pairs measured gives just this parallax, and no other."""
    length = np.hypot(along.residual[..., 0], along.residual[..., 1])
    sure = EXPLAINED_SIGMAS * along.sigma < outside
    return np.asarray(along.known & sure & (length < threshold))


def _moved_along(
    field: FlowField,
    along: AlongLine,
    background: Background,
    threshold: float,
    config: MotionConfig,
) -> Floats:
    """Evidence of motion along the lines; 0 where flow is no good or nothing can be seen."""
    wrong = along.residual
    length2 = wrong[..., 0] ** 2 + wrong[..., 1] ** 2
    evidence = length2 / np.maximum(threshold, DEPTH_SIGMAS * along.sigma) ** 2
    if _is_no_thing(evidence > 1, background, config):
        return np.zeros_like(evidence)
    v, u = np.nonzero(evidence > 1)
    evidence[v, u] *= _visible(field, wrong[v, u], u, v, config)
    return np.asarray(evidence)


def spread(uv: NDArray[np.int64], chosen: Bools, shape: tuple[int, ...]) -> float:
    """Spread of the chosen pixels over the image; 1 when they lie evenly all over it."""
    if chosen.sum() < 2:
        return 0.0
    height, width = shape
    deviation = uv[chosen].std(axis=0) * np.sqrt(12.0) / np.array([width, height])
    return float(deviation.mean())


def _unseen(
    field: FlowField,
    background: Background,
    outside: Floats,
    evidence: Floats,
    config: MotionConfig,
) -> Bools:
    """Where the image would look the same if the pixel moved as the background does.

    In areas without structure the flow is a guess and its residual means nothing.
    """
    unseen = np.zeros(evidence.shape, np.bool_)
    v, u = np.nonzero(evidence > 1)
    wrong = homography_shift(background.H, field.flow.numpy(), u, v)
    if background.F is not None:
        normals = line_normals(background.F, u, v)
        across = (wrong * normals).sum(axis=1, keepdims=True) * normals
        wrong = np.where(outside[v, u, None] > 0, wrong, across)
    unseen[v, u] = ~_visible(field, wrong, u, v, config)
    return unseen


def _visible(
    field: FlowField,
    wrong: Floats,
    u: NDArray[np.int64],
    v: NDArray[np.int64],
    config: MotionConfig,
) -> Bools:
    """Whether undoing displacements (P, 2) of pixels (P,) would change the image."""
    if field.structure is None:
        return np.ones(len(u), np.bool_)
    length = np.hypot(wrong[:, 0], wrong[:, 1])
    x, y = (wrong * np.minimum(1, MAX_LINEAR_PX / (length + 1e-9))[:, None]).T
    xx, xy, yy = field.structure.numpy()[v, u].T
    change = xx * x * x + 2 * xy * x * y + yy * y * y
    return np.asarray(change >= config.min_contrast**2)

"""Similarities Sim(3) as 4x4 matrices with scale times rotation in the upper left.

Convention: S_target_source maps source coordinates to target coordinates. Scale never leaves the
house inside a transform: `split` it into an SE(3) pose and a number first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3
from recon4d_ros.geometry.checks import (
    check_finite,
    check_positive,
    check_shape,
    check_transform,
    check_weights,
)
from recon4d_ros.geometry.robust import lmeds_sigma, tukey_weight

# Spread of the second axis over the first below which points are called collinear.
_COLLINEAR = 1e-5
# Points on which the trials are scored; a few hundred fix a median well enough.
_SCORED_POINTS = 256


def make(scale: Tensor | float, T: Tensor) -> Tensor:
    """Similarity (..., 4, 4) that scales by `scale` (...) and then applies the pose T.

    Raises:
        GeometryError: the scale is not above zero or T is no rigid transform.
    """
    check_transform(T, "T")
    factor = torch.as_tensor(scale, dtype=T.dtype, device=T.device)
    check_positive(factor, "scale")
    return se3.assemble(T[..., :3, :3] * factor[..., None, None], T[..., :3, 3])


def split(S: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (...) and rigid transform (..., 4, 4) of a similarity.

    Raises:
        GeometryError: the matrix is no similarity.
    """
    check_transform(S, "S")
    determinant = torch.linalg.det(S[..., :3, :3])
    if not bool((determinant > 0).all()):
        raise GeometryError("S has a scale that is not above zero; expected a similarity")
    scale = determinant ** (1.0 / 3.0)
    return scale, se3.make(S[..., :3, :3] / scale[..., None, None], S[..., :3, 3])


def inverse(S: Tensor) -> Tensor:
    """S_source_target (..., 4, 4) of S_target_source."""
    check_transform(S, "S")
    linear = S[..., :3, :3]
    # Each of the three columns is as long as the scale.
    squared = linear.square().sum(dim=(-2, -1)) / 3.0
    check_positive(squared, "squared scale")
    back = linear.mT / squared[..., None, None]
    return se3.assemble(back, -(back @ S[..., :3, 3:]).squeeze(-1))


def transform_pose(S_map_pred: Tensor, T_pred_cam: Tensor) -> Tensor:
    """Pose T_map_cam (..., 4, 4): the camera centre is scaled, its orientation only rotated.

    A map is corrected again and again, each time by what its own poses say: the rounding of their
    rotations would grow from one to the next, so it is taken out here.
    """
    moved = S_map_pred @ T_pred_cam
    return se3.make(se3.orthonormalise(moved[..., :3, :3]), moved[..., :3, 3])


def coordinates(S: Tensor) -> Tensor:
    """(..., 7) translation, rotation vector and logarithm of the scale of similarities.

    Near the identity these are, to first order, the tangent coordinates of the group.
    """
    scale, T = split(S)
    turn = se3.log_so3(T[..., :3, :3])
    return torch.cat([T[..., :3, 3], turn, scale.log().unsqueeze(-1)], dim=-1)


def from_coordinates(values: Tensor) -> Tensor:
    """Similarities (..., 4, 4) of `coordinates` (..., 7).

    Raises:
        GeometryError: wrong shape or values that are not finite.
    """
    check_shape(values, "coordinates", 7)
    check_finite(values, "coordinates")
    linear = se3.exp_so3(values[..., 3:6]) * values[..., 6:].exp().unsqueeze(-1)
    return se3.assemble(linear, values[..., :3])


def interpolate(knots: Tensor, S: Tensor, at: Tensor) -> Tensor:
    """Similarities (P, 4, 4) between those at ascending knots; beyond the ends the end's own.

    Args:
        knots: (M,) ascending.
        S: (M, 4, 4) at the knots, neighbours nearly equal.
        at: (P,) where to take them.

    Raises:
        GeometryError: no knot, or as many as there are not similarities.
    """
    if len(knots) == 0 or S.shape != (len(knots), 4, 4):
        raise GeometryError(
            f"{len(knots)} knots and similarities {tuple(S.shape)}; expected (M, 4, 4) of M >= 1"
        )
    upper = torch.searchsorted(knots, at, right=True).clamp(1, max(1, len(knots) - 1))
    lower, upper = upper - 1, upper.clamp(max=len(knots) - 1)
    width = (knots[upper] - knots[lower]).clamp(min=1).to(S)
    share = ((at - knots[lower]).to(S) / width).clamp(0.0, 1.0).unsqueeze(-1)
    steps = coordinates(inverse(S[:-1]) @ S[1:]) if len(S) > 1 else S.new_zeros(1, 7)
    return S[lower] @ from_coordinates(share * steps[lower])


def fit(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """S_target_source (4, 4) that minimises the weighted squared distance of paired points.

    Source: Umeyama, Least-squares estimation of transformation parameters, PAMI 1991, eq. 34-43,
    with weights.

    Args:
        source: (P, 3) finite points.
        target: (P, 3) their partners.
        weights: (P,) not negative; None weighs all alike.

    Raises:
        GeometryError: wrong shapes, values that are not finite, or fewer than three points of
            positive weight, or points on one line: the rotation is not determined.
    """
    w = _checked_weights(source, target, weights)
    S, determined = _umeyama(source, target, w)
    if not bool(determined):
        raise GeometryError(
            f"{int((w > 0).sum())} weighted point pairs lie on a line or in one point; a "
            "similarity needs three that do not"
        )
    return S


@dataclass(frozen=True, eq=False)
class RobustFit:
    """A similarity and what it rests on.

    Attributes:
        S: (4, 4) S_target_source.
        inlier: (P,) bool, pairs that agree with it.
        sigma: standard deviation of the distance of the inliers, target units.
    """

    S: Tensor
    inlier: Tensor
    sigma: float


def fit_robust(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    floor: float = 0.0,
    trials: int = 128,
    refinements: int = 6,
    seed: int = 0,
) -> RobustFit:
    """Similarity that tolerates up to 45 % wrong pairs; equal input gives equal output.

    Least median of squares over minimal samples, then reweighted least squares (Tukey weights).
    Source: Rousseeuw and Leroy, Robust Regression and Outlier Detection, 1987.

    Args:
        source: (P, 3) finite points.
        target: (P, 3) their partners.
        weights: (P,) not negative; None weighs all alike.
        start: (4, 4) first guess in place of the minimal samples, for a small correction.
        floor: smallest believable standard deviation, target units; keeps exact input stable.
        trials: minimal samples drawn.
        refinements: reweighting steps.
        seed: of the draw.

    Raises:
        GeometryError: as `fit`, or no sample of three points spans a plane.
    """
    w = _checked_weights(source, target, weights)
    used = torch.nonzero(w > 0).squeeze(-1)
    if len(used) < 3:
        raise GeometryError(f"{len(used)} point pairs have weight; a similarity needs three")
    S = start if start is not None else _least_median(source[used], target[used], trials, seed)
    sigma = _sigma(S, source[used], target[used], floor)
    for _ in range(refinements):
        S = fit(source, target, w * tukey_weight(_distance(S, source, target), 4.685 * sigma))
        sigma = _sigma(S, source[used], target[used], floor)
    inlier = (_distance(S, source, target) < 3.0 * sigma) & (w > 0)
    return RobustFit(S=S, inlier=inlier, sigma=sigma)


def _least_median(source: Tensor, target: Tensor, trials: int, seed: int) -> Tensor:
    """Best similarity of many minimal samples by the median distance."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(trials, 3, generator=generator) * len(source)
    sample = draws.long().to(source.device)
    candidates, determined = _umeyama(
        source[sample], target[sample], torch.ones_like(source[sample][..., 0])
    )
    if not bool(determined.any()):
        raise GeometryError(
            f"{len(source)} point pairs lie on a line or in one point; a similarity needs three "
            "that do not"
        )
    candidates = candidates[determined]
    step = max(1, len(source) // _SCORED_POINTS)
    moved = source[::step] @ candidates[:, :3, :3].mT + candidates[:, None, :3, 3]
    score = (moved - target[::step]).square().sum(dim=-1).median(dim=-1).values
    return candidates[score.argmin()]


def _sigma(S: Tensor, source: Tensor, target: Tensor, floor: float) -> float:
    squared = _distance(S, source, target).square()
    found = float(lmeds_sigma(squared, 2)) if len(source) > 3 else float(squared.mean().sqrt())
    # Rounding alone leaves about this much between exact pairs.
    rounding = 8.0 * torch.finfo(target.dtype).eps * float(target.abs().max() + 1.0)
    return max(found, floor, rounding)


def _distance(S: Tensor, source: Tensor, target: Tensor) -> Tensor:
    moved = source @ S[:3, :3].mT + S[:3, 3]
    distance: Tensor = torch.linalg.vector_norm(moved - target, dim=-1)
    return distance


def _checked_weights(source: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    check_shape(source, "source", -1, 3)
    if source.ndim != 2 or source.shape != target.shape or source.dtype != target.dtype:
        raise GeometryError(
            f"source {tuple(source.shape)} {source.dtype} and target {tuple(target.shape)} "
            f"{target.dtype} are no pairs; expected two (P, 3) of one type"
        )
    check_finite(source, "source")
    check_finite(target, "target")
    if weights is None:
        return torch.ones_like(source[:, 0])
    check_weights(weights, "weights", source.shape[:1])
    return weights.to(source)


def _umeyama(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities (..., 4, 4) of points (..., P, 3), and whether each is determined (...)."""
    total = weights.sum(dim=-1, keepdim=True)
    share = (weights / total.clamp(min=torch.finfo(weights.dtype).tiny)).unsqueeze(-1)
    mean_source, mean_target = (share * source).sum(dim=-2), (share * target).sum(dim=-2)
    a, b = source - mean_source.unsqueeze(-2), target - mean_target.unsqueeze(-2)
    covariance = (share * b).mT @ a
    U, sigma, Vh = torch.linalg.svd(covariance)
    flip = torch.ones_like(sigma)
    flip[..., 2] = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    R = (U * flip.unsqueeze(-2)) @ Vh
    spread = (share.squeeze(-1) * a.square().sum(dim=-1)).sum(dim=-1)
    scale = (sigma * flip).sum(dim=-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    determined = (sigma[..., 1] > _COLLINEAR * sigma[..., 0]) & (sigma[..., 0] > 0) & (scale > 0)
    scale = torch.where(determined, scale, torch.ones_like(scale))
    linear = R * scale[..., None, None]
    translation = mean_target - (linear @ mean_source.unsqueeze(-1)).squeeze(-1)
    return se3.assemble(linear, translation), determined

"""Where a window lies in the map: one similarity, held as long as the evidence allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.evidence import Pairs
from recon4d_ros.alignment.state import MapState
from recon4d_ros.datatypes import WindowPrediction
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3, sim3

# Fewer pairs than this neither join a gauge nor correct a join.
MIN_PAIRS = 40
# More than this only cost time: the noise of neighbouring pixels is one and the same.
_MAX_PAIRS = 1000
# A held join is given up only if another explains the shared points this much better.
_CLEARLY_BETTER = 0.7
# ... and only if they are off by more than this share of the scene's depth: less is rounding.
_NOTICEABLE = 1e-4
# Above this share of the depth a held join is no first guess any more.
_FAR_OFF = 0.05
# A new join must explain this share of the pairs.
_MIN_INLIER_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the window's key camera lies in the map.

    Attributes:
        scale: map units per predictor unit.
        T_map_key: (4, 4) float64.
        residual: weighted median distance of the shared points, map units.
        num_shared: shared points and poses.
    """

    scale: float
    T_map_key: Tensor
    residual: float
    num_shared: int

    @property
    def S_map_key(self) -> Tensor:
        """The similarity (4, 4)."""
        return sim3.make(self.scale, self.T_map_key)


def scaled(T: Tensor, scale: float) -> Tensor:
    """Poses (..., 4, 4) with their translations multiplied."""
    result = T.clone()
    result[..., :3, 3] *= scale
    return result


def hold(held: Placement, pairs: Pairs) -> Placement:
    """The held join, unless another one explains the shared points clearly better.

    Least squares on every window would let the noise of each add up to a random walk; a test
    against the join that is held does not.
    """
    kept = measured(held, pairs)
    before = kept.residual
    if len(pairs) < MIN_PAIRS:
        return kept
    depth = pairs.median_depth() * held.scale
    if before <= _NOTICEABLE * depth:
        return kept
    start = held.S_map_key if before < _FAR_OFF * depth else None
    found = fitted(pairs, start)
    if found is None or found.residual >= _CLEARLY_BETTER * before:
        return kept
    return found


def measured(held: Placement, pairs: Pairs) -> Placement:
    """The held join as it is, with what the shared points say of it."""
    return Placement(held.scale, held.T_map_key, pairs.residual(held.S_map_key), len(pairs))


def fitted(pairs: Pairs, start: Tensor | None = None) -> Placement | None:
    """The join that most pairs agree on; None when they determine none.

    From a good start two reweighted steps show whether there is anything to gain.
    """
    if len(pairs) < MIN_PAIRS:
        return None
    try:
        few = pairs.thinned(_MAX_PAIRS)
        refinements = 6 if start is None else 2
        fit = sim3.fit_robust(
            few.source, few.target, few.weight, start=start, refinements=refinements
        )
    except GeometryError:
        # Points on one line, or scattered beyond any agreement, place nothing.
        return None
    if float(fit.inlier.double().mean()) < _MIN_INLIER_SHARE:
        return None
    scale, T_map_key = sim3.split(fit.S)
    residual = pairs.residual(fit.S)
    return Placement(float(scale), T_map_key, residual, len(pairs))


def chained(
    indices: Sequence[int], T_key_cam: Tensor, scale: float, poses: Mapping[int, Tensor]
) -> Placement | None:
    """The join that keeps the scale and the poses of the shared frames; None without any.

    Args:
        indices: frame numbers of the window.
        T_key_cam: (T, 4, 4), NaN where a frame has no pose.
        scale: map units per predictor unit.
        poses: T_map_cam of frames placed before.
    """
    shared = [
        (poses[index], T)
        for index, T in zip(indices, T_key_cam, strict=True)
        if index in poses and bool(T.isfinite().all())
    ]
    if not shared:
        return None
    T_map_cam = torch.stack([pose for pose, _ in shared])
    T_cam_key = se3.inverse(scaled(torch.stack([T for _, T in shared]), scale))
    T_map_key = T_map_cam @ T_cam_key
    return Placement(scale, mean_pose(T_map_key), 0.0, len(shared))


def mean_pose(T: Tensor) -> Tensor:
    """Mean (4, 4) of poses (M, 4, 4) that nearly agree, around the one nearest to the others."""
    centre, axes = T[:, :3, 3], T[:, :3, :3].flatten(1)
    away = torch.cdist(centre, centre).sum(-1) + torch.cdist(axes, axes).sum(-1)
    nearest = T[away.argmin()].clone()
    nearest[:3, :3] = se3.orthonormalise(nearest[:3, :3])
    return nearest @ se3.exp(se3.log(se3.inverse(nearest) @ T).mean(0))


def opening(T_key_cam: Tensor) -> Placement | None:
    """The start of a submap: its first posed frame is the origin, its scale the predictor's.

    None while no frame has a pose.
    """
    for T in T_key_cam:
        if bool(T.isfinite().all()):
            return Placement(1.0, se3.inverse(T), 0.0, 0)
    return None


def held(state: MapState, prediction: WindowPrediction, T_key_cam: Tensor) -> Placement | None:
    """Where a window lies if the join of its gauge still holds; None when nothing can say."""
    if prediction.T_key_cam is None:
        return None
    join = state.join
    if join.T_map_gauge is not None and prediction.T_gauge_key is not None:
        T_map_key = join.T_map_gauge @ scaled(prediction.T_gauge_key, join.scale)
        return Placement(join.scale, T_map_key, 0.0, 0)
    return chained(prediction.indices, T_key_cam, join.scale, state.poses)

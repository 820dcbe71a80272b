"""Is a new keyframe at a place that an old one has seen; a false yes is worse than none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore
from recon4d_ros.alignment.relocalisation import match
from recon4d_ros.alignment.reprojection import SharedPoints, errors, refined
from recon4d_ros.alignment.retrieval import Places, candidates
from recon4d_ros.alignment.window_poses import consensus_pose
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, robust, se3, sim3

_CANDIDATES = 3
_MAX_ERROR_PX = 3.0
_TRIALS = 500
# Standard deviation of the log-ratio of two depths of one point: never believed to be larger, for
# then the shapes differ, nor smaller.
_MAX_DEPTH_NOISE = 0.15
_MIN_DEPTH_NOISE = 0.02
_DEPTH_WIDTH = 3.0
# Of the matches at the right place in both images this share must have the right depth too.
_SAME_SHAPE = 0.6
# Keeps a point behind a camera out of the logarithm.
_MIN_RATIO = 1e-3
_ROUNDS = 2
# Image cells, and the share of those with features in both views where matches must agree: one
# object alone, moved or one of a series, fills few of them.
_GRID = 4
_MIN_SPREAD = 0.4
# No loop is better known than this: rotation, rad, position over depth, logarithm of the scale.
_FLOOR = (0.01,) * 3 + (0.004,) * 3 + (0.01,)
# Two old keyframes that place the new one further apart than this share of the depth, and than
# half of what they would correct, contradict each other.
_AGREEMENT = 0.1


@dataclass(frozen=True, eq=False)
class Loop:
    """A place found again.

    Attributes:
        old, new: frame numbers of the keyframes.
        S_old_new: (4, 4) float64, the new camera's coordinates in the old camera's.
        information: (7, 7) of its coordinates, translations over the new keyframe's depth.
        num_inliers: matches that agree.
    """

    old: int
    new: int
    S_old_new: Tensor
    information: Tensor
    num_inliers: int


def median_depth(keyframe: Keyframe) -> float:
    """Median distance of a keyframe's points from its camera, map units."""
    offset = keyframe.points_map - keyframe.T_map_cam[:3, 3]
    return float(torch.linalg.vector_norm(offset, dim=-1).median())


def find_loops(
    new: Keyframe, store: KeyframeStore, places: Places, min_gap: int, config: AlignmentConfig
) -> tuple[Loop, ...]:
    """Loops of a new keyframe with the few old ones that resemble it most, the best first.

    Args:
        new: the keyframe, in the store.
        store: all keyframes.
        places: their words.
        min_gap: frames; keyframes nearer in time are no loop.
        config: the thresholds.
    """
    alike = candidates(new, store, places, min_gap, _CANDIDATES)
    loops = [verified(new, old, config) for old in alike]
    found = [loop for loop in loops if loop is not None]
    return tuple(sorted(found, key=lambda loop: -loop.num_inliers))


def displacement(new: Keyframe, S_map_new: Tensor) -> float:
    """How far the points of a keyframe move with it, over their depth."""
    points = se3.transform(se3.inverse(new.T_map_cam), new.points_map)
    moved = se3.transform(S_map_new, points) - new.points_map
    return float(torch.linalg.vector_norm(moved, dim=-1).median()) / median_depth(new)


def agree(new: Keyframe, S_map_new: Tensor, other: Tensor) -> bool:
    """Whether two similarities (4, 4) place a keyframe alike, as far as the first moves it."""
    points = se3.transform(se3.inverse(new.T_map_cam), new.points_map)
    apart = se3.transform(S_map_new, points) - se3.transform(other, points)
    limit = max(_AGREEMENT, 0.5 * displacement(new, S_map_new)) * median_depth(new)
    return float(torch.linalg.vector_norm(apart, dim=-1).median()) < limit


def verified(new: Keyframe, old: Keyframe, config: AlignmentConfig) -> Loop | None:
    """The loop between two keyframes, or None unless much of what both see agrees.

    Matches that agree on a pose by PnP in the new image give first guesses; errors in both images
    and in depth decide.
    """
    pairs = match(new.descriptors, old.descriptors)
    if len(pairs) < config.loop_inliers:
        return None
    rows_new, rows_old = torch.from_numpy(pairs).unbind(-1)
    points = SharedPoints(
        new=se3.transform(se3.inverse(new.T_map_cam), new.points_map[rows_new]),
        old=se3.transform(se3.inverse(old.T_map_cam), old.points_map[rows_old]),
        uv_new=new.uv[rows_new],
        uv_old=old.uv[rows_old],
        view_new=new.intrinsics,
        view_old=old.intrinsics,
        depth_noise=_MAX_DEPTH_NOISE,
    )
    needed = max(config.loop_inliers, math.ceil(config.loop_share * len(pairs)))
    guesses = _guesses(points, needed)
    if not guesses:
        return None
    guess = max(guesses, key=lambda S_old_new: int(_inliers(points, S_old_new).sum()))
    S_old_new, information, inlier = _settled(points, guess, needed)
    count = int(inlier.sum())
    if count < max(needed, _SAME_SHAPE * int(_near(points, S_old_new).sum())):
        return None
    if _spread(new, old, S_old_new, points.uv_new[inlier]) < _MIN_SPREAD:
        return None
    return Loop(old.index, new.index, S_old_new, _floored(information, new), count)


def _guesses(points: SharedPoints, least: int) -> list[Tensor]:
    """S_old_new (4, 4) by PnP with the ratio of depths, and by the points of both that PnP chose.

    Of a plane seen nearly head on PnP may find the mirrored tilt, which the depths contradict.
    """
    rows, T_new_old = consensus_pose(
        points.old.numpy(),
        points.uv_new.numpy(),
        points.view_new.K.numpy(),
        _MAX_ERROR_PX,
        _TRIALS,
    )
    if T_new_old is None or len(rows) < least:
        return []
    seen = torch.from_numpy(rows.astype(np.int64))
    new, old = points.new[seen], points.old[seen]
    S_new_old = torch.from_numpy(T_new_old)
    ratio = new[:, 2] / se3.transform(S_new_old, old)[:, 2]
    S_new_old[:3] *= robust.median(ratio.clamp(min=_MIN_RATIO))
    try:
        return [sim3.inverse(S_new_old), sim3.fit_robust(new, old).S]
    except GeometryError:
        # Points on one line fix no rotation.
        return []


def _settled(points: SharedPoints, S_old_new: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity (4, 4), its information (7, 7) and its inliers (P,) after refinement."""
    information = torch.zeros(7, 7, dtype=torch.float64)
    inlier = _inliers(points, S_old_new)
    for _ in range(_ROUNDS):
        if int(inlier.sum()) < least:
            break
        # Both depths have noise of their own; how much is seen once the scale is about right.
        ratio = errors(points, S_old_new)[2][inlier]
        noise = max(float(robust.mad_sigma(ratio)), _MIN_DEPTH_NOISE)
        points = replace(points, depth_noise=min(noise, points.depth_noise))
        S_old_new, information = refined(points.where(inlier), S_old_new)
        inlier = _inliers(points, S_old_new)
    return S_old_new, information, inlier


def _near(points: SharedPoints, S_old_new: Tensor) -> Tensor:
    """(P,) bool: in both images at the right place. NaN compares False."""
    in_old, in_new, _ = errors(points, S_old_new)
    off = torch.maximum(in_old.norm(dim=-1), in_new.norm(dim=-1))
    return off < _MAX_ERROR_PX


def _inliers(points: SharedPoints, S_old_new: Tensor) -> Tensor:
    """(P,) bool: at the right place in both images, and at the right depth."""
    depth = errors(points, S_old_new)[2]
    return _near(points, S_old_new) & (depth.abs() < _DEPTH_WIDTH * points.depth_noise)


def _spread(new: Keyframe, old: Keyframe, S_old_new: Tensor, uv: Tensor) -> float:
    """Share of the cells of the new image with features of both that hold an inlier."""
    points_old = se3.transform(se3.inverse(old.T_map_cam), old.points_map)
    seen = camera.project(se3.transform(sim3.inverse(S_old_new), points_old), new.intrinsics)
    seen = seen[camera.inside(seen, new.intrinsics.size)]
    common = _cells(seen, new) & _cells(new.uv, new)
    return len(common & _cells(uv, new)) / max(1, len(common))


def _cells(uv: Tensor, keyframe: Keyframe) -> set[tuple[int, int]]:
    height, width = keyframe.intrinsics.size
    cell = (uv * torch.tensor([_GRID / width, _GRID / height], dtype=uv.dtype)).long()
    return {(int(x), int(y)) for x, y in cell.clamp(0, _GRID - 1)}


def _floored(information: Tensor, new: Keyframe) -> Tensor:
    """Information with translations over the depth, and no better than the floor."""
    unit = torch.ones(7, dtype=torch.float64)
    unit[:3] = median_depth(new)
    scaled = information * unit * unit[:, None]
    floor = torch.tensor(_FLOOR, dtype=torch.float64).square()
    # (I^-1 + F)^-1 without inverting I, which may be singular in a poor direction.
    floored: Tensor = torch.linalg.solve(
        torch.eye(7, dtype=torch.float64) + scaled * floor, scaled
    )
    return floored

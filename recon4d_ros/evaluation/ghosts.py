"""How much of a static map is a moving surface left behind.

A map point is compared with the true surface in every frame that sees its place. It is supported
where it lies on a surface that stands still, and a ghost where it never is and lies on a moving
one in some frame: somebody walked there, and the map kept a part of them. A point that is neither
but has air before and behind it in some frame floats: wrong depth, or a ghost at a wrong depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics, PointCloud
from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.trajectory import fit_similarity, interpolate
from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.ply import read_ply
from recon4d_ros.storage.trajectory import read_trajectory

# Depth difference, over the depth, up to which a point lies on a surface.
TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class TrueView:
    """What is truly seen in one frame.

    Attributes:
        T_world_cam: (4, 4) float64.
        intrinsics: of the images.
        depth: (H, W) z-depth, NaN where unknown.
        moving: (H, W) bool.
    """

    T_world_cam: Tensor
    intrinsics: Intrinsics
    depth: Tensor
    moving: Tensor


@dataclass(frozen=True)
class GhostReport:
    """Shares of the points of a map.

    Attributes:
        ghosts: on a moving surface in some frame, on a static one in none.
        floating: on neither in any frame, before a surface in some.
        num_points: points of the map.
    """

    ghosts: float
    floating: float
    num_points: int


def evaluate_ghosts(
    points_world: Tensor, views: Iterable[TrueView], tolerance: float = TOLERANCE
) -> GhostReport:
    """Judge map points by true views.

    Args:
        points_world: (P, 3) in the world and the unit of the truth.
        views: true frames.
        tolerance: depth difference over the depth within which a point lies on a surface.

    Raises:
        EvaluationError: there is no point.
    """
    if len(points_world) == 0:
        raise EvaluationError("the static map holds no point; expected some to judge")
    static, moving, before = (torch.zeros(len(points_world), dtype=torch.bool) for _ in range(3))
    for view in views:
        points = se3.transform(se3.inverse(view.T_world_cam), points_world.double())
        uv = camera.project(points, view.intrinsics)
        seen = torch.stack([view.depth.double(), view.moving.double()], dim=-1)
        depth, moves = pointmap.sample_nearest(seen, uv).unbind(-1)
        beyond = points[:, 2] / depth - 1  # NaN where nothing is known, which compares as false
        on_surface = beyond.abs() < tolerance
        static |= on_surface & (moves == 0)
        moving |= on_surface & (moves == 1)
        before |= beyond < -tolerance
    ghosts, floating = moving & ~static, before & ~static & ~moving
    count = len(points_world)
    return GhostReport(float(ghosts.sum()) / count, float(floating.sum()) / count, count)


def evaluate_map(run_dir: Path, sequence_dir: Path, tolerance: float = TOLERANCE) -> GhostReport:
    """Judge the `map.ply` of a run, moved onto the truth by the trajectory.

    Raises:
        SourceError: a file is missing or malformed.
        EvaluationError: the sequence lacks poses, depth, masks or a camera; or the map is empty.
    """
    sequence = SequenceFolder(sequence_dir)
    cloud = read_ply(run_dir / "map.ply")
    return evaluate_ghosts(_in_world(cloud, run_dir, sequence), _views(sequence), tolerance)


def _in_world(cloud: PointCloud, run_dir: Path, sequence: SequenceFolder) -> Tensor:
    truth = sequence.truth.trajectory()
    if truth is None:
        raise EvaluationError(f"{sequence.path} has no groundtruth.txt; expected true poses")
    pairs = interpolate(truth, read_trajectory(run_dir / "trajectory.tum"))
    found = fit_similarity(pairs.estimate[:, :3, 3], pairs.truth[:, :3, 3])
    rotation, translation = torch.from_numpy(found.rotation), torch.from_numpy(found.translation)
    return found.scale * cloud.points.double() @ rotation.T + translation


def _views(sequence: SequenceFolder) -> Iterator[TrueView]:
    truth = sequence.truth
    poses = truth.trajectory()
    if poses is None or sequence.camera is None or not truth.has_depth or not truth.has_masks:
        raise EvaluationError(
            f"{sequence.path} has no complete truth; ghosts need poses, depth, masks and a camera"
        )
    by_stamp = dict(zip(poses.stamps_ns.tolist(), poses.T_world_cam, strict=True))
    for entry in sequence.entries:
        depth, moving = truth.depth(entry.stamp_ns), truth.mask(entry.stamp_ns)
        T = by_stamp.get(entry.stamp_ns)
        if depth is not None and moving is not None and T is not None:
            yield TrueView(T, sequence.camera.intrinsics, depth, moving)

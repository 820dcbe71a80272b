"""What one directed pair of frames says: pose, depth, scale, flow and matching of its source.

All maps of a pair lie on the pixels of the source frame, in the camera of the target frame. The
unit of a network's points is its own in every call; the depth that is known of the target frame
gives it away, since the matching pointmap tells where each point lies in the target's image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.datatypes import FlowField, Intrinsics, Matching
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.geometry.camera import inside, pixel_grid, project
from recon4d_ros.geometry.displacement import displacement
from recon4d_ros.networks.pomato import Pointmap
from recon4d_ros.predictors.pomato.pose import PoseFit, fit_pose

# A pixel is trusted from this share of the median confidence on (what exceeds 1 counts).
_TRUSTED_SHARE = 0.3
# Still for the pose: displaced by no more than this many times the median one, or than the floor.
_STILL = 3.0
_FLOOR = 0.0005
# Pairs of depths that a scale must rest on.
_MIN_SCALE_PIXELS = 100
# A matched point that lies this much behind the target's surface is hidden there.
_HIDDEN_BEHIND = 0.05


@dataclass(frozen=True, eq=False)
class RawEdge:
    """What the heads say of a pair, on the CPU in the unit of the call.

    Attributes:
        source: frame whose pixels the maps lie on.
        target: frame in whose camera they are.
        now: points at the time of the source (head 2).
        then: the same surface points at the time of the target (head 3); None if not evaluated.
        num_padding: frames repeated to fill the window of the call.
    """

    source: int
    target: int
    now: Pointmap
    then: Pointmap | None
    num_padding: int = 0

    @staticmethod
    def of_batch(
        sources: Sequence[int],
        targets: Sequence[int],
        now: Pointmap,
        then: Pointmap | None,
        num_padding: int = 0,
    ) -> list[RawEdge]:
        """One pair for each row of batched maps."""
        rows = range(len(sources))
        later = [None if then is None else Pointmap(then.points[r], then.conf[r]) for r in rows]
        return [
            RawEdge(source, target, Pointmap(now.points[r], now.conf[r]), later[r], num_padding)
            for r, source, target in zip(rows, sources, targets, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Reading:
    """What follows from a pair, in the unit of the target's depth.

    Attributes:
        raw: the maps.
        scale: units of the target's depth per unit of the maps.
        pose: pose of the source camera in the target camera.
        depth: (H, W) float32 z-depth of the source; NaN where unknown or without a pose.
        overlap: share of the source's pixels that lie in the target's image.
        flow: from source to target, None if head 3 was not evaluated.
        matching: likewise.
    """

    raw: RawEdge
    scale: float
    pose: PoseFit
    depth: Tensor
    overlap: float
    flow: FlowField | None
    matching: Matching | None

    def scaled(self, factor: float) -> Reading:
        """The same with lengths in another unit."""
        T = self.pose.T_points_cam
        if T is not None:
            T = T.clone()
            T[:3, 3] *= factor
        return replace(
            self,
            scale=self.scale * factor,
            pose=replace(self.pose, T_points_cam=T),
            depth=self.depth * factor,
            matching=_matching(self.raw, self.scale * factor),
        )


def read_edge(raw: RawEdge, camera: Intrinsics, target_depth: Tensor) -> Reading:
    """Pose, depth and correspondence of a pair; the pose is missing where no scale can be found.

    Args:
        raw: what the heads say.
        camera: intrinsics of the grid.
        target_depth: (H, W) known z-depth of the target, NaN where unknown; its unit is taken.
    """
    trusted = trusted_pixels(raw.now)
    seen = raw.now.points if raw.then is None else raw.then.points
    scale = relative_scale(seen, trusted, camera, target_depth)
    points = raw.now.points * scale
    pose = fit_pose(points, trusted & _still(raw), camera)
    depth = torch.full_like(points[..., 2], torch.nan)
    if pose.T_points_cam is not None:
        T = se3.inverse(pose.T_points_cam).to(points)
        depth = pointmap.to_depth(pointmap.transform(T, points))
    reached = inside(project(points, camera), camera.size)
    overlap = float((reached & trusted).sum() / trusted.sum().clamp(min=1))
    flow = None if raw.then is None else matching_flow(raw, scale, camera, target_depth)
    return Reading(raw, scale, pose, depth, overlap, flow, _matching(raw, scale))


def trusted_pixels(found: Pointmap) -> Tensor:
    """(H, W) bool: finite, and not much less confident than the rest of the map."""
    points, conf = found
    finite = points.isfinite().all(dim=-1) & conf.isfinite()
    if not bool(finite.any()):
        return finite
    median = conf[finite].median()
    return finite & (conf - 1.0 >= _TRUSTED_SHARE * (median - 1.0))


def relative_scale(points: Tensor, use: Tensor, camera: Intrinsics, target_depth: Tensor) -> float:
    """Units of a known depth per unit of points (H, W, 3) seen in the same camera.

    Median over pixels of the ratio of the depth where a point projects to its own; NaN when too
    few points meet a known depth.
    """
    chosen = points[use]
    known = pointmap.sample_nearest(target_depth.unsqueeze(-1), project(chosen, camera))[:, 0]
    ratio = known / chosen[:, 2]
    ratio = ratio[ratio.isfinite() & (ratio > 0)]
    return float(ratio.median()) if len(ratio) >= _MIN_SCALE_PIXELS else torch.nan


def matching_flow(
    raw: RawEdge, scale: float, camera: Intrinsics, target_depth: Tensor
) -> FlowField:
    """Flow from the source to the target, by projecting the matched points.

    Invalid, and zero, where the point is behind the camera, outside the image, hidden behind the
    target's surface or not trusted.
    """
    assert raw.then is not None
    uv = project(raw.then.points, camera)
    flow = uv - pixel_grid(camera.size)
    known = pointmap.sample_nearest(target_depth.unsqueeze(-1), uv.flatten(0, 1))
    known = known.reshape(camera.size)
    hidden = scale * raw.then.points[..., 2] > (1.0 + _HIDDEN_BEHIND) * known
    valid = inside(uv, camera.size) & ~hidden & trusted_pixels(raw.then)
    flow = torch.where(valid.unsqueeze(-1), flow, 0.0)
    return FlowField(raw.source, raw.target, flow.contiguous(), valid)


def _still(raw: RawEdge) -> Tensor:
    """(H, W) bool: not displaced visibly between the two times; all without head 3."""
    if raw.then is None:
        return torch.ones_like(raw.now.conf, dtype=torch.bool)
    return displacement(raw.now.points, raw.then.points, _FLOOR).excess(_STILL) <= 1.0


def _matching(raw: RawEdge, scale: float) -> Matching | None:
    if raw.then is None:
        return None
    unit = scale if scale > 0 else 1.0
    conf = torch.minimum(raw.now.conf, raw.then.conf)
    points, matching = raw.now.points * unit, raw.then.points * unit
    return Matching(raw.source, raw.target, points, matching, conf)

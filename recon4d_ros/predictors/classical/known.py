"""What the classical predictor keeps of its frames, and the maps it makes of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import FlowField, Tracks, Window
from recon4d_ros.geometry.image_grid import Size, resize_uv
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.depth import InverseDepth, Rays
from recon4d_ros.predictors.classical.odometry import Odometry
from recon4d_ros.predictors.classical.pose import Tracked

# Mobility of points that agree with the camera's motion, and of those not judged yet.
_STATIC, _UNKNOWN = 0.0, 0.3

Fields = tuple[FlowField, ...]


@dataclass(frozen=True, eq=False)
class Gauge:
    """What lasts until the odometry starts anew.

    Attributes:
        number: of the gauge.
        start: its first frame.
        odometry: whose world is the gauge.
    """

    number: int
    start: int
    odometry: Odometry


@dataclass(frozen=True, eq=False)
class Known:
    """What is kept of a frame while it can still be in a window.

    Attributes:
        gauge, gauge_after: the frame was tracked in, and that of the next one.
        flowing: its flow, while that is being computed; None for a frame without depth.
        fields, depth: empty until `densify`.
    """

    gauge: Gauge
    gauge_after: Gauge
    stamp_ns: int
    tracked: Tracked
    flowing: Future[Fields] | None
    fields: Fields
    depth: InverseDepth
    is_final: bool = False

    @property
    def is_dense(self) -> bool:
        """Depth is or was wanted."""
        return self.flowing is not None


def dense_maps(
    known: Sequence[Known],
    has_depth: Sequence[bool],
    T_key_cam: Tensor,
    rays: Rays,
    max_relative_sigma: float,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """T pointmaps (H, W, 3) in the key camera and confidence (T, H, W) of a window.

    NaN and 0 where `has_depth` is not: live, most frames of a window have no depth, and looking
    for that takes longer than the rest. Such a pointmap is one number, seen as an image.
    """
    size = known[0].depth.rho.shape
    confidence = torch.zeros((len(known), *size))
    points = [torch.tensor(torch.nan).expand(*size, 3)] * len(known)
    for row, (entry, T) in enumerate(zip(known, T_key_cam.float(), strict=True)):
        if has_depth[row]:
            depth = torch.from_numpy(entry.depth.depth(max_relative_sigma))
            flat = rays.directions @ T[:3, :3].mT
            points[row] = flat.mul_(depth.view(-1, 1)).add_(T[:3, 3]).view(*size, 3)
            confidence[row] = torch.from_numpy(entry.depth.confidence(max_relative_sigma))
    return tuple(points), confidence


def relative_baseline(odometry: Odometry, frames: Sequence[int], index: int) -> float:
    """Longest way from earlier frames to the newest, over the typical depth seen in one.

    Infinite when there is no earlier one.
    """
    poses = np.stack([odometry.poses[frame] for frame in frames if frame in odometry.poses])
    centres = rigid.inverse(poses)[:, :3, 3]
    if len(centres) < 2:
        return math.inf
    depths = odometry.sparse_depth(index)
    typical = float(np.median(depths)) if len(depths) else 1.0
    return float(np.linalg.norm(centres[:-1] - centres[-1], axis=1).max()) / typical


def own_tracks(odometry: Odometry, window: Window, size: Size) -> Tracks:
    """Points that the odometry follows in images of a size; static where their depth is known."""
    ids, uv, is_sure = odometry.tracks(window.indices)
    px = resize_uv(torch.from_numpy(uv), size, window.frames[0].size).float()
    seen = px[..., 0].isfinite()
    mobility = torch.where(torch.from_numpy(is_sure), _STATIC, _UNKNOWN).expand(seen.shape)
    return Tracks(torch.from_numpy(ids), px, seen.float(), mobility)


def flows_inside(window: Window, known: Sequence[Known]) -> Fields:
    """The flow between frames of a window."""
    inside = set(window.indices)
    fields = (field for entry in known for field in entry.fields)
    return tuple(field for field in fields if {field.source, field.target} <= inside)

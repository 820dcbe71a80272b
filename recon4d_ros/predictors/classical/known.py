"""What the classical predictor keeps of its frames, and the maps it makes of that."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import FlowField, Window
from recon4d_ros.predictors.classical.depth import InverseDepth, Rays
from recon4d_ros.predictors.classical.odometry import Odometry
from recon4d_ros.predictors.classical.pose import Tracked

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


def points_key(depth: Tensor, T_key_cam: Tensor, rays: Rays, has_depth: Sequence[bool]) -> Tensor:
    """Pointmaps (T, H, W, 3) in the key camera of depths (T, H, W), NaN where `has_depth` is not.

    Live, most frames of a window have no depth, and looking for that takes longer than the rest.
    """
    points = torch.full((*depth.shape, 3), torch.nan)
    for row, T in enumerate(T_key_cam.float()):
        if has_depth[row]:
            flat = points[row].view(-1, 3)
            torch.mm(rays.directions, T[:3, :3].mT, out=flat)
            flat.mul_(depth[row].view(-1, 1)).add_(T[:3, 3])
    return points


def dense_maps(
    known: Sequence[Known], has_depth: Sequence[bool], max_relative_sigma: float
) -> tuple[Tensor, Tensor]:
    """Depth and confidence (T, H, W), NaN and 0 where `has_depth` is not."""
    shape = (len(known), *known[0].depth.rho.shape)
    depth, confidence = np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)
    for row, entry in enumerate(known):
        if has_depth[row]:
            depth[row] = entry.depth.depth(max_relative_sigma)
            confidence[row] = entry.depth.confidence(max_relative_sigma)
    return torch.from_numpy(depth), torch.from_numpy(confidence)


def flows_inside(window: Window, known: Sequence[Known]) -> Fields:
    """The flow between frames of a window."""
    inside = set(window.indices)
    fields = (field for entry in known for field in entry.fields)
    return tuple(field for field in fields if {field.source, field.target} <= inside)

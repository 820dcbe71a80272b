"""Points of one frame in map coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.datatypes import PointCloud, Reconstruction
from recon4d_ros.geometry import image_grid, pointmap


@dataclass(frozen=True, eq=False)
class FramePoints:
    """One coloured point per pixel of the dense grid.

    Attributes:
        points: (H, W, 3) float32 in map coordinates; NaN without depth or without a pose.
        rgb: (H, W, 3) uint8.
        confidence: (H, W) float32.
        dynamic: (H, W) bool, the surface moves in the world.
    """

    points: Tensor
    rgb: Tensor
    confidence: Tensor
    dynamic: Tensor

    @property
    def valid(self) -> Tensor:
        """(H, W) bool, the point is known."""
        return torch.isfinite(self.points).all(dim=-1)

    def select(self, mask: Tensor) -> PointCloud:
        """The known points of a mask (H, W), each observed once."""
        chosen = mask & self.valid
        return PointCloud(
            points=self.points[chosen],
            rgb=self.rgb[chosen],
            confidence=self.confidence[chosen],
            num_observations=torch.ones(int(chosen.sum()), dtype=torch.int32),
        )


def frame_points(reconstruction: Reconstruction) -> FramePoints:
    """All pixels of a frame as organised points; without a pose all of them are unknown."""
    depth = reconstruction.depth
    points = pointmap.from_depth(depth, reconstruction.intrinsics)
    if reconstruction.T_map_cam is None:
        points = torch.full_like(points, torch.nan)
    else:
        points = pointmap.transform(reconstruction.T_map_cam.float(), points)
    return FramePoints(
        points=points,
        rgb=image_grid.resize_image(reconstruction.frame.rgb, (depth.shape[0], depth.shape[1])),
        confidence=reconstruction.confidence,
        dynamic=reconstruction.dynamic_mask,
    )


def dynamic_points(reconstruction: Reconstruction) -> PointCloud:
    """The moving points of a frame, at depths borrowed from their surroundings where filled."""
    points = frame_points(reconstruction)
    return points.select(points.dynamic)

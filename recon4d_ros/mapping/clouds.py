"""Points of one frame in map coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.datatypes import PointCloud, Reconstruction
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import camera, image_grid, se3


def frame_points(reconstruction: Reconstruction, mask: Tensor) -> PointCloud:
    """The pixels of a mask that have a depth, each observed once.

    With `dynamic_mask` these are the moving points of the frame, at depths borrowed from their
    surroundings where `filled`.

    Args:
        reconstruction: a frame with a pose.
        mask: (H, W) bool on the dense grid.

    Raises:
        AlignmentError: the frame has no pose.
    """
    if reconstruction.T_map_cam is None:
        raise AlignmentError(
            f"frame {reconstruction.frame.index} has no pose; expected one to place its points; "
            "leave out frames whose T_map_cam is None"
        )
    depth = reconstruction.depth
    rows, columns = (mask & torch.isfinite(depth)).nonzero(as_tuple=True)
    uv = torch.stack([columns, rows], dim=-1).float()
    points = camera.unproject(uv, depth[rows, columns], reconstruction.intrinsics)
    rgb = image_grid.resize_image(reconstruction.frame.rgb, (depth.shape[0], depth.shape[1]))
    return PointCloud(
        points=se3.transform(reconstruction.T_map_cam.float(), points),
        rgb=rgb[rows, columns],
        confidence=reconstruction.confidence[rows, columns],
        num_observations=torch.ones(len(rows), dtype=torch.int32),
    )

"""Lifting 2D tracks into space by a frame's depth and pose."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics, Reconstruction, Tracks
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, image_grid, pointmap, se3
from recon4d_ros.refinement.track_history import Sights
from recon4d_ros.refinement.trajectory_smoothing import MOVING

# The four pixels around a track may differ by this share of the nearest depth.
_EDGE_RATIO = 0.1


def lift(uv: Tensor, depth: Tensor, intrinsics: Intrinsics, T_map_cam: Tensor) -> Tensor:
    """Points (N, 3) float64 in the map of pixels (N, 2), NaN where the depth is unknown.

    So it is at outlines: a track there would jump between two surfaces from frame to frame.

    Args:
        uv: px of the depth image, NaN where not tracked.
        depth: (H, W) z-depth, NaN where unknown.
        intrinsics: of the depth image.
        T_map_cam: (4, 4) pose.
    """
    z = pointmap.sample_depth(depth, uv.to(depth), _EDGE_RATIO, at_edges=False).double()
    known = z.isfinite()
    points = torch.full((len(uv), 3), torch.nan, dtype=torch.float64)
    points_cam = camera.unproject(uv[known].double(), z[known], intrinsics)
    points[known] = se3.transform(T_map_cam.double(), points_cam)
    return points


def lift_tracks(
    tracks: Tracks | None, reconstruction: Reconstruction, min_visibility: float
) -> Sights:
    """The tracks of a frame in the map; points without a depth of their own are NaN.

    A track moves in the world if its mobility or the dynamic mask says so.

    Args:
        tracks: of this frame (T = 1), px of the frame's own size; None: there are none.
        reconstruction: gives depth, pose and mask.
        min_visibility: a track less visible is not lifted.

    Raises:
        GeometryError: the tracks are those of several frames.
    """
    if tracks is None:
        return Sights.none()
    if len(tracks.uv) != 1:
        raise GeometryError(
            f"tracks over {len(tracks.uv)} frames came for frame {reconstruction.frame.index}; "
            "expected those of one frame (T = 1)"
        )
    ids, order = tracks.ids.sort()
    if reconstruction.T_map_cam is None or not reconstruction.is_dense:
        return _unlifted(ids, tracks.mobility[0, order])
    uv = image_grid.resize_uv(
        tracks.uv[0, order].double(), reconstruction.frame.size, reconstruction.intrinsics.size
    )
    uv[tracks.visibility[0, order] < min_visibility] = torch.nan
    # Borrowed depth says nothing about the surface that is tracked.
    own = torch.where(reconstruction.filled, torch.nan, reconstruction.depth)
    points = lift(uv, own, reconstruction.intrinsics, reconstruction.T_map_cam)
    mobility = tracks.mobility[0, order]
    masked = _on(reconstruction.dynamic_mask, uv)
    moving = (mobility >= MOVING) | masked
    is_lifted = bool(points[:, 0].isfinite().any())
    return Sights(ids, points, mobility, moving, masked, float(own.nanmedian()), is_lifted)


def _unlifted(ids: Tensor, mobility: Tensor) -> Sights:
    """Tracks of a frame without pose or depth: they are carried on, but have no place."""
    points = torch.full((len(ids), 3), torch.nan, dtype=torch.float64)
    moving = mobility >= MOVING
    return Sights(ids, points, mobility, moving, moving, torch.nan, is_lifted=False)


def _on(mask: Tensor, uv: Tensor) -> Tensor:
    """(N,) bool: the pixel nearest to uv (N, 2) is set; False outside."""
    return pointmap.sample_nearest(mask.to(uv).unsqueeze(-1), uv).squeeze(-1) == 1.0

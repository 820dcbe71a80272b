"""Pointmaps: one 3D point per pixel, NaN where unknown; and sampling of dense maps at pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3
from recon4d_ros.geometry.camera import Camera, directions, inside, pixel_grid
from recon4d_ros.geometry.checks import check_shape


def from_depth(depth: Tensor, camera: Camera) -> Tensor:
    """Pointmap (..., H, W, 3) in the camera frame of z-depth (..., H, W).

    Raises:
        GeometryError: wrong shape or an unusable K.
    """
    check_shape(depth, "depth", -1, -1)
    size = (depth.shape[-2], depth.shape[-1])
    rays = directions(pixel_grid(size, depth.dtype, depth.device), camera)
    return rays * depth.unsqueeze(-1)


def to_depth(points_cam: Tensor) -> Tensor:
    """z-depth (..., H, W) of a pointmap in its own camera; NaN where the point is not in front."""
    check_shape(points_cam, "points_cam", -1, -1, 3)
    z = points_cam[..., 2]
    return torch.where(z > 0, z, torch.full_like(z, torch.nan))


def depth_towards(points_cam: Tensor, displacement_cam: Tensor, max_change: float) -> Tensor:
    """z-depth (..., H, W) whose points are nearest to displaced ones; NaN where either is unknown.

    With pose and intrinsics fixed, a pixel's point moves along its ray alone, so the least squares
    version of C4D's second stage (depth against smoothed points) has a solution in closed form.

    A point X = d r on its ray r is wanted at X + D. The squared distance is least at the depth
    r . (X + D) / (r . r), which is d (1 + X . D / (X . X)). What D does sideways, depth cannot
    follow.

    Args:
        points_cam: (..., H, W, 3) in the camera's frame.
        displacement_cam: (..., H, W, 3) in the same.
        max_change: depth stays within the factors 1 / (1 + max_change) and 1 + max_change.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points_cam, "points_cam", -1, -1, 3)
    check_shape(displacement_cam, "displacement_cam", *points_cam.shape)
    x, y, z = points_cam.unbind(dim=-1)
    dx, dy, dz = displacement_cam.unbind(dim=-1)
    factor = 1.0 + (x * dx + y * dy + z * dz) / (x * x + y * y + z * z)
    return z * factor.clamp(1.0 / (1.0 + max_change), 1.0 + max_change)


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Pointmaps (..., H, W, 3) moved by SE(3) or Sim(3) matrices (..., 4, 4), one per map.

    Raises:
        GeometryError: wrong shapes or a matrix that is not finite.
    """
    check_shape(points, "points", -1, -1, 3)
    if T.ndim == 2:
        return se3.transform(T, points)
    return se3.transform(T[..., None, None, :, :], points)


def sample_nearest(dense: Tensor, uv: Tensor) -> Tensor:
    """Values (P, C) of a map (H, W, C) at the pixels nearest to uv (P, 2).

    Outside the image, or where uv is NaN, the values are NaN.

    Raises:
        GeometryError: wrong shapes.
    """
    _check_sampling(dense, uv)
    size = (dense.shape[0], dense.shape[1])
    rounded = torch.floor(uv + 0.5)
    known = inside(rounded, size)
    x, y = torch.where(known.unsqueeze(-1), rounded, torch.zeros_like(rounded)).long().unbind(-1)
    values = dense[y, x]
    return torch.where(known.unsqueeze(-1), values, torch.full_like(values, torch.nan))


def sample_bilinear(dense: Tensor, uv: Tensor) -> Tensor:
    """Values (P, C) of a map (H, W, C) at uv (P, 2), bilinear; differentiable in both.

    Outside the border centres, or where uv or one of the four neighbours is NaN, they are NaN.

    Raises:
        GeometryError: wrong shapes.
    """
    _check_sampling(dense, uv)
    corners, fraction, known = _neighbours(dense, uv)
    fx, fy = fraction[:, :1], fraction[:, 1:]
    top = corners[0] * (1 - fx) + corners[1] * fx
    bottom = corners[2] * (1 - fx) + corners[3] * fx
    values = top * (1 - fy) + bottom * fy
    return torch.where(known.unsqueeze(-1), values, torch.full_like(values, torch.nan))


def sample_depth(
    depth: Tensor, uv: Tensor, edge_ratio: float = 0.05, *, at_edges: bool = True
) -> Tensor:
    """Depth (P,) of a map (H, W) at uv (P, 2), bilinear only where the surface is smooth.

    Where the four neighbours differ by more than `edge_ratio` of their smallest, or one of them
    is unknown, the nearest pixel decides, so that foreground and background never mix; or, unless
    `at_edges`, the depth is NaN, since either surface may be meant.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(depth, "depth", -1, -1)
    dense = depth.unsqueeze(-1)
    _check_sampling(dense, uv)
    corners, _, known = _neighbours(dense, uv)
    lowest, highest = corners.amin(dim=0).squeeze(-1), corners.amax(dim=0).squeeze(-1)
    smooth = known & (highest - lowest <= edge_ratio * lowest)
    bilinear = sample_bilinear(dense, uv).squeeze(-1)
    otherwise = sample_nearest(dense, uv).squeeze(-1) if at_edges else torch.nan
    return torch.where(smooth, bilinear, otherwise)


def _check_sampling(dense: Tensor, uv: Tensor) -> None:
    check_shape(dense, "dense", -1, -1, -1)
    check_shape(uv, "uv", -1, 2)
    if dense.ndim != 3 or uv.ndim != 2:
        raise GeometryError(
            f"dense {tuple(dense.shape)} and uv {tuple(uv.shape)}: expected (H, W, C) and (P, 2)"
        )


def _neighbours(dense: Tensor, uv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four corner values (4, P, C), fractions (P, 2) and whether uv lies inside (P,)."""
    height, width = dense.shape[0], dense.shape[1]
    known = inside(uv, (height, width))
    safe = torch.where(known.unsqueeze(-1), uv, torch.zeros_like(uv))
    floor = torch.floor(safe)
    x, y = floor.long().unbind(-1)
    right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    corners = torch.stack([dense[y, x], dense[y, right], dense[below, x], dense[below, right]])
    return corners, safe - floor, known

"""The pinhole camera: project and unproject.

Convention: optical frame (x right, y down, z forward), pixel (0, 0) is the centre of the top-left
pixel, depth is z and not the length of the ray.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry.checks import check_finite, check_shape

Camera = Intrinsics | Tensor

_WEISZFELD_STEPS = 11
_LEAST_RESIDUAL_PX = 1e-8


def camera_matrix(camera: Camera, like: Tensor) -> Tensor:
    """Camera matrix (..., 3, 3) with the type and device of `like`.

    Args:
        camera: intrinsics, or K (..., 3, 3) in pixels.
        like: any floating tensor.

    Raises:
        GeometryError: K has the wrong shape, is not finite or has no positive focal length.
    """
    K = camera.K if isinstance(camera, Intrinsics) else camera
    check_shape(K, "K", 3, 3)
    check_finite(K, "K")
    if not bool((torch.diagonal(K, dim1=-2, dim2=-1) > 0).all()):
        raise GeometryError("K has a focal length that is not above zero; K[0, 0] == 0 is unknown")
    return K.to(like)


def project(points_cam: Tensor, camera: Camera) -> Tensor:
    """Pixels (..., 2) of points (..., 3) in the camera frame.

    A point at or behind the camera has no pixel and becomes NaN, as does an unknown (NaN) point.
    A batched K must carry the axes of the points before the last, for example (B, 1, 3, 3).

    Raises:
        GeometryError: wrong shapes or an unusable K.
    """
    check_shape(points_cam, "points_cam", 3)
    K = camera_matrix(camera, points_cam)
    z = points_cam[..., 2:]
    in_front = z > 0
    # Dividing by a harmless 1 behind the camera keeps the gradient of the other points finite.
    normalised = points_cam / torch.where(in_front, z, torch.ones_like(z))
    uv = (K[..., :2, :] @ normalised.unsqueeze(-1)).squeeze(-1)
    return torch.where(in_front, uv, torch.full_like(uv, torch.nan))


def unproject(uv: Tensor, depth: Tensor, camera: Camera) -> Tensor:
    """Points (..., 3) in the camera frame of pixels (..., 2) with z-depth (...).

    NaN depth gives NaN points.

    Raises:
        GeometryError: wrong shapes or an unusable K.
    """
    check_shape(uv, "uv", 2)
    if not depth.is_floating_point() or uv.shape[:-1] != depth.shape:
        raise GeometryError(
            f"depth has shape {tuple(depth.shape)} and type {depth.dtype}; "
            f"expected floats of shape {tuple(uv.shape[:-1])}, one per pixel"
        )
    return directions(uv, camera) * depth.unsqueeze(-1)


def directions(uv: Tensor, camera: Camera) -> Tensor:
    """Viewing directions (..., 3) of pixels (..., 2), scaled to z = 1.

    Raises:
        GeometryError: wrong shapes or an unusable K.
    """
    check_shape(uv, "uv", 2)
    K = camera_matrix(camera, uv)
    y = (uv[..., 1] - K[..., 1, 2]) / K[..., 1, 1]
    x = (uv[..., 0] - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def pixel_grid(
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pixel coordinates (H, W, 2), x then y, of a map of `size` = (height, width)."""
    height, width = size
    x = torch.arange(width, dtype=dtype, device=device)
    y = torch.arange(height, dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def inside(uv: Tensor, size: tuple[int, int]) -> Tensor:
    """True (...) where pixels (..., 2) lie between the centres of the border pixels."""
    height, width = size
    x, y = uv.unbind(-1)
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def weiszfeld_focal(pixel: Tensor, slope: Tensor, weight: Tensor) -> Tensor:
    """Focal lengths f (...), px, that minimise sum_i w_i ||p_i - f s_i||.

    By reweighted least squares. Source: Weiszfeld, 1937; as used in DUSt3R, arXiv 2312.14132,
    section 3.3.

    Args:
        pixel: (..., P, 2) p, px from the principal point; may have fewer axes.
        slope: (..., P, 2) s = (x, y) / z of the points seen there.
        weight: (..., P) w >= 0; 0 everywhere gives 0.
    """
    across, along = (pixel * slope).sum(dim=-1), (slope * slope).sum(dim=-1)
    tiny = torch.finfo(across.dtype).tiny
    share, focal = weight, across.new_zeros(across.shape[:-1])
    for _ in range(_WEISZFELD_STEPS):
        focal = (share * across).sum(dim=-1) / (share * along).sum(dim=-1).clamp(min=tiny)
        residual = torch.linalg.vector_norm(pixel - focal[..., None, None] * slope, dim=-1)
        share = weight / residual.clamp(min=_LEAST_RESIDUAL_PX)
    return focal

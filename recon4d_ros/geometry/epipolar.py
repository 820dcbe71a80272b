"""Two-view geometry.

Convention: view a is the source and view b the target, T_b_a maps camera a to camera b, and
x_b^T F x_a = 0 for a static point. Pixels are (..., 2), squared errors are px^2.
Source: Hartley and Zisserman, Multiple View Geometry, chapters 9 to 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.geometry.camera import Camera, camera_matrix, pixel_grid, project
from recon4d_ros.geometry.checks import check_finite, check_shape, check_transform


def essential(T_b_a: Tensor) -> Tensor:
    """Essential matrix (..., 3, 3) of a relative pose: [t]x R.

    Raises:
        GeometryError: not a transform, or no translation, so that none exists.
    """
    check_transform(T_b_a, "T_b_a")
    translation = T_b_a[..., :3, 3]
    if not bool((torch.linalg.vector_norm(translation, dim=-1) > 0).all()):
        raise GeometryError(
            "T_b_a has no translation; two views from one centre have no epipolar geometry, "
            "use rotation_homography instead"
        )
    E: Tensor = se3.skew(translation) @ T_b_a[..., :3, :3]
    return E


def fundamental(T_b_a: Tensor, camera_a: Camera, camera_b: Camera) -> Tensor:
    """Fundamental matrix (..., 3, 3): K_b^-T E K_a^-1.

    Raises:
        GeometryError: as `essential`, or an unusable K.
    """
    K_a, K_b = camera_matrix(camera_a, T_b_a), camera_matrix(camera_b, T_b_a)
    F: Tensor = torch.linalg.inv(K_b).mT @ essential(T_b_a) @ torch.linalg.inv(K_a)
    return F


def sampson(F: Tensor, uv_a: Tensor, uv_b: Tensor) -> Tensor:
    """Squared Sampson error (...) of correspondences, px^2.

    (x_b^T F x_a)^2 over the sum of the squared first two components of F x_a and of F^T x_b; it
    is the first-order squared distance to the nearest pair that fits F. NaN pixels give NaN.

    Args:
        F: (3, 3), or (..., 3, 3) with the batch axes of the pixels: (E, 3, 3) for (E, P, 2).
        uv_a: (..., P, 2) pixels of the source view.
        uv_b: (..., P, 2) pixels of the target view.

    Raises:
        GeometryError: wrong shapes or F is not finite.
    """
    check_shape(F, "F", 3, 3)
    check_finite(F, "F")
    line_b = homogeneous(uv_a) @ F.mT
    line_a = homogeneous(uv_b) @ F
    value = (homogeneous(uv_b) * line_b).sum(dim=-1)
    gradient = line_b[..., :2].square().sum(dim=-1) + line_a[..., :2].square().sum(dim=-1)
    return value.square() / gradient.clamp(min=torch.finfo(gradient.dtype).tiny)


def epipoles(F: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous epipoles (..., 3) in view a (F e = 0) and in view b (F^T e = 0), unit length.

    Raises:
        GeometryError: wrong shape or not finite.
    """
    check_shape(F, "F", 3, 3)
    check_finite(F, "F")
    U, _, Vh = torch.linalg.svd(F)
    return Vh[..., 2, :], U[..., :, 2]


def rotation_homography(R_b_a: Tensor, camera_a: Camera, camera_b: Camera) -> Tensor:
    """Homography (..., 3, 3) K_b R K_a^-1 of a camera that turned, or of points at infinity."""
    K_a, K_b = camera_matrix(camera_a, R_b_a), camera_matrix(camera_b, R_b_a)
    H: Tensor = K_b @ R_b_a @ torch.linalg.inv(K_a)
    return H


def plane_homography(
    T_b_a: Tensor, normal_a: Tensor, distance: Tensor | float, camera_a: Camera, camera_b: Camera
) -> Tensor:
    """Homography (..., 3, 3) of the plane normal_a . p = distance, in the frame of camera a.

    Raises:
        GeometryError: wrong shapes or an unusable K.
    """
    check_transform(T_b_a, "T_b_a")
    check_shape(normal_a, "normal_a", 3)
    scaled = normal_a / torch.as_tensor(distance).to(normal_a)[..., None]
    check_finite(scaled, "normal_a / distance")
    inner = T_b_a[..., :3, :3] + T_b_a[..., :3, 3:] @ scaled.unsqueeze(-2)
    return rotation_homography(inner, camera_a, camera_b)


def transfer(H: Tensor, uv: Tensor) -> Tensor:
    """Pixels (..., P, 2) moved by a homography (..., 3, 3); NaN at or beyond the horizon.

    Raises:
        GeometryError: wrong shapes or H is not finite.
    """
    check_shape(H, "H", 3, 3)
    check_finite(H, "H")
    moved = homogeneous(uv) @ H.mT
    w = moved[..., 2:]
    return torch.where(w > 0, moved[..., :2] / w, torch.full_like(uv, torch.nan))


def ego_flow(depth_a: Tensor, T_b_a: Tensor, camera_a: Camera, camera_b: Camera) -> Tensor:
    """Flow (H, W, 2) that the camera's motion alone gives to static pixels of view a, px.

    NaN where the depth is unknown or the point lies behind camera b.

    Args:
        depth_a: (H, W) z-depth of view a.
        T_b_a: (4, 4) relative pose.
        camera_a: camera of view a.
        camera_b: camera of view b.

    Raises:
        GeometryError: wrong shapes, not a transform or an unusable K.
    """
    check_shape(depth_a, "depth_a", -1, -1)
    points_b = pointmap.transform(T_b_a.to(depth_a), pointmap.from_depth(depth_a, camera_a))
    size = (depth_a.shape[-2], depth_a.shape[-1])
    return project(points_b, camera_b) - pixel_grid(size, depth_a.dtype, depth_a.device)


def homogeneous(uv: Tensor) -> Tensor:
    """Pixels (..., 2) with a 1 appended, (..., 3)."""
    check_shape(uv, "uv", 2)
    return torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)

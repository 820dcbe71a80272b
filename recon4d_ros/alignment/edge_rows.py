"""Residuals of a directed pair with their analytic derivatives: what second-order steps build on.

A pair (1, 2) gives points of the pixels of both its frames in the camera of frame 1, in a unit of
its own. A pixel of frame 2 with ray r and depth d lies at X = T_1_2 (d r) in camera 1, and the
pair says x: GA compares X / s with x, CMA the pixel of X with a matched one. Unknown are both
poses, the pair's unit s, the shared focal length and the depth.

Poses move by twists on the right, T_world_cam <- T_world_cam exp(twist), twist = (rho, phi); the
scale, the focal length and the depth by their logarithms. Shapes: any batch axes ..., P pixels.
Source: C4D (ICCV 2025), section 4, GA and CMA; derivatives by hand, Barfoot, State Estimation for
Robotics, chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera, se3
from recon4d_ros.geometry.checks import check_shape

# Order of the unknowns in the last axis of `Rows.jacobian` of two different frames.
CAM_1, CAM_2, LOG_SCALE, LOG_FOCAL = slice(0, 6), slice(6, 12), 12, 13
NUM_SHARED = 14
# The same for the pixels of frame 1 itself, which no pose moves.
OWN_LOG_SCALE, OWN_LOG_FOCAL = 0, 1


@dataclass(frozen=True, eq=False)
class Rows:
    """Residuals of P pixels and their derivatives.

    Attributes:
        residual: (..., P, R).
        jacobian: (..., P, R, K) by the unknowns that pixels share, in the order named above.
        log_depth: (..., P, R) by the logarithm of each pixel's own depth.
    """

    residual: Tensor
    jacobian: Tensor
    log_depth: Tensor


def whitening(points: Tensor, sigma_along: float, sigma_across: float) -> Tensor:
    """Matrices (..., 3, 3) that turn a deviation from points (..., 3) into standard deviations.

    A network errs differently along the ray and across it, both in proportion to the distance.

    Args:
        points: as the pair gives them, in its camera.
        sigma_along: noise along the ray, over the distance.
        sigma_across: noise of each direction across the ray, over the distance.
    """
    distance = torch.linalg.vector_norm(points, dim=-1)[..., None, None]
    ray = points.unsqueeze(-1) / distance
    along = ray @ ray.mT
    identity = torch.eye(3, dtype=points.dtype, device=points.device)
    matrix: Tensor = (along / sigma_along + (identity - along) / sigma_across) / distance
    return matrix


def other_rows(
    T_world_1: Tensor,
    T_world_2: Tensor,
    rays: Tensor,
    log_depth: Tensor,
    log_scale: Tensor,
    points: Tensor,
    whiten: Tensor,
) -> Rows:
    """GA of the pixels of frame 2: W (X / s - x), R = 3.

    Args:
        T_world_1: (..., 4, 4) pose of frame 1.
        T_world_2: (..., 4, 4) pose of frame 2.
        rays: (..., P, 3) directions of the pixels of frame 2, z = 1, see `camera.directions`.
        log_depth: (..., P) their depth, map units.
        log_scale: (...) logarithm of s, map units per unit of the pair.
        points: (..., P, 3) x, points of frame 2 in camera 1 as the pair gives them.
        whiten: (..., P, 3, 3) W, see `whitening`.

    Raises:
        GeometryError: wrong shapes or no transforms.
    """
    point, derivative, by_depth = _carried(T_world_1, T_world_2, rays, log_depth)
    check_shape(points, "points", *point.shape)
    matrix = whiten * torch.exp(-log_scale)[..., None, None, None]
    scaled = (matrix @ point.unsqueeze(-1)).squeeze(-1)
    residual = scaled - (whiten @ points.unsqueeze(-1)).squeeze(-1)
    moved = matrix @ derivative
    jacobian = torch.cat([moved[..., :12], -scaled.unsqueeze(-1), moved[..., 12:]], dim=-1)
    return Rows(residual, jacobian, (matrix @ by_depth).squeeze(-1))


def own_rows(
    rays: Tensor, log_depth: Tensor, log_scale: Tensor, points: Tensor, whiten: Tensor
) -> Rows:
    """GA of the pixels of frame 1: W (d r / s - x), R = 3, K = 2; arguments as `other_rows`.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points, "points", *rays.shape)
    matrix = whiten * torch.exp(-log_scale)[..., None, None, None]
    point = rays * torch.exp(log_depth).unsqueeze(-1)
    scaled = (matrix @ point.unsqueeze(-1)).squeeze(-1)
    residual = scaled - (whiten @ points.unsqueeze(-1)).squeeze(-1)
    by_focal = (matrix @ _by_log_focal(point)).squeeze(-1)
    return Rows(residual, torch.stack([-scaled, by_focal], dim=-1), scaled)


def flow_rows(
    T_world_1: Tensor,
    T_world_2: Tensor,
    rays: Tensor,
    log_depth: Tensor,
    matched: Tensor,
    focal_px: Tensor,
    matched_in_px: bool,
) -> Rows:
    """CMA of the pixels of frame 2: f (X_xy / X_z - m), R = 2, px.

    A point at or behind camera 1 has NaN rows: give such pixels no weight.

    Args:
        T_world_1: (..., 4, 4) pose of frame 1.
        T_world_2: (..., 4, 4) pose of frame 2.
        rays: (..., P, 3) directions of the pixels of frame 2, z = 1.
        log_depth: (..., P) their depth, map units.
        matched: (..., P, 2) m, where the pixels' surface points are in frame 1: their matched
            direction x / z, y / z. For optical flow that is (uv + flow - centre) / f.
        focal_px: () f.
        matched_in_px: m comes from pixels, so that it changes with the focal length; False for a
            matching pointmap, whose directions do not.

    Raises:
        GeometryError: wrong shapes or no transforms.
    """
    point, derivative, by_depth = _carried(T_world_1, T_world_2, rays, log_depth)
    check_shape(matched, "matched", *point.shape[:-1], 2)
    z = torch.where(point[..., 2:] > 0, point[..., 2:], torch.nan)
    normalised = point[..., :2] / z
    residual = focal_px * (normalised - matched)
    matrix = _projection(normalised, z) * focal_px
    moved = matrix @ derivative
    by_focal = moved[..., 12] + (focal_px * normalised if matched_in_px else residual)
    no_scale = torch.zeros_like(by_focal)
    jacobian = torch.cat([moved[..., :12], torch.stack([no_scale, by_focal], dim=-1)], dim=-1)
    return Rows(residual, jacobian, (matrix @ by_depth).squeeze(-1))


def with_depth_basis(rows: Rows, basis: Tensor) -> Rows:
    """The same rows with shared unknowns for the depth appended to the jacobian.

    A frame's log-scale is a basis (P, 1) of ones; a coarse grid of log-depths is the bilinear
    weight (P, G) of each of its nodes. Then `normal_equations.assemble` serves, no depth is free.

    Args:
        rows: of P pixels.
        basis: (P, G) or (..., P, G), how much each unknown adds to each pixel's log-depth.
    """
    appended = rows.log_depth.unsqueeze(-1) * basis.unsqueeze(-2)
    return Rows(rows.residual, torch.cat([rows.jacobian, appended], dim=-1), rows.log_depth)


def _carried(
    T_world_1: Tensor, T_world_2: Tensor, rays: Tensor, log_depth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of frame 2 in camera 1, and how they move.

    Returns:
        X (..., P, 3); dX by twist 1, twist 2 and log focal (..., P, 3, 13); by log depth, one
        column (..., P, 3, 1).
    """
    check_shape(rays, "rays", -1, 3)
    check_shape(log_depth, "log_depth", *rays.shape[:-1])
    T_1_2 = se3.inverse(T_world_1) @ T_world_2
    R, t = T_1_2[..., :3, :3], T_1_2[..., None, :3, 3]
    source = rays * torch.exp(log_depth).unsqueeze(-1)
    turned = source @ R.mT
    point = turned + t
    R = R.unsqueeze(-3).expand(*point.shape, 3)
    identity = torch.eye(3, dtype=point.dtype, device=point.device).expand_as(R)
    by_cam_1 = [-identity, se3.skew(point)]
    by_cam_2 = [R, -R @ se3.skew(source)]
    derivative = torch.cat([*by_cam_1, *by_cam_2, R @ _by_log_focal(source)], dim=-1)
    return point, derivative, turned.unsqueeze(-1)


def _by_log_focal(point: Tensor) -> Tensor:
    """Derivative (..., 3, 1) of d r: a longer focal length draws the ray to the axis."""
    flat = torch.cat([-point[..., :2], torch.zeros_like(point[..., 2:])], dim=-1)
    return flat.unsqueeze(-1)


def _projection(normalised: Tensor, z: Tensor) -> Tensor:
    """Derivative (..., 2, 3) of x / z, y / z by the point."""
    inverse = 1.0 / z.squeeze(-1)
    zero = torch.zeros_like(inverse)
    x, y = (normalised * inverse.unsqueeze(-1)).unbind(-1)
    rows = [inverse, zero, -x, zero, inverse, -y]
    return torch.stack(rows, dim=-1).reshape(*inverse.shape, 2, 3)


def directions(uv: Tensor, focal_px: Tensor, centre_px: tuple[float, float]) -> Tensor:
    """Viewing directions (..., 3), z = 1, of pixels (..., 2) of a camera with square pixels."""
    one = torch.ones_like(focal_px)
    zero = torch.zeros_like(focal_px)
    cx, cy = (torch.full_like(focal_px, centre) for centre in centre_px)
    K = torch.stack([focal_px, zero, cx, zero, focal_px, cy, zero, zero, one]).reshape(3, 3)
    return camera.directions(uv, K)

"""Residuals of a directed pair with their analytic derivatives: what second-order steps build on.

A pair (1, 2) gives points of the pixels of both its frames in the camera of frame 1, in a unit of
its own. A pixel of frame 2 with ray r and depth d lies at X = T_1_2 (d r) in camera 1, and the
pair says x: GA compares X / s with x, CMA the pixel of X with a matched one. Unknown are the
relative pose, the pair's unit s, the shared focal length and the depth.

The relative pose moves by a twist on the left, T_1_2 <- exp(zeta) T_1_2, zeta = (rho, phi), the
others by their logarithms; `lift` leads from zeta to twists of both poses on their right,
T_world_cam <- T_world_cam exp(twist). Shapes: any batch axes ..., P pixels; the components of a
vector come before the pixels, (..., 3, P), so that each is one plane in memory.
Source: C4D (ICCV 2025), section 4, GA and CMA; derivatives by hand, Barfoot, State Estimation for
Robotics, chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3
from recon4d_ros.geometry.checks import check_shape

# Order of the unknowns along the axis K of `Rows.jacobian`.
ZETA, LOG_SCALE, LOG_FOCAL = slice(0, 6), 6, 7
NUM_RELATIVE = 8
# The same for the pixels of frame 1 itself, which no pose moves.
OWN_LOG_SCALE, OWN_LOG_FOCAL = 0, 1
# Order after `lift`.
CAM_1, CAM_2, LIFTED_LOG_SCALE, LIFTED_LOG_FOCAL = slice(0, 6), slice(6, 12), 12, 13
NUM_LIFTED = 14


@dataclass(frozen=True, eq=False)
class Rows:
    """Residuals of P pixels and their derivatives.

    Attributes:
        residual: (..., R, P).
        jacobian: (..., K, R, P) by the unknowns that pixels share, in the order named above.
        log_depth: (..., R, P) by the logarithm of each pixel's own depth.
    """

    residual: Tensor
    jacobian: Tensor
    log_depth: Tensor


@dataclass(frozen=True, eq=False)
class Whitening:
    """Turns deviations from some points into standard deviations.

    A network errs differently along the ray and across it, both in proportion to the distance.

    Attributes:
        ray: (..., 3, P) unit.
        along: (..., P) one over the noise along the ray.
        across: (..., P) one over the noise of each direction across it.
    """

    ray: Tensor
    along: Tensor
    across: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """Whitened vectors (..., 3, P)."""
        along = (self.ray * vectors).sum(dim=-2, keepdim=True)
        extra = (self.along - self.across).unsqueeze(-2) * along
        return torch.addcmul(self.across.unsqueeze(-2) * vectors, extra, self.ray)

    def apply_columns(self, columns: Tensor) -> Tensor:
        """Whitened columns (..., C, 3, P)."""
        along, across = self.along.unsqueeze(-2), self.across.unsqueeze(-2)
        return Whitening(self.ray.unsqueeze(-3), along, across).apply(columns)


def whitening(points: Tensor, sigma_along: float, sigma_across: float) -> Whitening:
    """Whitening by points as a pair gives them, in its camera.

    Args:
        points: (..., 3, P), none of them zero.
        sigma_along: noise along the ray, over the distance.
        sigma_across: noise of each direction across the ray, over the distance.

    Raises:
        GeometryError: wrong shape.
    """
    check_shape(points, "points", 3, -1)
    distance = points.square().sum(dim=-2).sqrt()
    ray = points / distance.unsqueeze(-2)
    return Whitening(ray, 1.0 / (sigma_along * distance), 1.0 / (sigma_across * distance))


@dataclass(frozen=True, eq=False)
class Carried:
    """Points of frame 2 in camera 1.

    Attributes:
        point: (..., 3, P) X.
        turned: (..., 3, P) d R r, so that X = turned + t.
        inward: (..., 3, P) derivative of X by the logarithm of the focal length.
    """

    point: Tensor
    turned: Tensor
    inward: Tensor

    @cached_property
    def columns(self) -> Tensor:
        """Derivatives (..., 9, 3, P) of X by zeta (6), log scale (X itself), focal and depth."""
        x, y, z = self.point.unbind(dim=-2)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        rows = [
            torch.stack(row, dim=-2)
            for row in (
                (one, zero, zero),
                (zero, one, zero),
                (zero, zero, one),
                (zero, -z, y),
                (z, zero, -x),
                (-y, x, zero),
            )
        ]
        return torch.stack([*rows, self.point, self.inward, self.turned], dim=-3)


def carry(T_1_2: Tensor, rays: Tensor, log_depth: Tensor) -> Carried:
    """Points of frame 2 in camera 1.

    Args:
        T_1_2: (..., 4, 4) relative pose.
        rays: (..., 3, P) directions of pixels of frame 2, z = 1, see `directions`.
        log_depth: (..., P) their depth, map units.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(T_1_2, "T_1_2", 4, 4)
    check_shape(rays, "rays", 3, -1)
    check_shape(log_depth, "log_depth", rays.shape[-1])
    source = rays * torch.exp(log_depth).unsqueeze(-2)
    R = T_1_2[..., :3, :3]
    turned = R @ source
    return Carried(turned + T_1_2[..., :3, 3:], turned, -(R[..., :2] @ source[..., :2, :]))


def own_residual(
    rays: Tensor, log_depth: Tensor, log_scale: Tensor, points: Tensor, white: Whitening
) -> Tensor:
    """GA of the pixels of frame 1: W (d r / s - x), (..., 3, P).

    Args:
        rays: (..., 3, P) directions of pixels of frame 1, z = 1.
        log_depth: (..., P) their depth, map units.
        log_scale: (...) logarithm of s, map units per unit of the pair.
        points: (..., 3, P) x, as the pair gives them.
        white: W.
    """
    length = torch.exp(log_depth - log_scale.unsqueeze(-1)).unsqueeze(-2)
    return white.apply(rays * length - points)


def own_rows(
    rays: Tensor, log_depth: Tensor, log_scale: Tensor, points: Tensor, white: Whitening
) -> Rows:
    """Rows of `own_residual`, K = 2."""
    length = torch.exp(log_depth - log_scale.unsqueeze(-1)).unsqueeze(-2)
    point = rays * length
    inward = torch.cat([-point[..., :2, :], torch.zeros_like(point[..., 2:, :])], dim=-2)
    by_depth, by_focal = white.apply(point), white.apply(inward)
    jacobian = torch.stack([-by_depth, by_focal], dim=-3)
    return Rows(white.apply(point - points), jacobian, by_depth)


def other_residual(
    carried: Carried, log_scale: Tensor, points: Tensor, white: Whitening
) -> Tensor:
    """GA of the pixels of frame 2: W (X / s - x), (..., 3, P).

    Args:
        carried: X, see `carry`.
        log_scale: (...) logarithm of s, map units per unit of the pair.
        points: (..., 3, P) x, points of frame 2 in camera 1 as the pair gives them.
        white: W.
    """
    return white.apply(carried.point * torch.exp(-log_scale)[..., None, None] - points)


def other_rows(carried: Carried, log_scale: Tensor, points: Tensor, white: Whitening) -> Rows:
    """Rows of `other_residual`."""
    columns = white.apply_columns(carried.columns * torch.exp(-log_scale)[..., None, None, None])
    columns[..., LOG_SCALE, :, :].neg_()
    residual = other_residual(carried, log_scale, points, white)
    return Rows(residual, columns[..., :NUM_RELATIVE, :, :], columns[..., NUM_RELATIVE, :, :])


def flow_residual(carried: Carried, matched: Tensor, focal_px: Tensor) -> Tensor:
    """CMA of the pixels of frame 2: f (X_xy / X_z - m), (..., 2, P), px.

    A point at or behind camera 1 has NaN residuals: give such pixels no weight.

    Args:
        carried: X, see `carry`.
        matched: (..., 2, P) m, where the pixels' surface points are in frame 1: their matched
            direction x / z, y / z. For optical flow that is (uv + flow - centre) / f.
        focal_px: () f.
    """
    z = carried.point[..., 2:, :]
    z = torch.where(z > 0, z, torch.nan)
    return focal_px * (carried.point[..., :2, :] / z - matched)


def flow_rows(carried: Carried, matched: Tensor, focal_px: Tensor, matched_in_px: bool) -> Rows:
    """Rows of `flow_residual`; they do not depend on the scale.

    Args:
        carried: X, see `carry`.
        matched: (..., 2, P) m.
        focal_px: () f.
        matched_in_px: m comes from pixels, so that it changes with the focal length; False for a
            matching pointmap, whose directions do not.
    """
    residual = flow_residual(carried, matched, focal_px)
    normalised = residual / focal_px + matched
    columns, z = carried.columns, carried.point[..., 2:, :].unsqueeze(-3)
    moved = columns[..., :2, :] - normalised.unsqueeze(-3) * columns[..., 2:, :]
    moved = moved * (focal_px / z)
    moved[..., LOG_SCALE, :, :] = 0.0
    moved[..., LOG_FOCAL, :, :] += focal_px * normalised if matched_in_px else residual
    return Rows(residual, moved[..., :NUM_RELATIVE, :, :], moved[..., NUM_RELATIVE, :, :])


def lift(T_1_2: Tensor) -> Tensor:
    """Linear map (..., 8, 14) from steps of both poses, scale and focal to those of the rows.

    zeta = Ad(T_1_2) twist_2 - twist_1, both twists on the right of their T_world_cam.

    Args:
        T_1_2: (..., 4, 4) relative pose.

    Raises:
        GeometryError: wrong shape.
    """
    check_shape(T_1_2, "T_1_2", 4, 4)
    R = T_1_2[..., :3, :3]
    found = T_1_2.new_zeros(*T_1_2.shape[:-2], NUM_RELATIVE, NUM_LIFTED)
    found[..., :6, CAM_1] = -torch.eye(6, dtype=R.dtype, device=R.device)
    found[..., :3, 6:9] = R
    found[..., 3:6, 9:12] = R
    found[..., :3, 9:12] = se3.skew(T_1_2[..., :3, 3]) @ R
    found[..., LOG_SCALE, LIFTED_LOG_SCALE] = 1.0
    found[..., LOG_FOCAL, LIFTED_LOG_FOCAL] = 1.0
    return found


def directions(uv: Tensor, focal_px: Tensor, centre_px: tuple[float, float]) -> Tensor:
    """Viewing directions (..., 3, P), z = 1, of pixels (..., P, 2) of a camera.

    Args:
        uv: pixels, px.
        focal_px: () or (2,) focal length, of x and y.
        centre_px: principal point.

    Raises:
        GeometryError: wrong shape, or a focal length that is not above zero.
    """
    check_shape(uv, "uv", -1, 2)
    if not bool((focal_px > 0).all()):
        raise GeometryError(f"the focal length is {focal_px.tolist()} px; expected above zero")
    xy = ((uv - uv.new_tensor(centre_px)) / focal_px).mT
    return torch.cat([xy, torch.ones_like(xy[..., :1, :])], dim=-2).contiguous()

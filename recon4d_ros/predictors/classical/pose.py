"""Pose of one frame from points of known or uncertain inverse depth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Mask

_PIXEL_SIGMA = 0.5  # px, of a tracked position
_KERNEL = 3.0  # Cauchy scale in standard deviations; also the bound of an inlier
_ITERATIONS = 12
_MIN_Z = 1e-3


@dataclass(frozen=True, eq=False)
class Sightings:
    """N points with inverse depth in their hosts, seen in one frame.

    Attributes:
        T_host_world: (N, 4, 4) pose of each point's host.
        ray: (N, 2) normalised image coordinates in the host.
        rho, rho_sigma: (N,) inverse depth in the host and its standard deviation.
        uv: (N, 2) normalised image coordinates in the frame.
        focal_px: px per unit of normalised coordinates.
    """

    T_host_world: Array
    ray: Array
    rho: Array
    rho_sigma: Array
    uv: Array
    focal_px: float


@dataclass(frozen=True, eq=False)
class PoseFit:
    """A pose and how well it explains the points.

    Attributes:
        T_cam_world: (4, 4).
        inlier: (N,) bool.
        residual_px: median reprojection error.
        cost: mean robust cost per point.
    """

    T_cam_world: Array
    inlier: Mask
    residual_px: float
    cost: float


def refine_pose(seen: Sightings, T_cam_world: Array) -> PoseFit:
    """Robust Gauss-Newton from a guess.

    Each residual is weighted by the inverse of its covariance, the pixel's plus that of the depth
    projected along the epipolar line: a point whose depth is not known yet still holds the
    rotation and the direction across its epipolar line.
    """
    T = T_cam_world
    T_world_host = rigid.inverse(seen.T_host_world)
    bearing = rigid.homogeneous(seen.ray)[..., None]
    sigma = np.minimum(seen.rho_sigma, seen.rho)
    for _ in range(_ITERATIONS):
        residual, J, J_rho = _linearised(seen, T @ T_world_host, bearing)
        W = _information(J_rho * sigma[:, None])
        squared = np.einsum("ni,nij,nj->n", residual, W, residual)
        weight = 1.0 / (1.0 + squared / _KERNEL**2)
        WJ = (W @ J) * weight[:, None, None]
        H = (J.transpose(0, 2, 1) @ WJ).sum(0)
        g = (WJ.transpose(0, 2, 1) @ residual[..., None]).sum(0)[:, 0]
        step = np.linalg.solve(H + 1e-6 * np.eye(6), -g)
        T = rigid.moved(T, step)
        if np.abs(step).max() < 1e-6:
            break
    cost = float(np.log1p(squared / _KERNEL**2).mean())
    median = float(np.median(np.linalg.norm(residual, axis=1)))
    return PoseFit(T, squared < _KERNEL**2, median, cost)


def sample_pose(seen: Sightings, reprojection_px: float = 2.0) -> Array | None:
    """Pose by random sampling (AP3P), for when the guess may be far off; None if none is found."""
    points = rigid.homogeneous(seen.ray) / seen.rho[:, None]
    T_world_host = rigid.inverse(seen.T_host_world)
    points = (T_world_host[:, :3, :3] @ points[..., None])[..., 0] + T_world_host[:, :3, 3]
    if len(points) < 12:
        return None
    cv2.setRNGSeed(0)
    found, rotation, translation, inliers = cv2.solvePnPRansac(
        points,
        seen.uv.copy(),
        np.eye(3),
        None,
        iterationsCount=100,
        reprojectionError=reprojection_px / seen.focal_px,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found or inliers is None or len(inliers) < 12:
        return None
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(rotation)[0], translation[:, 0]
    return T


def fit_rotation(ray: Array, uv: Array, R: Array, focal_px: float) -> tuple[Array, Array]:
    """Rotation that best explains a pair of views with no translation.

    Args:
        ray: (N, 2) normalised image coordinates in the first view.
        uv: (N, 2) in the second.
        R: (3, 3) guess, first camera to second.
        focal_px: px per unit.

    Returns:
        (3, 3) rotation and (N,) residual lengths in px, which translation has to explain.
    """
    bearing = rigid.homogeneous(ray)
    length = np.zeros(len(ray))
    for _ in range(8):
        q = bearing @ R.T
        at = q[:, :2] / q[:, 2:]
        residual = focal_px * (at - uv)
        J = focal_px * _rotation_jacobian(at)
        length = np.linalg.norm(residual, axis=1)
        scale = max(1.5 * float(np.median(length)), 0.5)
        JT = J.transpose(0, 2, 1) / (1 + (length / scale) ** 2)[:, None, None]
        step = np.linalg.solve((JT @ J).sum(0), -(JT @ residual[..., None]).sum(0)[:, 0])
        R = rigid.moved(_rotation_only(R), np.r_[np.zeros(3), step])[:3, :3]
    return R, length


def _rotation_only(R: Array) -> Array:
    T = np.eye(4)
    T[:3, :3] = R
    return T


def _rotation_jacobian(uv: Array) -> Array:
    """Normalised image coordinates (N, 2) by a rotation of the camera frame, (N, 2, 3)."""
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([-u * v, 1 + u * u, -v, -(1 + v * v), u * v, u], axis=1).reshape(-1, 2, 3)


def _linearised(seen: Sightings, T_rel: Array, bearing: Array) -> tuple[Array, Array, Array]:
    """Residual (N, 2) px, by the twist (N, 2, 6), by rho (N, 2)."""
    t = T_rel[:, :3, 3]
    q = (T_rel[:, :3, :3] @ bearing)[..., 0] + seen.rho[:, None] * t
    z = np.maximum(q[:, 2], _MIN_Z)
    uv, f = q[:, :2] / z[:, None], seen.focal_px
    near = f * seen.rho / z
    J = np.zeros((len(uv), 2, 6))
    J[:, 0, 0] = J[:, 1, 1] = near
    J[:, 0, 2], J[:, 1, 2] = -near * uv[:, 0], -near * uv[:, 1]
    J[:, :, 3:] = f * _rotation_jacobian(uv)
    J_rho = (f / z)[:, None] * (t[:, :2] - uv * t[:, 2:])
    return f * (uv - seen.uv), J, J_rho


def _information(spread: Array) -> Array:
    """Inverse of sigma^2 I + spread spread^T, (N, 2, 2), by the rank-one update formula."""
    variance = _PIXEL_SIGMA**2
    outer = spread[:, :, None] * spread[:, None, :]
    squared = (spread**2).sum(1)[:, None, None]
    return np.asarray((np.eye(2) - outer / (variance + squared)) / variance)

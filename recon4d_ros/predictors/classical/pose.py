"""Pose of one frame from points of known or uncertain inverse depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from recon4d_ros.datatypes import TrackingState
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Mask

_PIXEL_SIGMA = 0.5  # px, of a tracked position
_KERNEL = 3.0  # Cauchy scale in standard deviations; also the bound of an inlier
_ITERATIONS = 12
# Radian, or depth of a point of inverse depth 1, after which no step follows: some hundredths of a
# px; and those of a fit that another one follows.
_SMALL_STEP = 3e-5
ROUGH_STEP = 1e-3
_MIN_Z = 1e-3


@dataclass(frozen=True, eq=False)
class Tracked:
    """Where one frame's camera is.

    Attributes:
        T_cam_world: (4, 4), None when lost.
        state: what the pose rests on.
        residual_px: median reprojection error.
        num_support: points that agree.
    """

    T_cam_world: Array | None
    state: TrackingState
    residual_px: float
    num_support: int


@dataclass(frozen=True, eq=False)
class Sightings:
    """N points with inverse depth in their hosts, seen in one frame.

    Attributes:
        T_world_host: (N, 4, 4) pose of each point's host.
        ray: (N, 2) normalised image coordinates in the host.
        rho, rho_sigma: (N,) inverse depth in the host and its standard deviation.
        uv: (N, 2) normalised image coordinates in the frame.
        focal_px: px per unit of normalised coordinates.
    """

    T_world_host: Array
    ray: Array
    rho: Array
    rho_sigma: Array
    uv: Array
    focal_px: float

    def where(self, keep: Mask) -> Sightings:
        """The points of a mask (N,)."""
        return replace(
            self,
            T_world_host=self.T_world_host[keep],
            ray=self.ray[keep],
            rho=self.rho[keep],
            rho_sigma=self.rho_sigma[keep],
            uv=self.uv[keep],
        )


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


def refine_pose(seen: Sightings, T_cam_world: Array, small_step: float = _SMALL_STEP) -> PoseFit:
    """Robust Gauss-Newton from a guess, until a step is small.

    Each residual is weighted by the inverse of its covariance, the pixel's plus that of the depth
    projected along the epipolar line: a point whose depth is not known yet still holds the
    rotation and the direction across its epipolar line.
    """
    T = T_cam_world
    # A point in the world is direction + rho * origin, times its depth in the host.
    R_world_host, origin = seen.T_world_host[:, :3, :3], seen.T_world_host[:, :3, 3].T
    direction = (R_world_host @ rigid.homogeneous(seen.ray)[..., None])[..., 0].T
    sigma = np.minimum(seen.rho_sigma, seen.rho)
    for _ in range(_ITERATIONS):
        at = _linearised(seen, T, direction, origin, sigma)
        squared = at.squared
        step = _gauss_newton(at, 1.0 / (1.0 + squared / _KERNEL**2))
        T = _retracted(T, step)
        if np.abs(step).max() < small_step:
            break
    cost = float(np.log1p(squared / _KERNEL**2).mean())
    median = float(np.median(np.hypot(*at.residual)))
    return PoseFit(rigid.orthonormal(T), squared < _KERNEL**2, median, cost)


def _retracted(T: Array, step: Array) -> Array:
    """The pose after a small step; to first order exp(step) @ T, and far cheaper."""
    moved: Array = np.eye(4)
    moved[:3, :3], moved[:3, 3] = cv2.Rodrigues(step[3:])[0], step[:3]
    return moved @ T


def sample_pose(seen: Sightings, reprojection_px: float = 2.0) -> Array | None:
    """Pose by random sampling (AP3P), for when the guess may be far off; None if none is found."""
    points = rigid.homogeneous(seen.ray) / seen.rho[:, None]
    points = (seen.T_world_host[:, :3, :3] @ points[..., None])[..., 0]
    points = points + seen.T_world_host[:, :3, 3]
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


def resampled(seen: Sightings, known: Mask, fit: PoseFit) -> PoseFit:
    """A sampled pose instead of a fit, if clearly more points agree with that one.

    Args:
        seen: the points.
        known: (N,) those whose depth is known, to sample from.
        fit: what a guess led to.
    """
    T = sample_pose(seen.where(known))
    if T is None:
        return fit
    other = refine_pose(seen, T, ROUGH_STEP)
    return other if other.inlier.sum() > 1.1 * fit.inlier.sum() else fit


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
        R = rigid.moved(rigid.turned(R), np.r_[np.zeros(3), step])[:3, :3]
    return R, length


def _rotation_jacobian(uv: Array) -> Array:
    """Normalised image coordinates (N, 2) by a rotation of the camera frame, (N, 2, 3)."""
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([-u * v, 1 + u * u, -v, -(1 + v * v), u * v, u], axis=1).reshape(-1, 2, 3)


@dataclass(frozen=True, eq=False)
class _Linear:
    """Residuals at a pose; the long axis comes last, so that sums over points are dot products.

    The covariance of a residual is sigma^2 I + spread spread^T; its inverse comes from the
    rank-one update formula.

    Attributes:
        residual: (2, N) px.
        J: (2, 6, N) by the twist.
        spread: (2, N) px, one standard deviation of the depth.
        damping: (N,) sigma^2 + |spread|^2.
        squared: (N,) squared Mahalanobis length of the residual.
    """

    residual: Array
    J: Array
    spread: Array
    damping: Array
    squared: Array


def _linearised(
    seen: Sightings, T: Array, direction: Array, origin: Array, sigma: Array
) -> _Linear:
    R, t = T[:3, :3], T[:3, 3:]
    shift = R @ origin + t
    q = R @ direction + seen.rho * shift
    f = seen.focal_px
    inverse_z = 1.0 / np.maximum(q[2], _MIN_Z)
    u, v = q[0] * inverse_z, q[1] * inverse_z
    near = f * seen.rho * inverse_z
    zero = np.zeros_like(u)
    J = np.array(
        [
            [near, zero, -near * u, -f * u * v, f * (1 + u * u), -f * v],
            [zero, near, -near * v, -f * (1 + v * v), f * u * v, f * u],
        ]
    )
    residual = f * np.array([u - seen.uv[:, 0], v - seen.uv[:, 1]])
    spread = f * inverse_z * sigma * np.array([shift[0] - u * shift[2], shift[1] - v * shift[2]])
    damping = _PIXEL_SIGMA**2 + spread[0] ** 2 + spread[1] ** 2
    along = spread[0] * residual[0] + spread[1] * residual[1]
    squared = residual[0] ** 2 + residual[1] ** 2 - along**2 / damping
    return _Linear(residual, J, spread, damping, squared / _PIXEL_SIGMA**2)


def _gauss_newton(at: _Linear, weight: Array) -> Array:
    """Step (6,) of the weighted normal equations."""
    weight = weight / _PIXEL_SIGMA**2
    along = at.spread[0] * at.J[0] + at.spread[1] * at.J[1]  # 6 N
    share = weight / at.damping
    H = (weight * at.J[0]) @ at.J[0].T + (weight * at.J[1]) @ at.J[1].T - (share * along) @ along.T
    pull = weight * at.residual
    against = share * (at.spread[0] * at.residual[0] + at.spread[1] * at.residual[1])
    g = at.J[0] @ pull[0] + at.J[1] @ pull[1] - along @ against
    return np.linalg.solve(H + 1e-6 * np.eye(6), -g)

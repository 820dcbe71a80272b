"""Rigid motions in numpy, for the inner loops of the odometry.

geometry/se3.py is the public, batched torch version and the oracle of this one; here thousands of
calls on a handful of poses per frame make torch's cost per call count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def skew(v: Array) -> Array:
    """Cross-product matrices (..., 3, 3) of (..., 3) vectors."""
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out


def exp(xi: Array) -> Array:
    """Rigid motions (..., 4, 4) of (..., 6) twists, translation part first."""
    v, w = xi[..., :3], xi[..., 3:]
    angle = np.linalg.norm(w, axis=-1)[..., None, None]
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1.0 - angle**2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle**2 / 24, 2 * (np.sin(safe / 2) / safe) ** 2)
    c = np.where(small, 1 / 6 - angle**2 / 120, (1 - a) / safe**2)
    W = skew(w)
    W2 = W @ W
    T = np.zeros((*xi.shape[:-1], 4, 4))
    T[..., :3, :3] = np.eye(3) + a * W + b * W2
    T[..., :3, 3] = ((np.eye(3) + b * W + c * W2) @ v[..., None])[..., 0]
    T[..., 3, 3] = 1.0
    return T


def log(T: Array) -> Array:
    """Twists (..., 6) of rigid motions (..., 4, 4) that turn by less than 3 rad."""
    R = T[..., :3, :3]
    axis = np.stack([R[..., 2, 1], R[..., 0, 2], R[..., 1, 0]], axis=-1)
    axis = 0.5 * (axis - np.stack([R[..., 1, 2], R[..., 2, 0], R[..., 0, 1]], axis=-1))
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, 0.5 * (np.trace(R, axis1=-2, axis2=-1) - 1.0))
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    w = axis * np.where(small, 1.0 + angle**2 / 6, safe / np.where(small, 1.0, sine))[..., None]
    # Inverse of the matrix that takes the translation part to the translation, see exp.
    c = np.where(small, 1 / 12, (1.0 - 0.5 * safe / np.tan(0.5 * safe)) / safe**2)
    W = skew(w)
    V = np.eye(3) - 0.5 * W + c[..., None, None] * (W @ W)
    return np.concatenate([(V @ T[..., :3, 3:])[..., 0], w], axis=-1)


def inverse(T: Array) -> Array:
    """Inverse of rigid motions (..., 4, 4)."""
    R = np.swapaxes(T[..., :3, :3], -1, -2)
    out = np.zeros_like(T)
    out[..., :3, :3] = R
    out[..., :3, 3] = -(R @ T[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def orthonormal(T: Array) -> Array:
    """Nearest rigid motions to (..., 4, 4).

    Products of poses must pass through here: a constant-velocity step doubles the rounding error
    of T @ inverse(T_last), so that without it a pose is no rotation any more after fifty frames.
    """
    U, _, Vt = np.linalg.svd(T[..., :3, :3])
    out: Array = T.copy()
    out[..., :3, :3] = U @ Vt
    return out


def turned(R: Array) -> Array:
    """The motion (4, 4) that a rotation (3, 3) about the origin is."""
    T = np.eye(4)
    T[:3, :3] = R
    return T


def moved(T: Array, xi: Array) -> Array:
    """Poses exp(xi) @ T, kept rigid."""
    return orthonormal(np.asarray(exp(xi) @ T))


def adjoint(T: Array) -> Array:
    """Adjoints (..., 6, 6), translation part first: T exp(xi) inverse(T) = exp(Ad(T) xi)."""
    R, t = T[..., :3, :3], T[..., :3, 3]
    out = np.zeros((*T.shape[:-2], 6, 6))
    out[..., :3, :3] = out[..., 3:, 3:] = R
    out[..., :3, 3:] = skew(t) @ R
    return out


def homogeneous(uv: Array) -> Array:
    """Bearings (N, 3) with unit depth of normalised image coordinates (N, 2)."""
    return np.concatenate([uv, np.ones((len(uv), 1))], axis=1)

"""Similarities in numpy, for the inner loop of the fixed-lag window.

geometry/sim3.py is the public, checked torch version and the oracle of this one; here a few dozen
frames move some times per image, and what each call costs counts. Coordinates (..., 7) are those
of `sim3.coordinates`: translation, rotation vector, logarithm of the scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def scale(S: Array) -> Array:
    """Scales (...)."""
    x, y, z = S[..., 0, 0], S[..., 1, 0], S[..., 2, 0]
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def inverse(S: Array) -> Array:
    """Inverses (..., 4, 4)."""
    linear = np.swapaxes(S[..., :3, :3], -1, -2) / (scale(S) ** 2)[..., None, None]
    out = np.zeros_like(S)
    out[..., :3, :3] = linear
    out[..., :3, 3] = -(linear @ S[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def exp(values: Array) -> Array:
    """Similarities (..., 4, 4) of coordinates (..., 7)."""
    w = values[..., 3:6]
    angle = np.linalg.norm(w, axis=-1)[..., None, None]
    safe = np.maximum(angle, 1e-12)
    W = skew(w)
    R = np.eye(3) + np.sin(safe) / safe * W + 2.0 * (np.sin(0.5 * safe) / safe) ** 2 * (W @ W)
    out = np.zeros((*values.shape[:-1], 4, 4))
    out[..., :3, :3] = R * np.exp(values[..., 6])[..., None, None]
    out[..., :3, 3] = values[..., :3]
    out[..., 3, 3] = 1.0
    return out


def log(S: Array) -> Array:
    """Coordinates (..., 7) of similarities that turn by less than 3 rad."""
    factor = scale(S)
    R = S[..., :3, :3] / factor[..., None, None]
    axis = 0.5 * np.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        axis=-1,
    )
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, 0.5 * (np.trace(R, axis1=-2, axis2=-1) - 1.0))
    w = axis * (angle / np.maximum(sine, 1e-12))[..., None]
    w = np.where(sine[..., None] < 1e-9, axis, w)
    return np.concatenate([S[..., :3, 3], w, np.log(factor)[..., None]], axis=-1)


def adjoint(S: Array) -> Array:
    """(..., 7, 7): small coordinates on the right of S as such on its left, S D(d) = D(Ad d) S."""
    linear, t = S[..., :3, :3], S[..., :3, 3]
    R = linear / scale(S)[..., None, None]
    out = np.zeros((*S.shape[:-2], 7, 7))
    out[..., :3, :3], out[..., 3:6, 3:6] = linear, R
    out[..., :3, 3:6] = skew(t) @ R
    out[..., :3, 6], out[..., 6, 6] = -t, 1.0
    return out


def exact(S: Array) -> Array:
    """Without the rounding that many products leave in the rotations."""
    factor = np.cbrt(np.linalg.det(S[..., :3, :3]))[..., None, None]
    U, _, Vt = np.linalg.svd(S[..., :3, :3] / factor)
    out: Array = S.copy()
    out[..., :3, :3] = factor * (U @ Vt)
    return out


def skew(v: Array) -> Array:
    """Cross-product matrices (..., 3, 3)."""
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out

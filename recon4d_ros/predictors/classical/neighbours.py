"""What points of which nothing is known borrow from those around them in the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Mask

NEIGHBOURS = 5


def typical(uv: Array, at: Array, values: NDArray[np.generic]) -> Array:
    """The median of the values of the nearest points.

    Args:
        uv: (N, 2) px.
        at: (M, 2) px of the points that lend, M >= `NEIGHBOURS`.
        values: (M, ...) theirs.

    Returns:
        (N, ...).
    """
    _, nearest = cKDTree(at).query(uv, k=NEIGHBOURS)
    return np.asarray(np.median(values[nearest], axis=1))


def moving_with(uv: Array, at: Array, moving: Mask) -> Mask:
    """Which points (N,) move because most of those around them do; at (M, 2), moving (M,)."""
    if not moving.any() or len(at) < NEIGHBOURS:
        return np.zeros(len(uv), bool)
    return typical(uv, at, moving) > 0.5

"""What several pairs say together of one frame's depth, and the pixels that are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.geometry import camera

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PixelGrid:
    """A regular grid of pixels.

    Attributes:
        rows, columns: those it takes.
    """

    rows: slice
    columns: slice

    @staticmethod
    def of(size: tuple[int, int], number: int) -> PixelGrid:
        """At most about `number` pixels of images of a size (height, width)."""
        step = max(1, math.ceil(math.sqrt(size[0] * size[1] / number)))
        every = slice(step // 2, None, step)
        return PixelGrid(every, every)

    def take(self, maps: Iterable[Tensor]) -> NDArray[Any]:
        """Values (E, P, ...) of maps (H, W, ...)."""
        found = np.stack([each.numpy()[self.rows, self.columns] for each in maps])
        return found.reshape(len(found), -1, *found.shape[3:])

    def rays(self, intrinsics: Intrinsics) -> Array:
        """(3, P) viewing directions, z = 1."""
        uv = self.take([camera.pixel_grid(intrinsics.size)])[0]
        centred = (uv - [intrinsics.cx, intrinsics.cy]) / [intrinsics.fx, intrinsics.fy]
        return np.vstack([centred.T, np.ones(len(uv))]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FrameDepth:
    """Weighted mean of a frame's depth maps, in the unit of the first one's median depth.

    Attributes:
        total: (H, W) sum of weight times depth.
        weight: (H, W) sum of the logarithms of the confidences, zero where nothing is known.
        grid: pixels of `sampled`.
        num_maps: that were joined.
    """

    total: Array
    weight: Array
    grid: PixelGrid
    num_maps: int

    @staticmethod
    def of(points: Tensor, confidence: Tensor, unit: float, grid: PixelGrid) -> FrameDepth:
        """From the first pointmap (H, W, 3) in the frame's own camera, `unit` its new length."""
        z, weight = _weighed(points, confidence)
        total = cv2.multiply(z, weight, scale=unit)
        return FrameDepth(_single(total), weight, grid, 1)

    def joined(self, points: Tensor, confidence: Tensor, unit: float) -> FrameDepth:
        """With one more pointmap of the same pixels, `unit` of this map long."""
        z, weight = _weighed(points, confidence)
        total = cv2.scaleAdd(cv2.multiply(z, weight), unit, self.total)
        return FrameDepth(_single(total), self.weight + weight, self.grid, self.num_maps + 1)

    def map(self) -> Array:
        """(H, W) z-depth, NaN where unknown."""
        return _over(self.total, self.weight)

    @cached_property
    def sampled(self) -> Array:
        """(P,) the same on the grid."""
        part = self.grid.rows, self.grid.columns
        return _over(self.total[part], self.weight[part]).ravel()


def _over(total: Array, weight: Array) -> Array:
    return _single(total / np.where(weight > 0, weight, np.float32(np.nan)))


def lower_median(values: Array) -> Array:
    """(...) along the last axis, the lower of two middle values; NaN is left out."""
    ordered = np.sort(values, axis=-1)  # NaN last
    middle = (np.isfinite(ordered).sum(axis=-1, keepdims=True) - 1) // 2
    return np.take_along_axis(ordered, middle, axis=-1)[..., 0]


def _weighed(points: Tensor, confidence: Tensor) -> tuple[Array, Array]:
    """Depths and weights (H, W), both zero where there is no depth or no confidence."""
    z = _single(cv2.extractChannel(points.numpy(), 2))
    sure = confidence.numpy()
    # Networks give clean maps, and two bounds are found sooner than a mask is.
    if not (z.min() > 0 and z.max() < np.inf and sure.min() > 1 and sure.max() < np.inf):
        use = (z > 0) & (z < np.inf) & (sure > 1) & (sure < np.inf)
        z, sure = _single(np.where(use, z, 0)), _single(np.where(use, sure, 1))
    return z, _single(cv2.log(sure))


def _single(values: NDArray[Any]) -> Array:
    return np.asarray(values, dtype=np.float32)

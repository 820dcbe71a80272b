"""The camera of the tracking image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon4d_ros.predictors.classical.rigid import Array


@dataclass(frozen=True)
class Pinhole:
    """Camera of the tracking image, px."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: int

    @property
    def focal(self) -> float:
        """Mean focal length."""
        return 0.5 * (self.fx + self.fy)

    def normalised(self, uv: Array) -> Array:
        """Normalised image coordinates of px (..., 2)."""
        return np.asarray((uv - (self.cx, self.cy)) / (self.fx, self.fy))

    def pixels(self, uv: Array) -> Array:
        """Px of normalised image coordinates (..., 2)."""
        return np.asarray(uv * (self.fx, self.fy) + (self.cx, self.cy))

"""The camera of the tracking image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recon4d_ros.predictors.classical.rigid import Array

UNKNOWN = 0.3  # relative standard deviation of a focal length of which nothing is known
_SURE = 0.02  # of one that later windows change little
_LEAST = 0.005  # what the past may claim to know: windows share most of their frames
_GROWTH = 2.0  # of the standard deviation from window to window: tracks err together
_USUAL = 0.4, 2.5  # focal length over the long side: 23 to 103 degrees of view


@dataclass(frozen=True)
class Pinhole:
    """Camera of the tracking image, px.

    Attributes:
        sigma: relative standard deviation of the focal length; 0 if it was given.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    sigma: float = 0.0

    @property
    def focal(self) -> float:
        """Mean focal length."""
        return 0.5 * (self.fx + self.fy)

    @property
    def is_given(self) -> bool:
        """Whether nothing of it is to be learned."""
        return self.sigma == 0

    @property
    def is_sure(self) -> bool:
        """Whether its focal length may be relied on."""
        return self.sigma < _SURE

    def is_usual(self, focal_px: float) -> bool:
        """Whether cameras have such a focal length."""
        share = focal_px / max(self.height, 2.0 * self.cx + 1.0)
        return _USUAL[0] < share < _USUAL[1]

    def learned(self, focal_px: float, sigma: float) -> Pinhole:
        """What the next window is to expect after one that found this; what was held stays."""
        if self.is_given or sigma == 0:
            return self
        factor = focal_px / self.focal
        # Few steps are taken per window: what still moves is not known, however sharp its valley.
        sigma = max(_GROWTH * sigma, abs(float(np.log(factor))))
        bounded = float(np.clip(sigma, _LEAST, UNKNOWN))
        return replace(self, fx=self.fx * factor, fy=self.fy * factor, sigma=bounded)

    def normalised(self, uv: Array) -> Array:
        """Normalised image coordinates of px (..., 2)."""
        return np.asarray((uv - (self.cx, self.cy)) / (self.fx, self.fy))

    def pixels(self, uv: Array) -> Array:
        """Px of normalised image coordinates (..., 2)."""
        return np.asarray(uv * (self.fx, self.fy) + (self.cx, self.cy))

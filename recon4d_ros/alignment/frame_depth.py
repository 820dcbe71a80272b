"""What several pairs say together of one frame's depth, and the pixels that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.pairs import log_confidence
from recon4d_ros.datatypes import Intrinsics, PairPointmaps
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import camera

# Pixels that fix the ratio of two depth maps.
_RATIO_PIXELS = 2000


@dataclass(frozen=True, eq=False)
class FrameDepth:
    """Weighted mean of a frame's depth maps; the unit is the median depth of the first one.

    Attributes:
        total: (H, W) float32 sum of weight times depth.
        weight: (H, W) float32, zero where nothing is known.
    """

    total: Tensor
    weight: Tensor

    @staticmethod
    def of(points: Tensor, confidence: Tensor) -> FrameDepth:
        """From the first pointmap (H, W, 3) in the frame's own camera.

        Raises:
            AlignmentError: not one pixel has a depth and a confidence above 1.
        """
        z, weight = _weighed(points, confidence)
        known = z[weight > 0]
        if len(known) == 0:
            raise AlignmentError(
                "no pixel of a pointmap has a finite depth above zero and a confidence above 1; "
                "expected a pointmap in its own camera and confidences of the DUSt3R family"
            )
        return FrameDepth(weight * z / known.median(), weight)

    def joined(self, points: Tensor, confidence: Tensor) -> FrameDepth:
        """With one more pointmap of the same pixels, whatever its unit."""
        z, weight = _weighed(points, confidence)
        unit = self.unit_of(points)
        if not math.isfinite(unit):
            return self
        return FrameDepth(torch.addcmul(self.total, weight, z, value=unit), self.weight + weight)

    def map(self) -> Tensor:
        """(H, W) float32 z-depth, NaN where unknown."""
        return self.total / torch.where(self.weight > 0, self.weight, torch.nan)

    def unit_of(self, points: Tensor) -> float:
        """This map's unit over that of a pointmap (H, W, 3): the median ratio; NaN for none."""
        grid = _grid(self.total.shape, _RATIO_PIXELS)
        z = points[..., 2][grid]
        ratio = self.total[grid] / (self.weight[grid] * z)
        ratio = ratio[ratio.isfinite() & (ratio > 0)]
        return float(ratio.median()) if len(ratio) else math.nan


@dataclass(frozen=True, eq=False)
class PixelSamples:
    """P pixels of a pair's second frame; weight 0 where not to be used.

    Attributes:
        depth: (P,) in the second frame's own unit.
        target: (P, 3) where the pair sees them.
        matched: (P, 2) direction x / z, y / z by matching, or None.
        weight: (P,).
    """

    depth: Tensor
    target: Tensor
    matched: Tensor | None
    weight: Tensor

    @staticmethod
    def of(
        pair: PairPointmaps, depth: FrameDepth, moving: Tensor | None, number: int
    ) -> PixelSamples:
        """Pixels on a regular grid, at most about `number`; moving ones have no weight."""
        grid = _grid(pair.confidence_2.shape, number)
        target = pair.points_2[grid].reshape(-1, 3)
        z = (depth.total[grid] / depth.weight[grid]).reshape(-1)
        weight = log_confidence(pair.confidence_2[grid]).reshape(-1)
        use = (weight > 0) & (z > 0) & z.isfinite() & target.isfinite().all(dim=-1)
        if moving is not None:
            use &= ~moving[grid].reshape(-1)
        matched = None
        if pair.matching_2 is not None:
            point = pair.matching_2[grid].reshape(-1, 3)
            matched = point[:, :2] / torch.where(point[:, 2:] > 0, point[:, 2:], torch.nan)
            use &= matched.isfinite().all(dim=-1)
            matched = torch.where(use.unsqueeze(-1), matched, 0.0)
        return PixelSamples(
            depth=torch.where(use, z, 1.0),
            target=torch.where(use.unsqueeze(-1), target, 1.0),
            matched=matched,
            weight=torch.where(use, weight, 0.0),
        )


def sampled_rays(intrinsics: Intrinsics, number: int) -> Tensor:
    """(P, 3) viewing directions, z = 1, of the pixels that `PixelSamples.of` takes."""
    uv = camera.pixel_grid(intrinsics.size, torch.float32)[_grid(intrinsics.size, number)]
    return camera.directions(uv.reshape(-1, 2), intrinsics)


def _grid(size: tuple[int, ...], number: int) -> tuple[slice, slice]:
    """Rows and columns of a regular grid of at most about `number` pixels."""
    step = max(1, math.ceil(math.sqrt(size[0] * size[1] / number)))
    every = slice(step // 2, None, step)
    return every, every


def _weighed(points: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    z = points[..., 2].contiguous()
    # Comparisons instead of isfinite, and the logarithm last: this runs over all pixels.
    use = (z > 0) & (z < torch.inf)
    return torch.where(use, z, 0.0), log_confidence(torch.where(use, confidence, 1.0))

"""Random numbers that belong to the number of a clip, whatever batch it comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Seeds of neighbouring clips must not be neighbours: odd multipliers of the golden ratio.
_CLIP_STEP = 0x9E3779B97F4A7C15
_SEED_STEP = 0xD1B54A32D192ED03
_STREAM_STEP = 0x94D049BB133111EB
_MASK = (1 << 63) - 1


class Dice:
    """One stream of random numbers for each of B clips; what is drawn has the clips first."""

    def __init__(self, seed: int, clips: Sequence[int], device: torch.device) -> None:
        self._seeds = [seed * _SEED_STEP + clip * _CLIP_STEP for clip in clips]
        self._generators = [_generator(each) for each in self._seeds]
        self._device = device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) float64 in [low, high)."""
        draws = [
            torch.rand(shape, generator=each, dtype=torch.float64) for each in self._generators
        ]
        return low + (high - low) * torch.stack(draws).to(self._device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) float64 in [low, high), each octave equally likely."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def chance(self, share: float, *shape: int) -> Tensor:
        """(B, *shape) bool, True for this share of the draws."""
        return self.uniform(0.0, 1.0, *shape) < share

    def whole(self, least: int, most: int, *shape: int) -> Tensor:
        """(B, *shape) int64 from `least` to `most`, both included."""
        return self.uniform(least, most + 1, *shape).floor().long().clamp(max=most)

    def choice(self, weights: Sequence[float], *shape: int) -> Tensor:
        """(B, *shape) int64: positions in `weights`, drawn in proportion to them."""
        bounds = torch.tensor(weights, dtype=torch.float64, device=self._device).cumsum(0)
        draws = self.uniform(0.0, 1.0, *shape) * bounds[-1]
        return torch.searchsorted(bounds, draws, right=True).clamp(max=len(weights) - 1)

    def direction(self, *shape: int) -> Tensor:
        """(B, *shape, 3) float64 unit vectors, uniform on the sphere."""
        z = self.uniform(-1.0, 1.0, *shape)
        angle = self.uniform(-math.pi, math.pi, *shape)
        flat = (1.0 - z * z).clamp(min=0.0).sqrt()
        return torch.stack([flat * angle.cos(), flat * angle.sin(), z], dim=-1)

    def normal(self, stream: int, *shape: int) -> Tensor:
        """(B, *shape) float32 standard normal, drawn on the device itself.

        The numbers differ from device to device; `stream` tells draws of one clip apart.
        """
        draws = torch.empty((len(self._seeds), *shape), device=self._device)
        for row, seed in enumerate(self._seeds):
            generator = _generator(seed + stream * _STREAM_STEP, self._device)
            draws[row].normal_(generator=generator)
        return draws


def _generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed & _MASK)

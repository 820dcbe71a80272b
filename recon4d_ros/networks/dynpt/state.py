"""What DynPT refines: where each track is in each frame, and what kind of point it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Logit of what is only guessed to be seen.
_GUESSED = 2.0


@dataclass(frozen=True, eq=False)
class TrackState:
    """N tracks over the T frames of B windows.

    Attributes:
        uv: (B, T, N, 2) float32, px of the images given.
        visibility_logit: (B, T, N) float32.
        confidence_logit: (B, T, N) float32, of the position being near the truth.
        mobility_logit: (B, T, N) float32, of the point moving in the world.
    """

    uv: Tensor
    visibility_logit: Tensor
    confidence_logit: Tensor
    mobility_logit: Tensor

    @classmethod
    def standing(cls, uv: Tensor, num_frames: int) -> TrackState:
        """Tracks (B, N, 2) that stay where they are, with nothing known about them."""
        logit = uv.new_zeros(uv.shape[0], num_frames, uv.shape[1])
        return cls(uv[:, None].repeat(1, num_frames, 1, 1), logit, logit, logit)

    @classmethod
    def guessed(cls, uv: Tensor, is_seen: Tensor) -> TrackState:
        """Tracks (B, T, N, 2) that something else followed, and whether it saw them (B, T, N)."""
        nothing = torch.zeros_like(uv[..., 0])
        return cls(uv, torch.where(is_seen, _GUESSED, -_GUESSED).to(uv), nothing, nothing)

    @property
    def logits(self) -> Tensor:
        """(B, T, N, 3): visibility, confidence, mobility."""
        parts = (self.visibility_logit, self.confidence_logit, self.mobility_logit)
        return torch.stack(parts, dim=-1)

    def detached(self) -> TrackState:
        """The same values, apart from the graph that made them."""
        return self._each(lambda part, _: part.detach())

    def moved(self, step: Tensor, logit_steps: Tensor) -> TrackState:
        """After steps (B, T, N, 2) px, and (B, T, N, 3) of the logits."""
        visibility, confidence, mobility = (self.logits + logit_steps).unbind(dim=-1)
        return TrackState(self.uv + step, visibility, confidence, mobility)

    def clip_mobility(self) -> Tensor:
        """(B, N) logit of the point moving in the window, the mean weighted by visibility."""
        weight = torch.sigmoid(self.visibility_logit)
        return (weight * self.mobility_logit).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)

    def frames(self, which: Tensor) -> TrackState:
        """Those of some frames, (F,) int64."""
        return self._each(lambda part, _: part[:, which])

    def replaced(self, rows: Tensor, other: TrackState) -> TrackState:
        """With the tracks (N,) bool of another state."""
        return self._each(
            lambda part, name: torch.where(
                rows[:, None] if name == "uv" else rows, getattr(other, name), part
            )
        )

    def _each(self, change: Callable[[Tensor, str], Tensor]) -> TrackState:
        names = [field.name for field in fields(self)]
        return TrackState(*(change(getattr(self, name), name) for name in names))

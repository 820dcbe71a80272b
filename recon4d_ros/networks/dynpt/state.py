"""What DynPT refines: where each track is in each frame, and what kind of point it follows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


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

    @property
    def logits(self) -> Tensor:
        """(B, T, N, 3): visibility, confidence, mobility."""
        parts = (self.visibility_logit, self.confidence_logit, self.mobility_logit)
        return torch.stack(parts, dim=-1)

    def detached(self) -> TrackState:
        """The same values, apart from the graph that made them."""
        return TrackState(*(getattr(self, field.name).detach() for field in fields(self)))

    def moved(self, step: Tensor, logit_steps: Tensor) -> TrackState:
        """After steps (B, T, N, 2) px, and (B, T, N, 3) of the logits."""
        visibility, confidence, mobility = (self.logits + logit_steps).unbind(dim=-1)
        return TrackState(self.uv + step, visibility, confidence, mobility)

    def clip_mobility(self) -> Tensor:
        """(B, N) logit of the point moving in the window, the mean weighted by visibility."""
        weight = torch.sigmoid(self.visibility_logit)
        return (weight * self.mobility_logit).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)

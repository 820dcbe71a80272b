"""A point-tracking network asked for given points of a clip, beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.evaluation.trackers import ClipTracks, Methods, baselines

_STRIDE_PX = 16  # the network takes images whose sides are multiples of it
# A point is seen where visibility times confidence is above: CoTracker3's threshold.
SEEN = 0.6


class TrackEstimate(Protocol):
    """What a network says of B clips of T frames with N points."""

    @property
    def uv(self) -> Tensor:
        """Positions (B, T, N, 2), px."""
        ...

    @property
    def visibility_logit(self) -> Tensor:
        """(B, T, N)."""
        ...

    @property
    def confidence_logit(self) -> Tensor:
        """(B, T, N), of the position being near the truth."""
        ...

    def clip_mobility(self) -> Tensor:
        """(B, N) logit of moving in the world."""
        ...


class TrackNetwork(Protocol):
    """Tracks queries (B, N, 3) in images (B, T, 3, H, W) in [-1, 1]; the last answer counts."""

    def __call__(self, rgb: Tensor, queries: Tensor) -> Sequence[TrackEstimate]:
        """One estimate for each refinement."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkTracker:
    """Tracks by a network.

    Attributes:
        network: in evaluation mode.
        device: that it is on.
    """

    network: TrackNetwork
    device: torch.device

    @torch.no_grad()
    def __call__(self, rgb: Tensor, queries: Tensor) -> ClipTracks:
        """Tracks of queries (N, 3) in a clip (T, H, W, 3) uint8."""
        height, width = rgb.shape[1:3]
        images = rgb.to(self.device).movedim(-1, 1).float() / 127.5 - 1.0
        beyond = (0, -width % _STRIDE_PX, 0, -height % _STRIDE_PX)
        padded = functional.pad(images, beyond, mode="replicate")
        most = queries.new_tensor([len(rgb) - 1, width - 1, height - 1])
        # Images are known from the centres of their border pixels on.
        asked = queries.clamp(min=0).minimum(most).to(self.device)
        found = self.network(padded[None], asked[None])[-1]
        seen = found.visibility_logit.sigmoid() * found.confidence_logit.sigmoid() > SEEN
        return ClipTracks(
            uv=found.uv[0].double().cpu(),
            seen=seen[0].cpu(),
            mobility=found.clip_mobility()[0].sigmoid().double().cpu(),
        )


def with_baselines(name: str, tracker: NetworkTracker) -> Methods:
    """The baselines and a network in one table."""

    def methods(rgb: Tensor, queries: Tensor) -> dict[str, ClipTracks]:
        return {**baselines(rgb, queries), name: tracker(rgb, queries)}

    return methods

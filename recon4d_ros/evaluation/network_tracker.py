"""A point-tracking network asked for given points of a clip, beside the baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.evaluation.trackers import ClipTracks, Methods, baselines
from recon4d_ros.networks.dynpt import DynPT
from recon4d_ros.networks.images import network_images
from recon4d_ros.predictors.chained_flow import guessed_tracks

_STRIDE_PX = 16  # the network takes images whose sides are multiples of it
# A point is seen where visibility times confidence is above: CoTracker3's threshold.
SEEN = 0.6


@dataclass(frozen=True, eq=False)
class NetworkTracker:
    """Tracks by a network.

    Attributes:
        network: in evaluation mode.
        device: that it is on.
    """

    network: DynPT
    device: torch.device

    @torch.no_grad()
    def __call__(self, rgb: Tensor, queries: Tensor) -> ClipTracks:
        """Tracks of queries (N, 3) in a clip (T, H, W, 3) uint8."""
        height, width = rgb.shape[1:3]
        images = network_images(rgb.to(self.device))
        beyond = (0, -width % _STRIDE_PX, 0, -height % _STRIDE_PX)
        padded = functional.pad(images, beyond, mode="replicate")
        most = queries.new_tensor([len(rgb) - 1, width - 1, height - 1])
        # Images are known from the centres of their border pixels on.
        asked = queries.clamp(min=0).minimum(most).to(self.device)
        guess = None
        if self.network.config.needs_flow:
            guess = guessed_tracks(rgb[None], asked[None])
        found = self.network(padded[None], asked[None], initial=guess)[-1]
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

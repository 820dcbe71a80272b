"""The exponential average of a network's weights: what is validated and shipped."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class AveragedNetwork(Generic[NetworkT]):
    """A copy of a network that follows its weights slowly.

    Source: Polyak and Juditsky, 1992; the shorter memory of the first steps as in TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, network: NetworkT, share: float) -> None:
        """Start at the network's weights; `share` of the average is what a step leaves."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._share = share

    @torch.no_grad()
    def follow(self, network: NetworkT, step: int) -> None:
        """Take in the weights after step number `step`, counted from 0."""
        share = min(self._share, (1.0 + step) / (10.0 + step))
        for held, new in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if held.is_floating_point():
                held.lerp_(new, 1.0 - share)
            else:
                held.copy_(new)

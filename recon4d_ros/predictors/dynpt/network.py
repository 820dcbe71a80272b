"""What the tracker asks of a network, whatever runs it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recon4d_ros.networks.dynpt import DynPTConfig, FeatureMaps, QuerySupport, TrackState


class TrackNetwork(Protocol):
    """`DynPT`, or the same on ONNX Runtime; see the methods of `DynPT`."""

    config: DynPTConfig

    @property
    def device(self) -> torch.device:
        """Where it wants its inputs."""
        ...

    def encode(self, rgb: Tensor) -> FeatureMaps:
        """Maps of frames (1, T, 3, H, W) in [-1, 1]."""
        ...

    def support(self, maps: FeatureMaps, queries: Tensor) -> QuerySupport:
        """What queries (1, N, 3) look like in frames that the maps hold."""
        ...

    def refine(
        self,
        maps: FeatureMaps,
        support: QuerySupport,
        queries: Tensor,
        *,
        iterations: int | None = None,
        initial: TrackState | None = None,
        valid: Tensor | None = None,
    ) -> tuple[TrackState, ...]:
        """States after each iteration."""
        ...

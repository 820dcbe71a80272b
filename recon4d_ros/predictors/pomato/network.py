"""What the predictor needs of a network, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap


class PointmapNetwork(Protocol):
    """Encoder, decoder and heads of a POMATO network; see `networks/pomato/parts.py`."""

    @property
    def temporal_length(self) -> int | None:
        """Frames of a window; None for a pairwise model."""
        ...

    def encode(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1], sides multiples of 16."""
        ...

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        """Tokens of B pairs; head 1 reads the first, heads 2 and 3 the second."""
        ...

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = 4,
    ) -> Pointmap:
        """Points (B, H, W, 3) in the camera of image 1, and their confidence (B, H, W)."""
        ...

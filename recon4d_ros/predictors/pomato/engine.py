"""Runs a network on its device, in its precision, in batches that fit its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from recon4d_ros.errors import PredictorError
from recon4d_ros.networks.images import network_images
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap
from recon4d_ros.predictors.pomato.network import PointmapNetwork

Result = TypeVar("Result")

LOWER = "lower pomato.long_side, pomato.precision or, with a shorter model, window.size"


class Engine:
    """A network with its device; everything that comes out of `head` lies on the CPU in float32.

    When the device runs out of memory, its caches are freed, the batch is halved for good and the
    work goes on; `num_out_of_memory` counts that.

    Attributes:
        network: what runs.
        device: where images and cached features lie.
        dtype: of cached features, and of the arithmetic.
        batch: pairs or frames that one pass takes at most.
        num_out_of_memory: times that the batch was halved.
    """

    def __init__(
        self,
        network: PointmapNetwork,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch: int = 4,
    ) -> None:
        """Use a network that lies on the device already, its weights in `dtype`."""
        self.network = network
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.batch = batch
        self.num_out_of_memory = 0

    def encode(self, image: Tensor) -> Features:
        """Features (1, N, E) of one image (H, W, 3) uint8, in `dtype`."""
        scaled = network_images(image.to(self.device))[None]
        features = self._fitting(lambda _: self.network.encode(scaled))
        return Features(features.tokens.to(self.dtype), features.grid)

    def decode(self, first: Features, second: Features) -> tuple[HookTokens, HookTokens]:
        """Tokens of both branches; a single `first` is paired with every `second`."""
        num = len(second.tokens)
        if len(first.tokens) != num:
            first = Features(first.tokens.expand(num, -1, -1), first.grid)

        def run(batch: int) -> tuple[HookTokens, HookTokens]:
            parts = [slice(start, start + batch) for start in range(0, num, batch)]
            decoded = [self.network.decode(first[part], second[part]) for part in parts]
            tokens1, tokens2 = (HookTokens.cat(tokens) for tokens in zip(*decoded, strict=True))
            return tokens1, tokens2

        return self._fitting(run)

    def head(
        self, number: int, tokens: HookTokens, frames: Sequence[int] | None = None
    ) -> Pointmap:
        """Points and confidence of one head on the CPU."""
        run = lambda batch: self.network.head(number, tokens, frames, batch)  # noqa: E731
        points, conf = self._fitting(run)
        return Pointmap(points.float().cpu(), conf.float().cpu())

    def _fitting(self, run: Callable[[int], Result]) -> Result:
        """Run with the largest batch that fits.

        Raises:
            PredictorError: not even a batch of one fits.
        """
        while True:
            try:
                with torch.no_grad():
                    return run(self.batch)
            except torch.cuda.OutOfMemoryError as error:
                self._give_way(error)

    def _give_way(self, error: Exception) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch == 1:
            raise PredictorError(
                f"{self.device} has too little memory for one pair of images; {LOWER}"
            ) from error
        self.batch //= 2
        self.num_out_of_memory += 1

"""What a trainer needs to know of what it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from recon4d_ros.datatypes.clips import Clips


class Task(Protocol):
    """A network with its losses, its figures and its file; the trainer knows nothing else of it.

    Attributes:
        kind: the word of the command line.
        LIMITS: of its networks, in words, for the page beside the weights.
        network: what is trained, on the device of the training; parameters that need no gradient
            stay as they are.
    """

    kind: ClassVar[str]
    LIMITS: ClassVar[str]
    network: nn.Module

    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        """Weighted terms () of the loss of `network`, float32; their sum is the loss.

        Draws come from torch's generator, which the trainer seeds before each step.
        """

    def figures(self, network: nn.Module, batches: Iterable[Clips]) -> dict[str, float]:
        """How good a network of this kind is on held-out clips."""

    def export(self, network: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
        """Write the weights as fp16 safetensors, with the facts where the format takes them."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs; precision is fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

"""POMATO on ONNX Runtime: the parts of `PomatoNet`, from a folder that `recon4d export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.onnx_session import CPU, Session, check_providers
from recon4d_ros.networks.pomato.dpt_head import DEFAULT_CHUNK, Pointmap
from recon4d_ros.networks.pomato.onnx_folder import (
    DECODER,
    ENCODER,
    OnnxDescription,
    coarse_part,
    fine_part,
    read_description,
)
from recon4d_ros.networks.pomato.parts import HEADS, check_heads, check_images
from recon4d_ros.networks.pomato.tokens import Features, HookTokens


class OnnxPomato:
    """Encoder, decoder and heads, pairwise or temporal, called like those of `PomatoNet`.

    Attributes:
        description: what was exported, with its measured errors.
        device: where results are; inputs from elsewhere are copied there.
    """

    def __init__(self, description: OnnxDescription, sessions: dict[str, Session]) -> None:
        """Use `from_folder`."""
        self.description = description
        self.device = sessions[ENCODER].device
        self._sessions = sessions

    @classmethod
    def from_folder(
        cls, path: Path | str, providers: Sequence[str] = (CPU,), heads: Sequence[int] = HEADS
    ) -> OnnxPomato:
        """Load an exported network.

        Args:
            path: folder written by `recon4d export`.
            providers: execution providers of ONNX Runtime by preference; each must load.
            heads: numbers of the heads to load; the others cannot be called.

        Raises:
            ModelError: the folder is incomplete or damaged, or a provider does not load.
            MissingPrerequisiteError: ONNX Runtime is not installed.
        """
        check_heads(heads)
        folder = Path(path)
        description = read_description(folder, part_names(heads))
        check_providers(providers)
        return cls(description, load_sessions(folder, providers, heads))

    @property
    def temporal_length(self) -> int | None:
        """Frames of a window; None for the pairwise model."""
        return self.description.temporal_length

    def encode(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1], of the size that was exported.

        Raises:
            ModelError: the images have another size.
        """
        check_images(images, 4, "(B, 3, H, W)")
        exported = self.description.height, self.description.width
        if tuple(images.shape[-2:]) != exported:
            raise ModelError(
                f"images are {images.shape[-2]} x {images.shape[-1]}, the network was exported "
                f"for {exported[0]} x {exported[1]}; resize them, or export with --height, --width"
            )
        (tokens,) = self._sessions[ENCODER](images)
        return Features(tokens, self.description.grid)

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        """Tokens of both branches for B pairs; head 1 reads the first, heads 2 and 3 the second.

        Raises:
            ModelError: the numbers of images differ or their size is not the exported one.
        """
        num1, num2 = len(features1.tokens), len(features2.tokens)
        if num1 != num2:
            raise ModelError(f"got {num1} first and {num2} second images; expected pairs")
        self._check_grid(features1)
        self._check_grid(features2)
        decoder, grid = self._sessions[DECODER], self.description.grid
        a2, a3, a4, b2, b3, b4 = decoder(features1.tokens, features2.tokens)
        first, second = (
            features.tokens.to(self.device, a2.dtype) for features in (features1, features2)
        )
        return HookTokens((first, a2, a3, a4), grid), HookTokens((second, b2, b3, b4), grid)

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> Pointmap:
        """Points (B, H, W, 3) and confidence (B, H, W) of one head, see `PomatoNet.head`.

        Raises:
            ModelError: the head was not loaded or the tokens are no whole number of windows.
        """
        if coarse_part(number) not in self._sessions:
            raise ModelError(f"head {number} is not loaded; name it in `from_folder(heads=...)`")
        num_frames = self.temporal_length or 1
        if len(tokens) == 0 or len(tokens) % num_frames:
            raise ModelError(
                f"a head got tokens of {len(tokens)} pairs; expected windows of {num_frames}"
            )
        self._check_grid(tokens)
        (path,) = self._sessions[coarse_part(number)](*tokens.levels[2:])
        rows = torch.arange(len(tokens), device=self.device)
        if frames is not None:
            rows = rows.view(-1, num_frames)[:, list(frames)].flatten()
        fine = self._sessions[fine_part(number)]
        parts = [
            fine(tokens.levels[0][some], tokens.levels[1][some], path[some])
            for some in torch.split(rows, chunk)
        ]
        points, conf = (torch.cat(maps) for maps in zip(*parts, strict=True))
        return Pointmap(points, conf)

    def _check_grid(self, tokens: Features | HookTokens) -> None:
        if tokens.grid != self.description.grid:
            raise ModelError(
                f"tokens are of a grid {tokens.grid}, the network was exported for "
                f"{self.description.grid}; encode the images with the same network"
            )


def part_names(heads: Sequence[int]) -> list[str]:
    """Names of the parts that a network with these heads consists of."""
    return [ENCODER, DECODER, *(part(head) for head in heads for part in (coarse_part, fine_part))]


def load_sessions(
    folder: Path, providers: Sequence[str], heads: Sequence[int] = HEADS
) -> dict[str, Session]:
    """Sessions of all parts; the files themselves are not compared with the description.

    Raises:
        ModelError: a file cannot be loaded, or not on every one of the providers.
    """
    return {part: Session(folder / f"{part}.onnx", providers) for part in part_names(heads)}

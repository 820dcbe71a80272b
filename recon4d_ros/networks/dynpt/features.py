"""The encoders of DynPT: a CNN for where a point is, a coarse branch for what the scene is.

Frames are encoded one by one, so the maps of a frame can be kept from window to window.
Source of the CNN's layout: Karaev et al., CoTracker, arXiv 2307.07635, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt.sizes import PATCH, STRIDE, DynPTConfig

# Instance norm on the few cells of a coarse map would erase them; groups of channels do not.
_CHANNELS_PER_GROUP = 8
_BLOCKS = 2

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """Maps of B x T frames, channels last.

    Attributes:
        levels: (B, T, h, w, C) of unit length per cell; the cells of level i are 4 * 2^i px wide.
        context: (B, T, H/16, W/16, E) of the 3D-aware branch, or None where there is none.
    """

    levels: tuple[Tensor, ...]
    context: Tensor | None

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.levels[0].shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) px of the images that the maps were made of."""
        height, width = self.levels[0].shape[2:4]
        return STRIDE * height, STRIDE * width

    def frames(self, which: slice | Sequence[int]) -> FeatureMaps:
        """Those of some frames."""
        context = None if self.context is None else self.context[:, which]
        return FeatureMaps(tuple(level[:, which] for level in self.levels), context)

    @classmethod
    def joined(cls, parts: Sequence[FeatureMaps]) -> FeatureMaps:
        """The frames of several, one after the other."""
        levels = zip(*(part.levels for part in parts), strict=True)
        contexts = [part.context for part in parts if part.context is not None]
        context = torch.cat(contexts, dim=1) if contexts else None
        return cls(tuple(torch.cat(level, dim=1) for level in levels), context)


class FeatureEncoder(nn.Module):
    """Images (F, 3, H, W) in [-1, 1] to the maps of F frames, channels last."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.feature_width
        needs_trunk = config.has_cnn or not config.needs_tokens
        # Without the CNN's own features nothing reads the trunk's coarsest scale.
        scales = config.trunk_widths if config.has_cnn else config.trunk_widths[:3]
        self.trunk = Trunk(scales) if needs_trunk else None
        self.cnn = PixelHead(config.trunk_widths, width) if config.has_cnn else None
        self.context = _context_branch(config) if config.has_context else None
        self.fusion = Fusion(config) if config.has_context else None

    def forward(
        self, images: Tensor, tokens: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Levels of the pyramid (F, h, w, C), and the context (F, H/16, W/16, E).

        Raises:
            ModelError: the size is no multiple of 16, or tokens are missing or do not fit.
        """
        self._check(images, tokens)
        scales = [] if self.trunk is None else self.trunk(images)
        fused, context = self._fused(scales, images, tokens)
        levels = [functional.normalize(fused.float(), dim=1)]
        for _ in range(self.config.levels - 1):
            levels.append(functional.avg_pool2d(levels[-1], 2))
        rows = [level.movedim(1, -1).contiguous() for level in levels]
        return rows, None if context is None else context.movedim(1, -1).contiguous()

    def _fused(
        self, scales: list[Tensor], images: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The map at stride 4 and the context, channels first."""
        pixel: Any = None if self.cnn is None else self.cnn(scales)
        if self.context is None or self.fusion is None:
            return pixel, None
        coarse = scales[2] if tokens is None else tokens_as_map(tokens, images)
        context = self.context(coarse)
        return self.fusion(pixel, context), context

    def _check(self, images: Tensor, tokens: Tensor | None) -> None:
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH or min(height, width) < _least_side(self.config):
            raise ModelError(
                f"images are {height} x {width}; expected multiples of {PATCH} of at least "
                f"{_least_side(self.config)}: resize them first"
            )
        if self.config.needs_tokens != (tokens is not None):
            needs = "needs" if self.config.needs_tokens else "takes no"
            raise ModelError(f"this network {needs} tokens of a 3D-aware encoder")


def _least_side(config: DynPTConfig) -> int:
    return max(PATCH, STRIDE << (config.levels - 1))


def tokens_as_map(tokens: Tensor, images: Tensor) -> Tensor:
    """Tokens (F, P, E), row by row, as a map (F, E, H/16, W/16).

    Raises:
        ModelError: their number does not fit the images.
    """
    rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    if tokens.ndim != 3 or tokens.shape[:2] != (len(images), rows * columns):
        raise ModelError(
            f"tokens have shape {tuple(tokens.shape)}; expected ({len(images)}, "
            f"{rows * columns}, channels), one for each patch of {PATCH} px of the same images"
        )
    return torch.unflatten(tokens.mT, -1, (rows, columns))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input passes by; the first may halve the map."""

    def __init__(self, source: int, target: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(source, target, 3, stride, padding=1)
        self.norm1 = norm(target)
        self.conv2 = nn.Conv2d(target, target, 3, padding=1)
        self.norm2 = norm(target)
        is_plain = stride == 1 and source == target
        self.passing = nn.Identity() if is_plain else nn.Conv2d(source, target, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (F, C, h, w) to (F, C', h', w')."""
        inner = functional.relu(self.norm1(self.conv1(maps)))
        inner = functional.relu(self.norm2(self.conv2(inner)))
        return functional.relu(self.passing(maps) + inner)


def _stage(source: int, target: int, stride: int, norm: Norm) -> nn.Sequential:
    rest = [ResidualBlock(target, target, 1, norm) for _ in range(_BLOCKS - 1)]
    return nn.Sequential(ResidualBlock(source, target, stride, norm), *rest)


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(max(1, width // _CHANNELS_PER_GROUP), width)


class Trunk(nn.Module):
    """Images (F, 3, H, W) to maps at strides 2, 4, 8 and 16, as many as there are widths."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 7, 2, padding=3)
        self.norm = nn.InstanceNorm2d(widths[0])
        norms: list[Norm] = [nn.InstanceNorm2d] * 3 + [_group_norm]
        stages = zip((widths[0], *widths), widths, (1, 2, 2, 2), norms, strict=False)
        self.stages = nn.ModuleList([_stage(*stage) for stage in stages])

    def forward(self, images: Tensor) -> list[Tensor]:
        """All scales, the finest first."""
        maps = functional.relu(self.norm(self.first(images)))
        scales = []
        for stage in self.stages:
            maps = stage(maps)
            scales.append(maps)
        return scales


class PixelHead(nn.Module):
    """The scales of the trunk brought together at stride 4: (F, C, H/4, W/4)."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(sum(widths), 2 * width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(2 * width)
        self.out = nn.Conv2d(2 * width, width, 1)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Resize, join and project."""
        finest, *coarse = scales[1], *scales[2:]
        size = finest.shape[-2:]
        maps = [functional.avg_pool2d(scales[0], 2), finest]
        maps += [
            functional.interpolate(_wide(scale), size, mode="bilinear", align_corners=False)
            for scale in coarse
        ]
        out: Tensor = self.out(functional.relu(self.norm(self.join(torch.cat(maps, dim=1)))))
        return out


def _wide(maps: Tensor) -> Tensor:
    """The same maps; on a GPU in the memory order of which it resizes all channels at once."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.is_cuda else maps


def _context_branch(config: DynPTConfig) -> nn.Module:
    """Tokens, or the trunk's maps at stride 8, to (F, E, H/16, W/16)."""
    width = config.context_width
    if config.context == "tokens":
        return TokenProjection(config.token_width, width)
    return nn.Sequential(
        _stage(config.trunk_widths[2], width, 2, _group_norm),
        _stage(width, width, 1, _group_norm),
    )


class TokenProjection(nn.Module):
    """Tokens of a frozen encoder as a map, normalised and narrowed."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(source)
        self.linear = nn.Linear(source, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(F, source, h, w) to (F, width, h, w)."""
        narrowed: Tensor = self.linear(self.norm(tokens.movedim(1, -1)))
        return narrowed.movedim(-1, 1)


class Fusion(nn.Module):
    """Features of both encoders as one map at stride 4.

    The CNN's pass by, and the context's part of the weights starts at zero: training begins as a
    plain CNN tracker and an uninformative context costs no precision.
    """

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        width = config.feature_width
        self.from_context = nn.Conv2d(config.context_width, width, 1)
        self.from_cnn = nn.Conv2d(width, width, 1) if config.has_cnn else None
        if config.has_cnn:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, pixel: Tensor | None, context: Tensor) -> Tensor:
        """Maps (F, C, h, w), or None, and (F, E, h/4, w/4) to (F, C, h, w)."""
        # A 1 x 1 convolution and bilinear resizing commute; the coarse map has fewer cells.
        coarse = functional.interpolate(
            self.from_context(context),
            scale_factor=PATCH // STRIDE,
            mode="bilinear",
            align_corners=False,
        )
        if pixel is None or self.from_cnn is None:
            return coarse
        fused: Tensor = pixel + self.from_cnn(pixel) + coarse
        return fused

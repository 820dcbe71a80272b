"""Dense head: four levels of tokens to a pointmap with confidence at the image's resolution.

Source: Ranftl et al., Vision Transformers for Dense Prediction, arXiv 2103.13413, section 3; the
output as in Wang et al., DUSt3R, arXiv 2312.14132, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato.motion_module import MotionModule
from recon4d_ros.networks.pomato.rope import Grid
from recon4d_ros.networks.pomato.sizes import PomatoSizes
from recon4d_ros.networks.pomato.tokens import HookTokens

# Frames whose last convolutions are evaluated together: they need by far the most memory.
DEFAULT_CHUNK = 4
# Below this length a raw vector has no direction.
_TINY = 1e-8


class Pointmap(NamedTuple):
    """Points (B, H, W, 3) and their confidence (B, H, W), above 1."""

    points: Tensor
    conf: Tensor


def activate(raw: Tensor) -> Pointmap:
    """Pointmap of a raw map (B, 4, H, W): a vector whose length is a log distance, log confidence.

    Half precision is left here: the exponential would overflow in it.
    """
    full = raw.to(torch.promote_types(raw.dtype, torch.float32)).movedim(1, -1)
    vector = full[..., :3]
    length = vector.norm(dim=-1, keepdim=True)
    return Pointmap(vector / length.clamp(min=_TINY) * length.expm1(), 1.0 + full[..., 3].exp())


class PointmapHead(nn.Module):
    """A DPT head with its output activation."""

    def __init__(self, sizes: PomatoSizes) -> None:
        super().__init__()
        self.dpt = DptHead(sizes)

    def forward(
        self,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> Pointmap:
        """See `DptHead.forward`."""
        return activate(self.dpt(tokens, frames, chunk))


class DptHead(nn.Module):
    """Tokens to raw maps of 4 channels, in two stages.

    The coarse stage holds the motion modules and so needs whole windows; the fine stage, which
    is most of the work, sees each frame by itself.
    """

    def __init__(self, sizes: PomatoSizes) -> None:
        super().__init__()
        self.temporal_length = sizes.temporal_length
        width, feature, (a, b, c, d) = sizes.decoder_width, sizes.feature_width, sizes.level_widths
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(sizes.encoder_width, a, 1), nn.ConvTranspose2d(a, a, 4, stride=4)
                ),
                nn.Sequential(nn.Conv2d(width, b, 1), nn.ConvTranspose2d(b, b, 2, stride=2)),
                nn.Sequential(nn.Conv2d(width, c, 1)),
                nn.Sequential(nn.Conv2d(width, d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1)),
            ]
        )
        self.scratch = Scratch(sizes.level_widths, feature)
        self.head = nn.Sequential(
            nn.Conv2d(feature, sizes.head_widths[0], 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(*sizes.head_widths, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(sizes.head_widths[1], 4, 1),
        )
        if sizes.temporal_length is not None:
            self.motion_modules = nn.ModuleList(
                MotionModule(channels, sizes.temporal_length)
                for channels in (width, width, feature, feature)
            )

    def forward(
        self,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> Tensor:
        """Raw maps (B, 4, H, W).

        Args:
            tokens: of B pairs; for a temporal model whole windows, the frame running fastest.
            frames: places in the window whose maps are wanted, all if None; the fine stage is
                spared for the others. A pairwise model has windows of one frame.
            chunk: frames in the fine stage at a time; bounds memory and changes no result.

        Raises:
            ModelError: the tokens are no whole number of windows.
        """
        num_frames = self.temporal_length or 1
        if len(tokens) == 0 or len(tokens) % num_frames:
            raise ModelError(
                f"a head got tokens of {len(tokens)} pairs; expected windows of {num_frames}"
            )
        maps = [self._as_maps(level, tokens.grid) for level in tokens.levels]
        coarse = self.coarse(maps[2], maps[3], tokens.grid)
        fine = [maps[0], maps[1], coarse]
        if frames is not None:
            fine = [_of_frames(maps, num_frames, frames) for maps in fine]
        chunks = zip(*(torch.split(maps, chunk) for maps in fine), strict=True)
        return torch.cat([self.fine(*parts) for parts in chunks])

    def _as_maps(self, level: Tensor, grid: Grid) -> Tensor:
        # Tokens of an encoder under autocast may meet a head outside of it, in full precision.
        if not torch.is_autocast_enabled(level.device.type):
            level = level.to(self.scratch.refinenet1.out_conv.weight.dtype)
        return torch.unflatten(level.mT, -1, grid)

    def coarse(self, third: Tensor, fourth: Tensor, grid: Grid) -> Tensor:
        """Maps (B, C, 2 n_h, 2 n_w) of the two coarser levels, frames of a window mixed."""
        scratch = self.scratch
        fourth = self._mix(0, fourth)
        third = self._mix(1, third)
        path = scratch.refinenet4(scratch.layer_rn[3](self.act_postprocess[3](fourth)))
        # Twice the rounded-up half of an odd grid is one row or column too many.
        path = self._mix(2, path[..., : grid[0], : grid[1]])
        path = scratch.refinenet3(path, scratch.layer_rn[2](self.act_postprocess[2](third)))
        return self._mix(3, path)

    def fine(self, first: Tensor, second: Tensor, path: Tensor) -> Tensor:
        """Raw maps (B, 4, H, W) of the two finer levels and the result of the coarse stage."""
        scratch = self.scratch
        path = scratch.refinenet2(path, scratch.layer_rn[1](self.act_postprocess[1](second)))
        path = scratch.refinenet1(path, scratch.layer_rn[0](self.act_postprocess[0](first)))
        raw: Tensor = self.head(path)
        return raw

    def _mix(self, number: int, maps: Tensor) -> Tensor:
        if self.temporal_length is None:
            return maps
        mixed: Tensor = self.motion_modules[number](maps)
        return mixed


def _of_frames(maps: Tensor, num_frames: int, frames: Sequence[int]) -> Tensor:
    # A list as an index would go to a GPU as a tensor, for which the host waits.
    clips = torch.unflatten(maps, 0, (-1, num_frames))
    rows = [clip[frame, None] for clip in clips for frame in frames]
    return torch.cat(rows) if rows else maps[:0]


class Scratch(nn.Module):
    """Where a head joins its levels, the coarsest first."""

    def __init__(self, level_widths: Sequence[int], feature: int) -> None:
        super().__init__()
        self.layer_rn = nn.ModuleList(
            nn.Conv2d(width, feature, 3, padding=1, bias=False) for width in level_widths
        )
        self.refinenet1 = Fusion(feature)
        self.refinenet2 = Fusion(feature)
        self.refinenet3 = Fusion(feature)
        self.refinenet4 = Fusion(feature)


class Fusion(nn.Module):
    """Adds a level to the path (B, C, h, w), refines both and doubles the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        # Never used in refinenet4, but part of every checkpoint.
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, path: Tensor, level: Tensor | None = None) -> Tensor:
        """Maps (B, C, 2h, 2w)."""
        if level is not None:
            path = self.resConfUnit1(level).add_(path)
        # A 1x1 convolution commutes with bilinear interpolation and costs a quarter before it.
        path = self.out_conv(self.resConfUnit2(path))
        return functional.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around the identity; the shape is kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the refinement."""
        # What a convolution gave is nobody else's: no second map of its size is needed.
        inner = functional.relu(self.conv1(functional.relu(x)), inplace=True)
        out: Tensor = self.conv2(inner).add_(x)
        return out

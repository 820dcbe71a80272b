"""The pictures that all clips take their surfaces from, with halved copies, in one large image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.synthetic import textures
from recon4d_ros.synthetic.scene import Pattern, Texture

_SMALLEST = 8


@dataclass(frozen=True, eq=False)
class Library:
    """An atlas of periodic pictures.

    Attributes:
        atlas: (1, 3, H, W) float32 in [0, 1]; every picture has a border of one texel that
            repeats its other side.
        left, top: (L,) where the picture of each level begins within its shelf, texels.
        edge: (L,) of the level.
        shelf: height of one picture with its copies, texels.
        largest: edge of the pictures themselves, texels.
    """

    atlas: Tensor
    left: Tensor
    top: Tensor
    edge: Tensor
    shelf: int
    largest: float

    def sample(self, texture: Tensor, uv: tuple[Tensor, Tensor], level: Tensor) -> Tensor:
        """Colours (3, P) float32, blended between the two levels next to `level`.

        Args:
            texture: (P,) int64, which picture.
            uv: two of (P,), tiles; whole numbers fall on the same place.
            level: (P,) logarithm to base 2 of the pixel's footprint in texels.
        """
        last = len(self.edge) - 1
        level = level.clamp(0.0, float(last))
        fine = level.floor()
        shelf = texture.float().mul_(self.shelf)
        inside = (uv[0] - uv[0].floor(), uv[1] - uv[1].floor())
        first = self._at(shelf, inside, fine.int())
        second = self._at(shelf, inside, (fine.int() + 1).clamp_(max=last))
        return first.lerp_(second, level.sub_(fine))

    def _at(self, shelf: Tensor, inside: tuple[Tensor, Tensor], level: Tensor) -> Tensor:
        """Bilinear colours (3, P) of one level."""
        edge = self.edge.index_select(0, level)
        height, width = self.atlas.shape[2:]
        # Coordinates of texel centres are half numbers, which is what grid_sample counts in.
        x = torch.addcmul(self.left.index_select(0, level), inside[0], edge)
        y = torch.addcmul(self.top.index_select(0, level), inside[1], edge).add_(shelf)
        grid = torch.stack([x.mul_(2.0 / width).sub_(1.0), y.mul_(2.0 / height).sub_(1.0)], dim=-1)
        colours = functional.grid_sample(self.atlas, grid.view(1, 1, -1, 2), align_corners=False)
        return colours.view(3, -1)


@lru_cache(maxsize=4)
def library(count: int, size: int, seed: int, device: torch.device) -> Library:
    """Paint `count` pictures of `size` texels; the families take turns."""
    families = tuple(Pattern)
    pictures = [
        textures.paint(Texture(families[n % len(families)], seed * 1009 + n, 1.0, resolution=size))
        for n in range(count)
    ]
    levels = [torch.stack(pictures).permute(0, 3, 1, 2)]
    while levels[-1].shape[-1] > _SMALLEST:
        levels.append(functional.avg_pool2d(levels[-1], 2))
    left, top = _places([level.shape[-1] for level in levels])
    shelf = size + 2
    atlas = torch.zeros((count, 3, shelf, left[-1] + levels[1].shape[-1] + 1))
    for level, x, y in zip(levels, left, top, strict=True):
        edge = level.shape[-1] + 2
        framed = functional.pad(level, (1, 1, 1, 1), mode="circular")
        atlas[:, :, y - 1 : y - 1 + edge, x - 1 : x - 1 + edge] = framed
    stacked = atlas.permute(1, 0, 2, 3).reshape(1, 3, count * shelf, -1)
    edges = [float(level.shape[-1]) for level in levels]
    return Library(
        stacked.contiguous().to(device),
        torch.tensor(left, dtype=torch.float32, device=device),
        torch.tensor(top, dtype=torch.float32, device=device),
        torch.tensor(edges, device=device),
        shelf,
        edges[0],
    )


def _places(edges: list[int]) -> tuple[list[int], list[int]]:
    """First texels of the levels: the largest at the left, the others beside it in a column."""
    left, top = [1], [1]
    below = 1
    for edge in edges[1:]:
        left.append(edges[0] + 3)
        top.append(below)
        below += edge + 2
    return left, top

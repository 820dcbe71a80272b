"""Periodic textures rich in corners at several scales, and their filtered sampling.

A texture is baked once into a pyramid of halved copies. Sampling blends the two levels whose
pixels are nearest to the footprint of the image's pixel on the surface, so that far and slanted
surfaces do not alias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.synthetic.scene import Pattern, Texture


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A texture and its halved copies, one after the other.

    Attributes:
        texels: (sum of size^2, 3) float32 in [0, 1], rows first within a level.
        starts: (L,) int64, first texel of each level.
        sizes: (L,) int64, edge of each level in texels.
    """

    texels: Tensor
    starts: Tensor
    sizes: Tensor


@lru_cache(maxsize=64)
def bake(texture: Texture) -> Pyramid:
    """Paint a texture and halve it down to one texel."""
    level = paint(texture).permute(2, 0, 1)
    levels = [level]
    while level.shape[-1] > 1:
        level = functional.avg_pool2d(level, 2)
        levels.append(level)
    sizes = torch.tensor([each.shape[-1] for each in levels])
    texels = torch.cat([each.flatten(1).T for each in levels]).contiguous()
    starts = torch.cumsum(sizes * sizes, dim=0) - sizes * sizes
    return Pyramid(texels, starts, sizes)


def paint(texture: Texture) -> Tensor:
    """Picture (R, R, 3) float32 in [0, 1], periodic in both directions."""
    generator = torch.Generator().manual_seed(texture.seed)
    size = texture.resolution
    picture = _PAINTERS[texture.pattern](size, generator)
    picture = picture + 0.35 * (_noise(size, generator, first=16) - 0.5)
    tinted: Tensor = picture.clamp(0.05, 0.95) * torch.tensor(texture.tint)
    return tinted


def sample(pyramid: Pyramid, uv: Tensor, footprint: Tensor) -> Tensor:
    """Filtered colours (P, 3) float32.

    Args:
        pyramid: the baked texture.
        uv: (P, 2) float32, in tiles; whole numbers fall on the same place.
        footprint: (P,) float32, width of the image's pixel on the surface, in tiles.
    """
    last = len(pyramid.sizes) - 1
    wanted = torch.log2(footprint * float(pyramid.sizes[0])).clamp(0.0, float(last))
    lower = wanted.floor()
    fine = lower.long()
    blend = (wanted - lower).unsqueeze(-1)
    coarse = (fine + 1).clamp(max=last)
    return torch.lerp(_bilinear(pyramid, uv, fine), _bilinear(pyramid, uv, coarse), blend)


def _bilinear(pyramid: Pyramid, uv: Tensor, level: Tensor) -> Tensor:
    size = pyramid.sizes[level]
    start = pyramid.starts[level]
    texel = uv * size.unsqueeze(-1) - 0.5
    corner = texel.floor()
    fx, fy = (texel - corner).unsqueeze(-1).unbind(1)
    x, y = corner.long().unbind(-1)
    # Sizes are powers of two, so wrapping around is a mask of bits.
    wrap = size - 1
    left, right = x & wrap, (x + 1) & wrap
    top = start + (y & wrap) * size
    bottom = start + ((y + 1) & wrap) * size
    upper = torch.lerp(pyramid.texels[top + left], pyramid.texels[top + right], fx)
    lower = torch.lerp(pyramid.texels[bottom + left], pyramid.texels[bottom + right], fx)
    return torch.lerp(upper, lower, fy)


def _noise(size: int, generator: torch.Generator, first: int = 4) -> Tensor:
    """Octaves of smooth coloured noise (R, R, 3), from `first` cells per tile to single texels."""
    total = torch.zeros(3, size, size)
    strength, cells = 1.0, first
    while cells <= size:
        grid = torch.rand((1, 3, cells, cells), generator=generator)
        grid = 0.85 * grid.mean(dim=1, keepdim=True) + 0.15 * grid
        total += strength * _enlarge(grid - 0.5, size)
        strength, cells = strength * 0.75, cells * 2
    return (0.5 + total).clamp(0.0, 1.0).permute(1, 2, 0)


def _enlarge(grid: Tensor, size: int) -> Tensor:
    """Periodic bicubic enlargement of (1, C, n, n) to (C, size, size)."""
    cells = grid.shape[-1]
    margin = min(2, cells)
    padded = functional.pad(grid, (margin,) * 4, mode="circular")
    scale = size // cells
    big = functional.interpolate(padded, scale_factor=scale, mode="bicubic")
    inner = slice(margin * scale, margin * scale + size)
    return big[0, :, inner, inner]


def _patches(size: int, generator: torch.Generator) -> Tensor:
    """Rectangles of random colours; the small ones lie on the large ones."""
    picture = _colours(1, generator).expand(size, size, 3).clone()
    count = 700
    shares = torch.linspace(0.0, 1.0, count)
    largest, smallest = size / 4.0, size / 100.0
    edges = largest * (smallest / largest) ** shares
    aspect = 0.5 + torch.rand((count, 2), generator=generator)
    extents = (edges.unsqueeze(-1) * aspect).long().clamp(min=2)
    places = torch.randint(size, (count, 2), generator=generator)
    for colour, extent, place in zip(_colours(count, generator), extents, places, strict=True):
        rows = torch.arange(int(place[0]), int(place[0] + extent[0])) % size
        columns = torch.arange(int(place[1]), int(place[1] + extent[1])) % size
        picture[rows.unsqueeze(-1), columns] = colour
    return picture


def _checker(size: int, generator: torch.Generator) -> Tensor:
    """Two grids of light and dark cells, 8 and 32 per tile, each cell of its own shade."""
    return 0.6 * _cells(size, 8, generator) + 0.4 * _cells(size, 32, generator)


def _cells(size: int, cells: int, generator: torch.Generator) -> Tensor:
    row = torch.arange(cells)
    dark = ((row.unsqueeze(-1) + row) % 2).float().unsqueeze(-1)
    shade = 0.2 + 0.45 * dark + 0.25 * torch.rand((cells, cells, 1), generator=generator)
    shade = shade.expand(cells, cells, 3)
    return shade.repeat_interleave(size // cells, 0).repeat_interleave(size // cells, 1)


def _stripes(size: int, generator: torch.Generator) -> Tensor:
    """Bands cut into bricks of random colours, so that no band slides along itself unseen."""
    rows = 16
    height = size // rows
    picture = torch.empty(size, size, 3)
    for row in range(rows):
        count = 2 ** int(torch.randint(2, 5, (1,), generator=generator))
        bricks = _colours(count, generator).repeat_interleave(size // count, 0)
        shift = int(torch.randint(size, (1,), generator=generator))
        picture[row * height : (row + 1) * height] = bricks.roll(shift, 0)
    return picture


def _polygons(size: int, generator: torch.Generator) -> Tensor:
    """Cells around random points, each of its own colour: large ones cut by small ones."""
    return 0.6 * _cells_around(size, 40, generator) + 0.4 * _cells_around(size, 400, generator)


def _cells_around(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Voronoi cells of `count` random points, periodic."""
    points = torch.rand((count, 2), generator=generator)
    axis = (torch.arange(size) + 0.5) / size
    away = (axis[:, None, None] - points) % 1.0
    squared = torch.minimum(away, 1.0 - away).square()
    nearest = (squared[:, None, :, 1] + squared[None, :, :, 0]).argmin(dim=-1)
    return _colours(count, generator)[nearest]


def _discs(size: int, generator: torch.Generator) -> Tensor:
    """Discs of random sizes that fell like leaves, large and small: edges as in photographs."""
    picture = _colours(1, generator).expand(size, size, 3).clone()
    count = 300
    # Areas fall as radius^-3, which makes the picture look alike at every scale.
    radius = 0.015 / (1.0 - 0.99 * torch.rand(count, generator=generator)).sqrt()
    centre = torch.rand((count, 2), generator=generator)
    axis = (torch.arange(size) + 0.5) / size
    away = (axis[:, None, None] - centre) % 1.0
    squared = torch.minimum(away, 1.0 - away).square()
    for number, colour in enumerate(_colours(count, generator)):
        reach = squared[:, None, number, 1] + squared[None, :, number, 0]
        picture[reach < radius[number] ** 2] = colour
    return picture


def _clouds(size: int, generator: torch.Generator) -> Tensor:
    """Noise in which large forms dominate, stretched to the whole range."""
    smooth = _noise(size, generator, first=2)
    low, high = smooth.amin(), smooth.amax()
    return 0.1 + 0.8 * (smooth - low) / (high - low)


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """Greys (count, 3) of different brightness and a touch of colour."""
    brightness = 0.25 + 0.6 * torch.rand((count, 1), generator=generator)
    hue = 2.0 * math.pi * torch.rand((count, 1), generator=generator)
    wheel = torch.cos(hue + torch.tensor([0.0, 2.1, 4.2]))
    return (brightness * (1.0 + 0.1 * wheel)).clamp(0.0, 1.0)


_PAINTERS = {
    Pattern.NOISE: _noise,
    Pattern.PATCHES: _patches,
    Pattern.CHECKER: _checker,
    Pattern.STRIPES: _stripes,
    Pattern.POLYGONS: _polygons,
    Pattern.DISCS: _discs,
    Pattern.CLOUDS: _clouds,
}

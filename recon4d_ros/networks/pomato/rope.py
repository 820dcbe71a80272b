"""Rotary position embedding of tokens on a two-dimensional grid.

The first half of a head's channels turns with the row y, the second half with the column x. Inside
a half of h channels, channel k and channel k + h/2 are one plane, turned by p * 100^(-2k/h) rad.

Source: Su et al., RoFormer, arXiv 2104.09864, eq. 34, applied once per axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Grid = tuple[int, int]

BASE = 100.0
# Grids whose tables are kept: two image sizes on a few devices and types, with room to spare.
_KEPT_TABLES = 16


@dataclass(frozen=True)
class RopeTable:
    """Cosine and sine of every token's angles: (N, 2, d/4), the axes y and x in the middle."""

    cos: Tensor
    sin: Tensor


def rope_table(grid: Grid, head_width: int, like: Tensor) -> RopeTable:
    """Table of a grid (n_h, n_w) on the device of `like`; float64 for float64, else float32.

    Half precision would spoil the angles of large grids, so autocast does not change the table.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return _cached_table(grid, head_width, dtype, like.device)


@lru_cache(maxsize=_KEPT_TABLES)
def _cached_table(
    grid: Grid, head_width: int, dtype: torch.dtype, device: torch.device
) -> RopeTable:
    # A cached tensor made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        num_planes = head_width // 4
        frequencies = BASE ** (-_count(num_planes) / num_planes)
        positions = torch.cartesian_prod(_count(grid[0]), _count(grid[1]))
        angles = positions[:, :, None] * frequencies
        return RopeTable(angles.cos().to(device, dtype), angles.sin().to(device, dtype))


def _count(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float64, device="cpu")


def rotate(heads: Tensor, table: RopeTable) -> Tensor:
    """Turn queries or keys (..., heads, N, d) by their tokens' positions; the type is kept."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return _rotate_in_parts(heads, table)
    # Three passes over memory; half precision is left in the registers, not in memory.
    turned = torch.empty_like(heads)
    planes, out = (torch.unflatten(held, -1, (2, 2, -1)) for held in (heads, turned))
    torch.mul(planes, table.cos[:, :, None], out=out)
    out.select(-2, 0).addcmul_(planes.select(-2, 1), table.sin, value=-1)
    out.select(-2, 1).addcmul_(planes.select(-2, 0), table.sin)
    return turned


def _rotate_in_parts(heads: Tensor, table: RopeTable) -> Tensor:
    """The same without writing in place, for gradients and for graphs."""
    u, v = torch.unflatten(heads, -1, (2, 2, -1)).unbind(-2)
    turned_u = u * table.cos - v * table.sin
    turned_v = v * table.cos + u * table.sin
    return torch.stack((turned_u, turned_v), dim=-2).flatten(-3).to(heads.dtype)

"""What is remembered of the image around the queries, and how maps are sampled.

Convention: pixel u lies at (u + 0.5) / s - 0.5 on a map whose cells are s px wide, as everywhere;
beyond the border the outermost cells repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.sizes import PATCH, STRIDE


@dataclass(frozen=True, eq=False)
class QuerySupport:
    """The features around N queries of B clips, taken once in the frames of the queries.

    Attributes:
        patches: for each level (B, N, P, C), P cells around the query, row by row.
        context: (B, N, E) of the 3D-aware branch there, or None where there is none.
    """

    patches: tuple[Tensor, ...]
    context: Tensor | None

    def rows(self, which: Tensor | Sequence[int]) -> QuerySupport:
        """Those of some queries."""
        context = None if self.context is None else self.context[:, which]
        return QuerySupport(tuple(patch[:, which] for patch in self.patches), context)


def sample_support(maps: FeatureMaps, queries: Tensor, radius: int) -> QuerySupport:
    """Features around queries (B, N, 3), whose frames are among those of the maps.

    A query of another frame gets those of the nearest one; it must be masked afterwards.
    """
    frame = queries[..., 0].long().clamp(0, maps.num_frames - 1)
    patches = []
    for number, level in enumerate(maps.levels):
        values, fraction = neighbourhood(level, frame, cells(queries[..., 1:], number), radius)
        patches.append(blend(values.movedim(-1, -2), fraction).movedim(-1, -2))
    return QuerySupport(tuple(patches), sample_context(maps, frame, queries[..., 1:]))


def sample_context(maps: FeatureMaps, frame: Tensor, uv: Tensor) -> Tensor | None:
    """(B, M, E) of the 3D-aware branch at pixels (B, M, 2) of frames (B, M)."""
    if maps.context is None:
        return None
    values, fraction = neighbourhood(maps.context, frame, to_cells(uv, PATCH), 0)
    return blend(values.movedim(-1, -2), fraction).squeeze(-1)


def cells(uv: Tensor, level: int) -> Tensor:
    """Pixels (..., 2) on the map of a level, in its cells."""
    return to_cells(uv, STRIDE * 2**level)


def to_cells(uv: Tensor, cell_px: int) -> Tensor:
    """Pixels (..., 2) on a map whose cells are `cell_px` wide."""
    return (uv + 0.5) / cell_px - 0.5


def neighbourhood(
    maps: Tensor, frame: Tensor, position: Tensor, radius: int
) -> tuple[Tensor, Tensor]:
    """The cells around positions, enough to blend a patch of 2 r + 1 points a side.

    All points of a patch share one fraction of a cell, so what is linear in the cells' values is
    computed of whole cells first and blended after: a quarter of the reading.

    Args:
        maps: (B, T, h, w, C).
        frame: (B, M) int64 in [0, T).
        position: (B, M, 2) cells, x then y.
        radius: r of the patch.

    Returns:
        (B, M, (2 r + 2)^2, C) values row by row, and (B, M, 2) fractions of a cell.
    """
    num_clips, num_frames, height, width, _ = maps.shape
    base = position.detach().floor()
    reach = torch.arange(-radius, radius + 2, device=maps.device)
    x = (base[..., :1].long() + reach).clamp(0, width - 1)
    y = (base[..., 1:].long() + reach).clamp(0, height - 1)
    clip = torch.arange(num_clips, device=maps.device)[:, None] * num_frames
    start = (clip + frame) * (height * width)
    index = start[..., None, None] + y[..., :, None] * width + x[..., None, :]
    values = functional.embedding(index.flatten(-2), maps.flatten(0, 3))
    return values, position - base


def blend(values: Tensor, fraction: Tensor) -> Tensor:
    """Bilinear values at the points of patches.

    Args:
        values: (..., K, (2 r + 2)^2) of cells, row by row.
        fraction: (..., 2) of a cell, x then y.

    Returns:
        (..., K, (2 r + 1)^2).
    """
    side = round(values.shape[-1] ** 0.5)
    grid = torch.unflatten(values, -1, (side, side))
    x, y = fraction[..., :1, None, None], fraction[..., 1:, None, None]
    rows = torch.lerp(grid[..., :-1, :], grid[..., 1:, :], y.to(grid))
    both = torch.lerp(rows[..., :-1], rows[..., 1:], x.to(grid))
    return both.flatten(-2)

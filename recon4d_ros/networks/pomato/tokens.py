"""What encoder and decoder hand on: tokens together with their grid, ready to be cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato.rope import Grid

Rows = slice | Sequence[int] | Tensor


@dataclass(frozen=True)
class Features:
    """Encoder output of B images of one size: tokens (B, N, E), row by row over the grid."""

    tokens: Tensor
    grid: Grid

    def __getitem__(self, rows: Rows) -> Features:
        """Features of some images; repeated ones share nothing with the original."""
        return Features(_rows(self.tokens, rows), self.grid)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join along the images.

        Raises:
            ModelError: there are none or their grids differ.
        """
        grid = _common_grid([part.grid for part in parts])
        return Features(torch.cat([part.tokens for part in parts]), grid)


@dataclass(frozen=True)
class HookTokens:
    """What heads read of one decoder branch: four token tensors (B, N, C), the encoder's first."""

    levels: tuple[Tensor, Tensor, Tensor, Tensor]
    grid: Grid

    def __getitem__(self, rows: Rows) -> HookTokens:
        """Tokens of some pairs."""
        first, second, third, fourth = (_rows(level, rows) for level in self.levels)
        return HookTokens((first, second, third, fourth), self.grid)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.levels[0])

    @staticmethod
    def cat(parts: Sequence[HookTokens]) -> HookTokens:
        """Join along the pairs.

        Raises:
            ModelError: there are none or their grids differ.
        """
        grid = _common_grid([part.grid for part in parts])
        first, second, third, fourth = (
            torch.cat([part.levels[level] for part in parts]) for level in range(4)
        )
        return HookTokens((first, second, third, fourth), grid)


def _rows(tensor: Tensor, rows: Rows) -> Tensor:
    # A list as an index would go to a GPU as a tensor, for which the host waits.
    if isinstance(rows, slice | Tensor):
        return tensor[rows]
    return torch.stack([tensor[row] for row in rows]) if rows else tensor[:0]


def _common_grid(grids: Sequence[Grid]) -> Grid:
    if len(set(grids)) != 1:
        raise ModelError(f"cannot join tokens of grids {sorted(set(grids))}; expected one grid")
    return grids[0]

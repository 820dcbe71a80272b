"""Which voxel lies where: packed keys of one submap, sorted, with the slots of their contents.

A key packs three signed 21-bit indices into one int64, so that a sort and a binary search on plain
integers find voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = 21
_HALF = 1 << (_BITS - 1)
_MASK = (1 << _BITS) - 1


def in_reach(cells: Tensor) -> Tensor:
    """(P,) bool: integer cells (P, 3) can be packed."""
    return ((cells >= -_HALF) & (cells < _HALF)).all(dim=-1)


def pack(cells: Tensor) -> Tensor:
    """Keys (P,) int64 of cells (P, 3) int64 within reach."""
    x, y, z = (cells + _HALF).unbind(-1)
    return (x << (2 * _BITS)) | (y << _BITS) | z


def unpack(keys: Tensor) -> Tensor:
    """Cells (P, 3) int64 of keys (P,)."""
    parts = [keys >> (2 * _BITS), (keys >> _BITS) & _MASK, keys & _MASK]
    return torch.stack(parts, dim=-1) - _HALF


@dataclass(frozen=True, eq=False)
class VoxelIndex:
    """The voxels of one submap.

    Attributes:
        edge: edge of a voxel, map units.
        keys: (V,) int64, strictly increasing.
        slots: (V,) int64, where the contents of each voxel are kept.
    """

    edge: float
    keys: Tensor
    slots: Tensor

    @staticmethod
    def empty(edge: float) -> VoxelIndex:
        """An index without voxels."""
        none = torch.empty(0, dtype=torch.int64)
        return VoxelIndex(edge, none, none)

    def __len__(self) -> int:
        """Number of voxels."""
        return len(self.keys)

    def find(self, keys: Tensor) -> Tensor:
        """Slots (P,) of keys (P,), -1 where there is no such voxel."""
        if len(self) == 0:
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self) - 1)
        return torch.where(self.keys[place] == keys, self.slots[place], -1)

    def with_voxels(self, keys: Tensor, slots: Tensor) -> VoxelIndex:
        """A copy with new voxels merged in; their keys are increasing and not yet present."""
        total = len(self) + len(keys)
        place = torch.searchsorted(self.keys, keys) + torch.arange(len(keys))
        is_old = torch.ones(total, dtype=torch.bool)
        is_old[place] = False
        return VoxelIndex(
            self.edge,
            _merged(self.keys, keys, place, is_old),
            _merged(self.slots, slots, place, is_old),
        )

    def where(self, keep: Tensor) -> VoxelIndex:
        """A copy with the voxels of a mask (V,) only."""
        return VoxelIndex(self.edge, self.keys[keep], self.slots[keep])


def _merged(old: Tensor, new: Tensor, place: Tensor, is_old: Tensor) -> Tensor:
    total = torch.empty(len(is_old), dtype=torch.int64)
    total[place] = new
    total[is_old] = old
    return total

"""Contents of voxels in a fixed number of slots, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.errors import ConfigError

# Value of a voxel as one integer: observations first, then the last frame, then the slot, which
# makes it unique and the choice of victims deterministic. 15 + 23 + 25 bits.
_MAX_OBSERVATIONS = (1 << 15) - 1
_MAX_FRAME = (1 << 23) - 1
_SLOT_BITS = 25


class VoxelPool:
    """Slots of voxels.

    Attributes:
        weight: (S,) float32, summed confidence.
        offset_sum: (S, 3) float32, weighted sum of positions within the voxel, in edges.
        rgb_sum: (S, 3) float32, weighted sum of colours.
        observations: (S,) int32, distinct frames that saw the voxel, less those that saw through.
        last_frame: (S,) int64, number of the last frame that saw it, as in `Frame.index`.
        submap: (S,) int32, number of its submap; -1 marks a free slot.
    """

    def __init__(self, capacity: int) -> None:
        """Allocate all slots, free.

        Raises:
            ConfigError: the capacity does not fit the packing of values.
        """
        if not 1 <= capacity < 1 << _SLOT_BITS:
            raise ConfigError(f"{capacity} voxels; expected 1 to {(1 << _SLOT_BITS) - 1}")
        self.weight = torch.zeros(capacity)
        self.offset_sum = torch.zeros(capacity, 3)
        self.rgb_sum = torch.zeros(capacity, 3)
        self.observations = torch.zeros(capacity, dtype=torch.int32)
        self.last_frame = torch.zeros(capacity, dtype=torch.int64)
        self.submap = torch.full((capacity,), -1, dtype=torch.int32)
        self._free = torch.arange(capacity - 1, -1, -1)
        self._num_free = capacity

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self.weight)

    @property
    def num_free(self) -> int:
        """Slots not in use."""
        return self._num_free

    @property
    def memory_bytes(self) -> int:
        """Bytes of all slots, used or not."""
        parts = (self.weight, self.offset_sum, self.rgb_sum, self.observations)
        return sum(part.nbytes for part in (*parts, self.last_frame, self.submap, self._free))

    def allocate(self, count: int, submap: int) -> Tensor:
        """Take `count` empty slots (count,); no more than `num_free`."""
        self._num_free -= count
        slots = self._free[self._num_free : self._num_free + count].clone()
        for part in (self.weight, self.offset_sum, self.rgb_sum, self.observations):
            part[slots] = 0
        self.submap[slots] = submap
        return slots

    def release(self, slots: Tensor) -> None:
        """Give distinct used slots back."""
        self.submap[slots] = -1
        self._free[self._num_free : self._num_free + len(slots)] = slots
        self._num_free += len(slots)

    def add(self, slots: Tensor, weight: Tensor, offset: Tensor, rgb: Tensor, frame: int) -> None:
        """Add the points (P) of one frame to their voxels; slots may repeat.

        Args:
            slots: (P,) slot of each point.
            weight: (P,) float32, above 0.
            offset: (P, 3) position within the voxel, in edges.
            rgb: (P, 3) float32.
            frame: number of the frame.
        """
        self.weight.index_add_(0, slots, weight)
        self.offset_sum.index_add_(0, slots, offset * weight.unsqueeze(-1))
        self.rgb_sum.index_add_(0, slots, rgb * weight.unsqueeze(-1))
        # All points of one voxel write the same number, so repeated slots do no harm.
        self.observations[slots] = self.observations[slots] + 1
        self.last_frame[slots] = frame

    def merge(
        self, slots: Tensor, group: Tensor, count: int, offset: Tensor, submap: int
    ) -> Tensor:
        """Put the contents of distinct used slots of one submap together; the new slots (count,).

        Two that become one were seen by the frames of both, some of which may be the same, so the
        larger number of observations holds.

        Args:
            slots: (P,) given up.
            group: (P,) int64 number of the new slot of each, below `count`.
            count: how many new ones.
            offset: (P, 3) mean position within the new voxel, in edges.
            submap: theirs.
        """
        weight, rgb = self.weight[slots], self.rgb_sum[slots]
        observations, last_frame = self.observations[slots], self.last_frame[slots]
        self.release(slots)
        new = self.allocate(count, submap)
        target = new[group]
        self.weight.index_add_(0, target, weight)
        self.rgb_sum.index_add_(0, target, rgb)
        self.offset_sum.index_add_(0, target, offset * weight.unsqueeze(-1))
        self.observations.scatter_reduce_(0, target, observations, "amax")
        self.last_frame[new] = 0
        self.last_frame.scatter_reduce_(0, target, last_frame, "amax")
        return new

    def least_valuable(self, count: int, submap: int) -> Tensor:
        """Used slots (count,) to give up: other submaps first, then few observations, then old."""
        used = (self.submap >= 0).nonzero().squeeze(-1)
        seen = self.observations[used].long().clamp(0, _MAX_OBSERVATIONS)
        frame = self.last_frame[used].clamp(0, _MAX_FRAME)
        value = (((seen << 23) | frame) << _SLOT_BITS) | used
        # Negative for other submaps, in the same order among themselves.
        value = torch.where(self.submap[used] == submap, value, value - (1 << 62) - (1 << 62))
        return used[torch.topk(value, count, largest=False).indices]

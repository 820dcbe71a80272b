"""The pairs of one window of a clip, side by side in memory that is taken once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.offline import align_pairs
from recon4d_ros.alignment.offline_result import PairAlignment
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Intrinsics, PairPointmaps
from recon4d_ros.errors import AlignmentError

# Argument of `align_pairs`, and the field of a pair it is made of.
_FIELDS = {
    "points_1": "points_1",
    "conf_1": "confidence_1",
    "points_2_in_1": "points_2",
    "conf_2": "confidence_2",
    "matching_2_in_1": "matching_2",
    "conf_matching": "confidence_matching",
}


@dataclass(frozen=True)
class Graph:
    """Which frames of a window are paired: those some frames apart, both ways, not cyclic.

    Attributes:
        offsets: frames between the two of a pair.
        window: frames of a window.
    """

    offsets: tuple[int, ...]
    window: int

    @property
    def num_pairs(self) -> int:
        """Directed pairs of a full window."""
        return 2 * sum(max(0, self.window - offset) for offset in self.offsets)

    def earlier(self, index: int, first: int) -> list[int]:
        """Frames from `first` on that a new frame is paired with."""
        past = [index - offset for offset in self.offsets if offset < self.window]
        return [other for other in past if other >= first]


class PairStore:
    """Holds the predictions of at most `capacity` directed pairs.

    The maps lie side by side, so that a full store goes into the alignment without being copied.
    """

    def __init__(self, capacity: int) -> None:
        """An empty store; memory is taken when the first pair tells the size of the images."""
        self.capacity = capacity
        self._blocks: dict[str, Tensor] = {}
        self._edges: dict[int, tuple[int, int]] = {}
        self._free: list[int] = []  # slots between those in use

    def __len__(self) -> int:
        """Pairs held."""
        return len(self._edges)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the maps; there must be a pair."""
        height, width = self._blocks["conf_1"].shape[1:]
        return height, width

    def put(self, pair: PairPointmaps) -> None:
        """Copy in one pair.

        Raises:
            AlignmentError: there is no room, no memory for a full window, or its maps differ in
                size or kind from the others'.
        """
        if len(self) >= self.capacity:
            raise AlignmentError(
                f"{self.capacity} pairs are held, and pair ({pair.first}, {pair.second}) is one "
                "too many; forget those of earlier frames first"
            )
        given = {name: getattr(pair, field) for name, field in _FIELDS.items()}
        maps: dict[str, Tensor] = {name: each for name, each in given.items() if each is not None}
        if not self._blocks:
            self._blocks = self._allocated(maps)
        self._check(pair, maps)
        slot = self._free.pop() if self._free else len(self)
        for name, each in maps.items():
            self._blocks[name][slot] = each
        self._edges[slot] = pair.first, pair.second

    def forget_before(self, first: int) -> None:
        """Drop the pairs that hold a frame earlier than `first`."""
        gone = [slot for slot, edge in self._edges.items() if min(edge) < first]
        for slot in gone:
            del self._edges[slot]
        self._free += gone

    def reset(self) -> None:
        """Drop all pairs; the memory stays."""
        self._edges.clear()
        self._free.clear()

    def aligned(self, first: int, intrinsics: Intrinsics | None, config: Config) -> PairAlignment:
        """Align all pairs held, where frame `first` becomes frame 0; see `align_pairs`.

        Raises:
            AlignmentError: they cannot be aligned.
        """
        slots = sorted(self._edges)
        maps = {name: self._side_by_side(name, slots) for name in self._blocks}
        return align_pairs(
            torch.tensor([self._edges[slot] for slot in slots]) - first,
            maps["points_1"],
            maps["conf_1"],
            maps["points_2_in_1"],
            maps["conf_2"],
            maps.get("matching_2_in_1"),
            maps.get("conf_matching"),
            intrinsics,
            config,
        )

    def confidence(self, frame: int) -> Tensor:
        """(H, W) mean confidence of a frame's pixels in the pairs it is the first of."""
        slots = [slot for slot, (first, _) in self._edges.items() if first == frame]
        return self._side_by_side("conf_1", slots).mean(dim=0)

    def _allocated(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Blocks for maps like these; pages that no pair fills cost nothing."""
        try:
            return {
                name: each.new_empty(self.capacity, *each.shape) for name, each in maps.items()
            }
        except RuntimeError as error:  # torch's own, when the system refuses
            size = self.capacity * sum(each.nbytes for each in maps.values()) / 2**30
            raise AlignmentError(
                f"the {self.capacity} pairs of a window take {size:.1f} GiB, which this machine "
                "does not give; lower offline.window or pomato.long_side"
            ) from error

    def _side_by_side(self, name: str, slots: list[int]) -> Tensor:
        if slots == list(range(len(slots))):
            return self._blocks[name][: len(slots)]
        return self._blocks[name][slots]

    def _check(self, pair: PairPointmaps, maps: dict[str, Tensor]) -> None:
        found = {name: tuple(each.shape) for name, each in maps.items()}
        expected = {name: tuple(block.shape[1:]) for name, block in self._blocks.items()}
        if found != expected:
            raise AlignmentError(
                f"pair ({pair.first}, {pair.second}) has maps {found}; expected {expected} as "
                "those before; give images of one size to one network"
            )

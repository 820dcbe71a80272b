"""What the aligner remembers of the map between two windows; frozen, replaced by `commit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Join:
    """How a gauge of the predictor lies in the map.

    Attributes:
        gauge: number of the gauge.
        scale: map units per predictor unit.
        T_map_gauge: (4, 4) pose of the gauge's frame, None when the predictor names no such frame;
            then the poses of the frames that two windows share join them.
    """

    gauge: int
    scale: float
    T_map_gauge: Tensor | None


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Sparse static points by the predictor's id, in map coordinates.

    Attributes:
        ids: (N,) int64, ascending.
        positions: (N, 3) float64, map units.
        num_windows: (N,) int64 windows that held it.
        last_window: (N,) int64 number of the last of them.
    """

    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.float64))
    num_windows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    last_window: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    # After this many windows a position is frozen: young points are still noisy, and a mean that
    # never stops would follow the drift it is there to stop.
    _MATURE = 5

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Row of each id (P,) and whether it is stored (P,)."""
        if len(self.ids) == 0:
            return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        row = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return row, self.ids[row] == ids

    def observed(
        self, ids: Tensor, positions: Tensor, tolerance: float, window: int, limit: int
    ) -> Landmarks:
        """With the landmarks of one more window; the longest unseen go beyond `limit`.

        Args:
            ids: (P,) int64.
            positions: (P, 3) float64 finite, map units.
            tolerance: distance beyond which a sighting contradicts the stored position and does
                not change it, map units.
            window: running number of the window.
            limit: bound on stored landmarks.
        """
        ids, order = ids.sort()
        positions = positions[order]
        row, known = self.find(ids)
        kept, seen = row[known], self.num_windows.clone()
        place, last = self.positions.clone(), self.last_window.clone()
        seen[kept] += 1
        change = positions[known] - place[kept]
        agrees = torch.linalg.vector_norm(change, dim=-1) <= tolerance
        young = agrees & (seen[kept] <= self._MATURE)
        place[kept] += torch.where(young, 1.0 / seen[kept], 0.0).to(place)[:, None] * change
        last[kept] = window
        new = ids[~known]
        merged = Landmarks(
            ids=torch.cat([self.ids, new]),
            positions=torch.cat([place, positions[~known]]),
            num_windows=torch.cat([seen, torch.ones_like(new)]),
            last_window=torch.cat([last, torch.full_like(new, window)]),
        )
        return merged._bounded(limit)

    def _bounded(self, limit: int) -> Landmarks:
        recent = self.last_window.argsort(descending=True, stable=True)[:limit]
        rows = recent[self.ids[recent].argsort()]
        return Landmarks(
            self.ids[rows], self.positions[rows], self.num_windows[rows], self.last_window[rows]
        )


@dataclass(frozen=True, eq=False)
class PixelSample:
    """Static pixels of a window's frames on a coarse grid, in map coordinates.

    Attributes:
        indices: frame numbers.
        step: pixels between two samples.
        points_map: (T, P, 3) float64, NaN where unknown, moving or borrowed.
        weight: (T, P) float64, 0 where the point is NaN.
    """

    indices: tuple[int, ...]
    step: int
    points_map: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class MapState:
    """Everything `commit` changes, but the keyframes.

    Attributes:
        submap: number of the present submap.
        join: the gauge that is joined to it.
        poses: T_map_cam (4, 4) of the latest frames by frame number.
        sample: static pixels of the last window.
        landmarks: sparse points of the present gauge.
        num_windows: windows committed since the last reset.
        has_depth: a window with depth was committed to the submap, so its scale means something.
        last_index: newest frame committed.
    """

    submap: int
    join: Join
    poses: Mapping[int, Tensor]
    sample: PixelSample
    landmarks: Landmarks
    num_windows: int
    has_depth: bool
    last_index: int

"""Smoothing of tracks that arrive frame by frame, with a memory of a few frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.config import RefinementConfig
from recon4d_ros.refinement.trajectory_smoothing import PAST, smooth_views


@dataclass(frozen=True, eq=False)
class Sights:
    """Tracks of one frame, lifted into space.

    Attributes:
        ids: (N,) int64, ascending, each once; a hidden track is among them.
        points: (N, 3) float64 in one world frame, NaN where the track is not seen.
        mobility: (N,) float32 in [0, 1].
        moving: (N,) bool, to be smoothed as something that moves.
        masked: (N,) bool, on the dynamic mask.
        scene_depth: usual depth of the frame, units of the points; NaN without any point.
        is_lifted: False when no track has a point.
    """

    ids: Tensor
    points: Tensor
    mobility: Tensor
    moving: Tensor
    masked: Tensor
    scene_depth: float
    is_lifted: bool = True

    @classmethod
    def none(cls) -> Sights:
        """A frame without tracks."""
        ids = torch.zeros(0, dtype=torch.int64)
        points = torch.zeros((0, 3), dtype=torch.float64)
        nothing = ids.bool()
        return cls(ids, points, torch.zeros(0), nothing, nothing, torch.nan, is_lifted=False)

    def of(self, ids: Tensor, values: Tensor, otherwise: float) -> Tensor:
        """The `values` (N, ...) of these tracks for other ids (M,), `otherwise` where unknown."""
        result = values.new_full((len(ids), *values.shape[1:]), otherwise)
        if len(self.ids) > 0:
            rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
            here = self.ids[rows] == ids
            result[here] = values[rows[here]]
        return result


@dataclass(frozen=True, eq=False)
class SmoothedSights:
    """Tracks of one frame, smoothed.

    Attributes:
        sights: as they came.
        points: (N, 3) float64 smoothed, NaN where the track is not seen.
        age: (N,) int64 frames since the track first came.
    """

    sights: Sights
    points: Tensor
    age: Tensor


class TrackHistory:
    """Smooths each frame as soon as `radius` later ones are known.

    The result equals that of `smooth` on the whole clip. Keeps `PAST` + 1 + `radius` frames.
    """

    def __init__(self, config: RefinementConfig) -> None:
        """An empty history."""
        self._config = config
        self._length = PAST + 1 + config.radius
        self._frames: deque[Sights] = deque(maxlen=self._length)
        self._ages: deque[Tensor] = deque(maxlen=1 + config.radius)
        self._num_waiting = 0

    def copy(self) -> TrackHistory:
        """The same history, to be carried on apart from this one."""
        other = TrackHistory(self._config)
        other._frames, other._ages = self._frames.copy(), self._ages.copy()
        other._num_waiting = self._num_waiting
        return other

    def push(self, sights: Sights) -> SmoothedSights | None:
        """Take the next frame; give the one `radius` frames before it, if there is one."""
        self._append(sights)
        self._num_waiting += 1
        return self._smoothed() if self._num_waiting > self._config.radius else None

    @property
    def is_due(self) -> bool:
        """The next frame brings one back."""
        return self._num_waiting >= self._config.radius

    def skip(self, sights: Sights) -> None:
        """Take the next frame; the one that `push` would give is wanted no more."""
        self._append(sights)

    def finish(self) -> tuple[SmoothedSights, ...]:
        """The frames that still wait, smoothed without later ones; the history is then empty."""
        rest = []
        while self._num_waiting > 0:
            # The first frames of a short stream have not reached the place where they are done.
            self._append(Sights.none())
            if len(self._ages) > self._config.radius:
                rest.append(self._smoothed())
        self.reset()
        return tuple(rest)

    def reset(self) -> None:
        """Forget every frame."""
        self._frames.clear()
        self._ages.clear()
        self._num_waiting = 0

    def _append(self, sights: Sights) -> None:
        born = torch.zeros_like(sights.ids)
        if self._frames:
            born = self._frames[-1].of(sights.ids, self._ages[-1] + 1, 0)
        self._frames.append(sights)
        self._ages.append(born)

    def _smoothed(self) -> SmoothedSights:
        self._num_waiting -= 1
        now = len(self._frames) - 1 - self._config.radius
        sights = self._frames[now]
        alone = all(other is sights or not other.is_lifted for other in self._frames)
        if alone or not sights.is_lifted:
            return SmoothedSights(sights, sights.points, self._ages[0])
        views = sights.points.new_full((len(sights.ids), self._length, 3), torch.nan)
        for place, other in enumerate(self._frames, start=PAST - now):
            views[:, place] = other.of(sights.ids, other.points, torch.nan)
        scene_depth = torch.tensor([sights.scene_depth], dtype=torch.float64)
        points = smooth_views(views, sights.moving, scene_depth, self._config)
        return SmoothedSights(sights, points, self._ages[0])

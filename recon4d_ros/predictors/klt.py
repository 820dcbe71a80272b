"""Point tracks without a network: pyramidal Lucas-Kanade with a forward-backward check."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from recon4d_ros.datatypes import Frame, Tracks, Window
from recon4d_ros.errors import PredictorError
from recon4d_ros.predictors.classical.images import grey_image
from recon4d_ros.predictors.classical.neighbours import NEIGHBOURS, typical
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Grey, Index, Mask, query_points, sought
from recon4d_ros.predictors.mobility import mobility

_MISMATCH_PX = 1.0  # forward-backward error at which a point is seen with probability 1/2
_MAX_MISSING = 12  # frames without a sight after which a track ends
_TRY_AGAIN = (3,)  # frames after the last sight at which a hidden point is sought anew

# New points (M, 2) px of an image, from the live ones (N, 2), the edge of the cells and the number
# of the frame.
Seek = Callable[[Grey, Array, int, int], Array]


@dataclass(frozen=True, eq=False)
class _Sight:
    """Where the points were seen in one frame.

    Attributes:
        grey: (H, W) image.
        uv: (rows, 2) px, NaN where not seen.
        visibility: (rows,) 0 where not seen.
    """

    grey: Grey
    uv: Array
    visibility: Array


class KltTracker:
    """Tracks on the query grid of C4D; a `PointTracker`.

    Every frame is tracked once, when the first window brings it, from the frame before it: so a
    track's past never changes. State is bounded: `max_points` rows, the frames of the last window.
    """

    name = "klt"

    def __init__(
        self, max_points: int = 1024, cell_px: int = 20, seek: Seek = query_points
    ) -> None:
        """Make the tracker.

        Args:
            max_points: bound on tracks.
            cell_px: edge of the cells that each get new points, px.
            seek: gives the new points of a frame.
        """
        self._max_points = max_points
        self._cell_px = cell_px
        self._seek = seek
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        self._sights: OrderedDict[int, _Sight] = OrderedDict()
        self._ids: Index = np.full(self._max_points, -1, np.int64)
        self._at: Array = np.zeros((self._max_points, 2))
        self._missing: Index = np.zeros(self._max_points, np.int64)
        self._next_id = 0

    def track(self, window: Window) -> Tracks:
        """Tracks over the frames of a window, px of the frames' own size.

        Points are sought in the first frame of all and in the newest frame of each window.

        Raises:
            PredictorError: the frames differ in size or came before; the state is unchanged.
        """
        self._check(window)
        newest = next(reversed(self._sights), -1)
        for frame in window.frames:
            if frame.index > newest:
                self._advance(frame)
        if window.indices[-1] > newest:
            self._query(window.indices[-1])
        self._forget(window)
        return self._tracks(window)

    def positions(self) -> tuple[Index, Array]:
        """Ids (N,) and positions (N, 2) px in the newest frame, with those that are only guessed.

        A hidden point is where the seen ones around it would have carried it.
        """
        rows = np.flatnonzero(self._ids >= 0)
        return self._ids[rows], self._at[rows]

    def _check(self, window: Window) -> None:
        sizes = {frame.size for frame in window.frames}
        sizes |= {sight.grey.shape for sight in list(self._sights.values())[-1:]}
        if len(sizes) != 1:
            raise PredictorError(
                f"frames {window.indices[0]} to {window.indices[-1]} have sizes {sorted(sizes)}; "
                "reset the tracker when the camera changes size"
            )
        newest = next(reversed(self._sights), -1)
        if window.indices[-1] < newest:
            raise PredictorError(
                f"a window ending at frame {window.indices[-1]} came after frame {newest}; "
                "give windows in order, or reset"
            )

    # ------------------------------------------------------------------ one frame
    def _advance(self, frame: Frame) -> None:
        grey = grey_image(frame)
        uv = np.full((self._max_points, 2), np.nan)
        mismatch = np.full(self._max_points, np.inf)
        if self._sights:
            self._follow(grey, uv, mismatch)
            self._coast(uv, mismatch)
            self._find_again(grey, uv, mismatch)
        seen = mismatch < _MISMATCH_PX
        self._at[seen] = uv[seen]
        self._missing = np.where(seen, 0, self._missing + 1)
        visibility = np.where(seen, 1.0 / (1.0 + (mismatch / _MISMATCH_PX) ** 2), 0.0)
        is_first = not self._sights
        self._sights[frame.index] = _Sight(grey, np.where(seen[:, None], uv, np.nan), visibility)
        self._drop((self._ids >= 0) & (self._missing > _MAX_MISSING))
        if is_first:
            self._query(frame.index)

    def _follow(self, grey: Grey, uv: Array, mismatch: Array) -> None:
        """Points seen in the frame before."""
        rows = np.flatnonzero((self._ids >= 0) & (self._missing == 0))
        last = next(reversed(self._sights.values()))
        uv[rows], mismatch[rows] = sought(last.grey, grey, self._at[rows], self._at[rows])

    def _coast(self, uv: Array, mismatch: Array) -> None:
        """Hidden points go where the seen ones around them went."""
        seen = np.flatnonzero(mismatch < _MISMATCH_PX)
        hidden = np.flatnonzero((self._ids >= 0) & (mismatch >= _MISMATCH_PX))
        if len(seen) < NEIGHBOURS or len(hidden) == 0:
            return
        shift = (uv - self._at)[seen]
        self._at[hidden] += typical(self._at[hidden], self._at[seen], shift)

    def _find_again(self, grey: Grey, uv: Array, mismatch: Array) -> None:
        """Hidden points, from the frame that saw them last."""
        sights = list(self._sights.values())
        for gap in _TRY_AGAIN:
            rows = np.flatnonzero((self._ids >= 0) & (self._missing == gap - 1))
            if len(rows) == 0 or len(sights) < gap:
                continue
            source = sights[-gap]
            found = sought(source.grey, grey, source.uv[rows], self._at[rows])
            uv[rows], mismatch[rows] = found

    def _drop(self, ended: Mask) -> None:
        self._ids[ended] = -1
        for sight in self._sights.values():
            sight.uv[ended], sight.visibility[ended] = np.nan, 0.0

    def _query(self, index: int) -> None:
        """New tracks in the cells of a frame that hold no live one."""
        sight = self._sights[index]
        live = (self._ids >= 0) & (sight.visibility > 0)
        points = self._seek(sight.grey, self._at[live], self._cell_px, index)
        rows = np.flatnonzero(self._ids < 0)
        if len(points) > len(rows):  # spread over the image, not its upper part
            points = points[np.linspace(0, len(points) - 1, len(rows)).astype(np.int64)]
        rows = rows[: len(points)]
        self._ids[rows] = self._next_id + np.arange(len(rows))
        self._next_id += len(rows)
        self._at[rows], self._missing[rows] = points, 0
        sight.uv[rows], sight.visibility[rows] = points, 1.0

    def _forget(self, window: Window) -> None:
        """Keep the frames of the window, and what is needed to find hidden points again."""
        kept = {*window.indices, *list(self._sights)[-max(_TRY_AGAIN) :]}
        for index in [index for index in self._sights if index not in kept]:
            del self._sights[index]

    # ------------------------------------------------------------------ what goes out
    def _tracks(self, window: Window) -> Tracks:
        rows = np.flatnonzero(self._ids >= 0)
        rows = rows[np.argsort(self._ids[rows])]
        nowhere = np.full((self._max_points, 2), np.nan)
        known = [self._sights.get(index) for index in window.indices]
        uv = np.stack([nowhere if sight is None else sight.uv for sight in known])[:, rows]
        hidden = np.zeros(self._max_points)
        visibility = [hidden if sight is None else sight.visibility for sight in known]
        moving = mobility(uv, max(window.frames[0].size))
        return Tracks(
            ids=torch.from_numpy(self._ids[rows]),
            uv=torch.from_numpy(uv.astype(np.float32)),
            visibility=torch.from_numpy(np.stack(visibility)[:, rows].astype(np.float32)),
            mobility=torch.from_numpy(moving.astype(np.float32)).expand(len(uv), -1).clone(),
        )

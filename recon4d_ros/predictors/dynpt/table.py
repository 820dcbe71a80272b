"""The bounded table of the points that are tracked: one row each, of fixed shapes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.networks.dynpt import QuerySupport
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Index, Mask


class QueryTable:
    """Queries, what their surroundings looked like, and when each point was seen last.

    Attributes:
        ids: (N,) number of the point, -1 for a free row.
        frame: (N,) frame of the query.
        uv: (N, 2) px of the network's images there.
        last_seen: (N,) newest frame in which the point was seen.
        support: of the queries; None before the first one.
    """

    def __init__(self, num_rows: int) -> None:
        self.ids: Index = np.full(num_rows, -1, np.int64)
        self.frame: Index = np.zeros(num_rows, np.int64)
        self.uv: Array = np.zeros((num_rows, 2))
        self.last_seen: Index = np.zeros(num_rows, np.int64)
        self.support: QuerySupport | None = None
        self._next_id = 0

    @property
    def used(self) -> Mask:
        """(N,) rows that hold a point."""
        return np.asarray(self.ids >= 0)

    def add(self, frame: int, uv: Array) -> Index:
        """Rows of new points (M, 2), as many as there are free rows, spread over the image."""
        rows = np.flatnonzero(~self.used)
        if len(uv) > len(rows):
            uv = uv[np.linspace(0, len(uv) - 1, len(rows)).astype(np.int64)]
        rows = rows[: len(uv)]
        self.ids[rows] = self._next_id + np.arange(len(rows))
        self._next_id += len(rows)
        self.frame[rows], self.uv[rows], self.last_seen[rows] = frame, uv, frame
        return rows

    def remember(self, rows: Index, support: QuerySupport) -> None:
        """Keep the support of some rows."""
        self.support = self.support or self._empty(support)
        which = torch.from_numpy(rows)
        for held, new in zip(_parts(self.support), _parts(support), strict=True):
            held[:, which.to(held.device)] = new

    def drop_unseen(self, newest: int, max_missing: int) -> None:
        """Free the rows of points that were not seen for more than `max_missing` frames."""
        self.ids[newest - self.last_seen > max_missing] = -1

    def queries(self, indices: tuple[int, ...]) -> Tensor:
        """(1, N, 3) queries whose frames count from the first of a window's, which may skip some.

        Frames before the window are negative.
        """
        frames = np.asarray(indices)
        place = np.searchsorted(frames, self.frame)
        relative = np.where(self.frame < frames[0], self.frame - frames[0], place)
        rows = np.concatenate([relative[:, None], self.uv], axis=1)
        return torch.from_numpy(rows.astype(np.float32))[None]

    def _empty(self, like: QuerySupport) -> QuerySupport:
        num_rows = len(self.ids)
        patches = tuple(p.new_zeros(1, num_rows, *p.shape[2:]) for p in like.patches)
        context = like.context
        zeros = None if context is None else context.new_zeros(1, num_rows, context.shape[2])
        return QuerySupport(patches, zeros)


def _parts(support: QuerySupport) -> tuple[Tensor, ...]:
    return support.patches + (() if support.context is None else (support.context,))

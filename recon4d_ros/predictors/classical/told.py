"""What masks have told of tracked points: whether they lie on a thing that moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon4d_ros.predictors.classical.neighbours import moving_with
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Index, Mask, TrackTable


@dataclass(frozen=True, eq=False)
class ToldPoints:
    """Points of a frame, for an odometry that begins with it.

    Attributes:
        uv: (N, 2) px.
        moving: (N,).
    """

    uv: Array
    moving: Mask

    @staticmethod
    def of(table: TrackTable, frame: int) -> ToldPoints | None:
        """The live points of a frame; None if no mask has told of any that moves."""
        rows = table.rows_in(frame)
        if not table.moving[rows].any():
            return None
        return ToldPoints(table.uv[rows, table.column(frame)], table.moving[rows])


def tell(table: TrackTable, frame: int, newest: int, mask: Mask) -> Index:
    """Take a mask (H, W) of a frame over; points born since then do what those around them do.

    Returns:
        Rows of the points seen in the frame.
    """
    uv = table.uv[:, table.column(frame)]
    told = np.flatnonzero(table.used & np.isfinite(uv[:, 0]))
    x, y = np.rint(uv[told]).astype(np.int64).T
    table.moving[told] = mask[y, x]
    live, uv = table.rows_in(newest), table.uv[:, table.column(newest)]
    known, new = np.intersect1d(live, told), np.setdiff1d(live, told)
    table.moving[new] = moving_with(uv[new], uv[known], table.moving[known])
    return told

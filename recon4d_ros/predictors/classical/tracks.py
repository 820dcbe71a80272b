"""Points tracked by pyramidal Lucas-Kanade, and the bounded table of where they were seen."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon4d_ros.geometry.exposure import matched
from recon4d_ros.predictors.classical.rigid import Array

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]

_WINDOW_PX = (16, 16)  # whole vectors of the processor: 17 take half as long again
_LEVELS = 3
_LEVELS_BACK = 2  # of a point that was followed rightly the way back is known
_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.02)
_BORDER_PX = 4
_LEAST_STRENGTH = 1e-4  # least eigenvalue of the structure tensor worth tracking, OpenCV's units


def follow(
    before: Grey, after: Grey, uv: Array, guess: Array, max_mismatch_px: float
) -> tuple[Array, Mask]:
    """Where points of one frame are in another.

    Args:
        before: (H, W) first frame.
        after: (H, W) second frame.
        uv: (N, 2) px in the first frame.
        guess: (N, 2) px where they are expected in the second.
        max_mismatch_px: largest distance from the start after tracking back.

    Returns:
        (N, 2) px positions and (N,) bool: tracked, consistent and inside the image.
    """
    new, mismatch = sought(before, after, uv, guess)
    return new, mismatch < max_mismatch_px


def sought(before: Grey, after: Grey, uv: Array, guess: Array) -> tuple[Array, Array]:
    """As `follow`, but leaves it to the caller to judge.

    Returns:
        (N, 2) px positions and (N,) px distance from the start after tracking back, infinite
        where nothing was found inside the image.
    """
    if len(uv) == 0:
        return uv.copy(), np.zeros(0)
    images = matched(torch.from_numpy(before), torch.from_numpy(after))
    before, after = (image.numpy() for image in images)
    start = uv.astype(np.float32)[:, None]
    there, ok = _lucas_kanade(before, after, start, guess.astype(np.float32)[:, None], _LEVELS)
    back, ok_back = _lucas_kanade(after, before, there, start, _LEVELS_BACK)
    height, width = before.shape
    new = there[:, 0].astype(np.float64)
    good = ok & ok_back & (new >= _BORDER_PX).all(axis=1)
    good &= (new[:, 0] < width - _BORDER_PX) & (new[:, 1] < height - _BORDER_PX)
    return new, np.where(good, np.linalg.norm((back - start)[:, 0], axis=1), np.inf)


def _lucas_kanade(
    source: Grey,
    target: Grey,
    uv: NDArray[np.float32],
    guess: NDArray[np.float32],
    levels: int,
) -> tuple[NDArray[np.float32], Mask]:
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        source,
        target,
        uv,
        guess.copy(),
        winSize=_WINDOW_PX,
        maxLevel=levels,
        criteria=_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(found, np.float32), np.asarray(status[:, 0] == 1)


def query_points(grey: Grey, occupied: Array, cell_px: int, seed: int) -> Array:
    """New points in the cells that hold none: the best textured pixel and one random pixel.

    C4D, supplementary material, query sampling: cells of 20 x 20 px, partial cells at the border
    included. The strength of a pixel is the smaller eigenvalue of its structure tensor, so that an
    edge, along which a point slides, does not pass for a landmark; a random pixel is kept only
    where it can be tracked at all.

    Args:
        grey: (H, W).
        occupied: (N, 2) px of live points.
        cell_px: edge of a cell.
        seed: of the random pixels; the same seed gives the same points.

    Returns:
        (M, 2) px.
    """
    cells, empty = _empty_cells(_strength(grey), occupied, cell_px)
    best = cells.argmax(axis=1)
    random = np.random.default_rng(seed).integers(0, cell_px**2, empty.size)[empty.ravel()]
    points = [_pixels(pick, cells, empty, cell_px) for pick in (best, random)]
    far_enough = _apart(points[1], points[0], cell_px / 2)
    return np.concatenate([points[0], points[1][far_enough]])


def _strength(grey: Grey) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(grey, (3, 3), 0)
    strength = np.asarray(cv2.cornerMinEigenVal(smooth, 5, ksize=3), np.float32)
    strength[:_BORDER_PX], strength[-_BORDER_PX:] = 0, 0
    strength[:, :_BORDER_PX], strength[:, -_BORDER_PX:] = 0, 0
    return strength


def _empty_cells(
    strength: NDArray[np.float32], occupied: Array, cell_px: int
) -> tuple[NDArray[np.float32], Mask]:
    """Values (M, cell_px^2) of the cells that hold no point, row by row, and which they are."""
    height, width = strength.shape
    rows, columns = -(-height // cell_px), -(-width // cell_px)
    empty: Mask = np.ones((rows, columns), bool)
    column, row = (occupied / cell_px).astype(np.int64).T
    empty[row.clip(0, rows - 1), column.clip(0, columns - 1)] = False
    padded = np.zeros((rows * cell_px, columns * cell_px), np.float32)
    padded[:height, :width] = strength
    cells = padded.reshape(rows, cell_px, columns, cell_px).transpose(0, 2, 1, 3)
    return cells[empty].reshape(-1, cell_px**2), empty


def _pixels(pick: Index, cells: NDArray[np.float32], empty: Mask, cell_px: int) -> Array:
    """Px (N, 2) of one pick (M,) per empty cell, where it is worth tracking."""
    good = cells[np.arange(len(cells)), pick] > _LEAST_STRENGTH
    row, column = np.argwhere(empty)[good].T
    y, x = np.divmod(pick[good], cell_px)
    return np.stack([column * cell_px + x, row * cell_px + y], axis=1).astype(np.float64)


def _apart(points: Array, others: Array, distance: float) -> Mask:
    return np.asarray(cKDTree(others).query(points)[0] > distance)


def places(known: Sequence[int], wanted: Sequence[int] | Index) -> Index:
    """Where numbers stand in an ascending list; far faster than to sort a thousand of them.

    Raises:
        KeyError: one is not in it.
    """
    at = np.searchsorted(known, wanted)
    missing = np.asarray(known)[np.minimum(at, len(known) - 1)] != wanted
    if missing.any():
        raise KeyError(f"{np.asarray(wanted)[missing].tolist()} are not among {known}")
    return at


class TrackTable:
    """Where each point was seen, in a table of fixed size.

    One row per point, one column per remembered frame; NaN where the point was not seen. The row
    of a point is freed when it is no longer tracked and fewer than two columns still see it.

    Attributes:
        frames: (columns,) frame of each column, -1 for none.
        uv: (rows, columns, 2) px.
        ids: (rows,) number of the point, -1 for a free row.
        alive: (rows,) tracked in the newest frame.
        host: (rows,) frame in which the point was born.
        host_uv: (rows, 2) px there.
        rho, rho_sigma: (rows,) inverse depth in the host and its standard deviation.
        rho_prior: (rows,) inverse depth expected when the point was born.
        moving: (rows,) on a thing that moves, as far as masks have told.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.frames: Index = np.full(columns, -1, np.int64)
        self.uv: Array = np.full((rows, columns, 2), np.nan)
        self.ids: Index = np.full(rows, -1, np.int64)
        self.alive: Mask = np.zeros(rows, bool)
        self.host: Index = np.full(rows, -1, np.int64)
        self.host_uv: Array = np.zeros((rows, 2))
        self.rho: Array = np.ones(rows)
        self.rho_sigma: Array = np.ones(rows)
        self.rho_prior: Array = np.ones(rows)
        self.moving: Mask = np.zeros(rows, bool)
        self._next_id = 0

    @property
    def used(self) -> Mask:
        """Rows that hold a point."""
        return np.asarray(self.ids >= 0)

    def column(self, frame: int) -> int:
        """Column of a remembered frame."""
        return int(np.flatnonzero(self.frames == frame)[0])

    def open_column(self, frame: int) -> int:
        """A column for a new frame; the caller closes one before all are taken."""
        column = int(np.flatnonzero(self.frames < 0)[0])
        self.frames[column] = frame
        return column

    def close_column(self, frame: int) -> None:
        """Forget what was seen in a frame."""
        column = self.column(frame)
        self.frames[column] = -1
        self.uv[:, column] = np.nan
        self._sweep()

    def add(self, frame: int, uv: Array, rho: Array, moving: Mask) -> Index:
        """New points born in `frame`; those tracked no more make room, longest unseen first.

        Args:
            frame: a remembered frame.
            uv: (N, 2) px.
            rho: (N,) expected inverse depth.
            moving: (N,) on a thing that moves.

        Returns:
            (M,) their rows; M < N where too many points are being tracked.
        """
        self._make_room(len(uv))
        rows = np.flatnonzero(~self.used)[: len(uv)]
        uv, rho = uv[: len(rows)], rho[: len(rows)]
        self.moving[rows] = moving[: len(rows)]
        self.ids[rows] = self._next_id + np.arange(len(rows))
        self._next_id += len(rows)
        self.alive[rows] = True
        self.host[rows], self.host_uv[rows] = frame, uv
        self.rho[rows], self.rho_sigma[rows], self.rho_prior[rows] = rho, rho, rho
        self.uv[rows] = np.nan
        self.uv[rows, self.column(frame)] = uv
        return rows

    def see(self, rows: Index, frame: int, uv: Array, good: Mask) -> None:
        """Record where points are in a frame; those not found are tracked no more."""
        self.uv[rows[good], self.column(frame)] = uv[good]
        self.alive[rows[~good]] = False

    def see_again(self, rows: Index, frame: int, uv: Array) -> None:
        """Record where points are that were tracked no more; they are from here on."""
        self.uv[rows, self.column(frame)] = uv
        self.alive[rows] = True

    def rows_in(self, frame: int) -> Index:
        """Rows of the live points seen in a frame."""
        return self.seen_among(np.flatnonzero(self.alive), frame)

    def resting_in(self, frame: int) -> Index:
        """Of those, the ones that are not on a thing that moves."""
        rows = self.rows_in(frame)
        return rows[~self.moving[rows]]

    def seen_among(self, rows: Index, frame: int) -> Index:
        """Those of the rows whose points a remembered frame shows."""
        return np.asarray(rows[np.isfinite(self.uv[rows, self.column(frame), 0])])

    def rehost(self, rows: Index, frame: int) -> None:
        """A frame that shows the points of the rows becomes their host; sights before it stay."""
        self.host[rows], self.host_uv[rows] = frame, self.uv[rows, self.column(frame)]

    def seen_in(self, frames: Sequence[int]) -> Array:
        """Px (T, rows, 2) in frames, NaN where a point was not seen or a frame is forgotten."""
        uv = np.full((len(frames), len(self.ids), 2), np.nan)
        for row, frame in enumerate(frames):
            if frame in self.frames:
                uv[row] = self.uv[:, self.column(frame)]
        return uv

    def displacements(self, rows: Index, source: int, target: int) -> Array:
        """Px (M, 2) between two remembered frames, of those of the rows that both show."""
        moved = self.uv[rows, self.column(target)] - self.uv[rows, self.column(source)]
        return np.asarray(moved[np.isfinite(moved[:, 0])])

    def _sweep(self) -> None:
        seen = np.isfinite(self.uv[..., 0]).sum(axis=1)
        self._free(np.flatnonzero(self.used & ~self.alive & (seen < 2)))

    def _make_room(self, wanted: int) -> None:
        missing = wanted - int((~self.used).sum())
        if missing > 0:
            gone = np.flatnonzero(self.used & ~self.alive)
            last_seen = np.where(np.isfinite(self.uv[gone, :, 0]), self.frames, -1).max(axis=1)
            self._free(gone[np.argsort(last_seen, kind="stable")[:missing]])

    def _free(self, rows: Index) -> None:
        self.ids[rows], self.host[rows] = -1, -1
        self.uv[rows] = np.nan

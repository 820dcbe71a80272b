"""What masks tell of tracked points, and what others borrow from those."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon4d_ros.predictors.classical.neighbours import NEIGHBOURS, moving_with, typical
from recon4d_ros.predictors.classical.told import ToldPoints, tell
from recon4d_ros.predictors.classical.tracks import TrackTable

WIDTH, HEIGHT = 80, 60


def left_half() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, : WIDTH // 2] = True
    return mask


def grid(step: int = 8) -> np.ndarray:
    y, x = np.mgrid[6 : HEIGHT - 6 : step, 6 : WIDTH - 6 : step]
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(float)


def resting(count: int) -> np.ndarray:
    return np.zeros(count, bool)


def table_of(*born: np.ndarray) -> TrackTable:
    """Points born in one frame after the other; all stay where they are."""
    table = TrackTable(rows=400, columns=len(born) + 1)
    for frame, uv in enumerate(born):
        table.open_column(frame)
        rows = np.flatnonzero(table.used)
        table.see(rows, frame, table.host_uv[rows], np.ones(len(rows), bool))
        table.add(frame, uv, np.ones(len(uv)), resting(len(uv)))
    return table


def test_points_under_the_mask_move_and_the_others_rest():
    table = table_of(grid())
    told = tell(table, 0, 0, left_half())
    assert told.tolist() == np.flatnonzero(table.used).tolist()
    assert (table.moving[told] == (table.host_uv[told, 0] < 39.5)).all()
    assert set(table.resting_in(0)) == set(told[~table.moving[told]])


def test_what_a_later_mask_says_counts():
    table = table_of(grid())
    tell(table, 0, 0, left_half())
    tell(table, 0, 0, ~left_half())
    rows = np.flatnonzero(table.used)
    assert (table.moving[rows] == (table.host_uv[rows, 0] > 39.5)).all()


def test_points_born_since_then_do_what_those_around_them_do():
    later = grid() + 3
    table = table_of(grid(), later)
    told = tell(table, 0, 1, left_half())
    new = np.setdiff1d(np.flatnonzero(table.used), told)
    assert len(new) == len(later)
    # Clearly on one side: near the border neighbours of both sides are asked.
    x = table.host_uv[new, 0]
    assert table.moving[new[x < 28]].all() and not table.moving[new[x > 52]].any()


def test_a_lost_point_is_told_of_but_lends_nothing():
    table = table_of(grid(), grid() + 3)
    old = np.flatnonzero(table.used)[: len(grid())]
    table.alive[old] = False
    told = tell(table, 0, 1, np.ones((HEIGHT, WIDTH), bool))
    assert table.moving[told].all()
    assert not table.moving[np.setdiff1d(np.flatnonzero(table.used), told)].any()


def test_a_freed_row_forgets_that_it_moved():
    table = TrackTable(rows=3, columns=2)
    table.open_column(0)
    table.add(0, np.full((3, 2), 10.0), np.ones(3), np.ones(3, bool))
    table.alive[:] = False
    table.close_column(0)
    table.open_column(1)
    rows = table.add(1, np.full((2, 2), 20.0), np.ones(2), resting(2))
    assert not table.moving[rows].any()


def test_nothing_told_is_nothing_to_begin_with():
    table = table_of(grid())
    assert ToldPoints.of(table, 0) is None
    tell(table, 0, 0, left_half())
    points = ToldPoints.of(table, 0)
    assert points is not None
    assert (points.moving == (points.uv[:, 0] < 39.5)).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(NEIGHBOURS, 60))
def test_the_typical_value_is_the_median_of_the_nearest(seed, num_new, num_known):
    random = np.random.default_rng(seed)
    uv, at = random.uniform(0, 99, (num_new, 2)), random.uniform(0, 99, (num_known, 2))
    values = random.uniform(0.1, 2, num_known)
    slow = [np.median(values[np.argsort(((at - point) ** 2).sum(1))[:NEIGHBOURS]]) for point in uv]
    assert typical(uv, at, values) == pytest.approx(slow)
    moving = values > 1
    most = [moving[np.argsort(((at - p) ** 2).sum(1))[:NEIGHBOURS]].sum() > 2 for p in uv]
    assert moving_with(uv, at, moving).tolist() == most


@pytest.mark.parametrize("num_known", [0, NEIGHBOURS - 1])
def test_too_few_points_lend_no_motion(num_known):
    moving = moving_with(grid(), grid()[:num_known], np.ones(num_known, bool))
    assert not moving.any() and moving.shape == (len(grid()),)

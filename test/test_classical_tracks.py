"""Query points, tracked points and the table that remembers them."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.predictors.classical.tracks import (
    TrackTable,
    follow,
    places,
    query_points,
    sought,
)

SIZE = (120, 163)
CELL = 20


def texture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def cells_of(uv: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(cell) for cell in (uv // CELL).astype(int).tolist()}


# ------------------------------------------------------------------ queries
def test_every_textured_cell_gets_a_point_and_at_most_two():
    uv = query_points(texture(), np.zeros((0, 2)), CELL, seed=0)
    whole = {(x, y) for x in range(SIZE[1] // CELL) for y in range(SIZE[0] // CELL)}
    assert whole <= cells_of(uv)
    _, counts = np.unique((uv // CELL).astype(int), axis=0, return_counts=True)
    assert counts.max() <= 2
    assert (uv == np.rint(uv)).all()
    assert (uv >= 4).all() and (uv < (SIZE[1] - 4, SIZE[0] - 4)).all()


def test_occupied_cells_get_none():
    grey = texture()
    first = query_points(grey, np.zeros((0, 2)), CELL, seed=0)
    assert len(query_points(grey, first, CELL, seed=1)) == 0
    kept = first[first[:, 0] >= 60]
    again = query_points(grey, kept, CELL, seed=1)
    assert len(again) > 0
    assert not cells_of(again) & cells_of(kept)


def test_flat_images_and_straight_edges_get_no_points():
    flat = np.full(SIZE, 90, np.uint8)
    edge = flat.copy()
    edge[:, 77:] = 200
    for grey in (flat, edge):
        assert len(query_points(grey, np.zeros((0, 2)), CELL, seed=0)) == 0


def test_the_best_pixel_of_a_cell_is_chosen():
    grey = np.full((40, 40), 90, np.uint8)
    grey[26:, 29:] = 200  # one corner in the last cell
    uv = query_points(grey, np.zeros((0, 2)), CELL, seed=0)
    assert np.abs(uv[0] - (29, 26)).max() <= 3


def test_the_seed_alone_decides_the_random_points():
    grey, none = texture(), np.zeros((0, 2))
    assert np.array_equal(query_points(grey, none, CELL, 5), query_points(grey, none, CELL, 5))
    assert not np.array_equal(query_points(grey, none, CELL, 5), query_points(grey, none, CELL, 6))


def test_numbers_are_found_in_an_ascending_list_and_a_missing_one_is_told():
    assert places([2, 5, 9], np.array([[9, 2], [5, 5]])).tolist() == [[2, 0], [1, 1]]
    assert places([2, 5], np.zeros(0, np.int64)).shape == (0,)
    for missing in (1, 3, 10):
        with pytest.raises(KeyError, match=str(missing)):
            places([2, 5, 9], [2, missing])


# ------------------------------------------------------------------ following
# OpenCV warps by whole 32nds of a px; others would not be the shifts that were asked for.
THIRTY_SECONDS = st.integers(-9 * 32, 9 * 32).map(lambda count: count / 32)


@given(THIRTY_SECONDS, THIRTY_SECONDS)
@settings(max_examples=15, deadline=None)
def test_known_shifts_are_found_to_a_fraction_of_a_pixel(dx, dy):
    wide = texture(2, (240, 320))
    shift = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    moved = cv2.warpAffine(wide, shift, (320, 240), flags=cv2.INTER_CUBIC)
    uv = query_points(wide, np.zeros((0, 2)), CELL, seed=0)
    new, good = follow(wide, moved, uv, uv, 1.0)
    inner = good & (np.abs(uv - (160, 120)) < (130, 90)).all(axis=1)
    assert inner.sum() > 100
    error = np.linalg.norm(new - uv - (dx, dy), axis=1)[inner]
    assert np.median(error) < 0.08
    assert np.percentile(error, 95) < 0.2


def test_covered_points_and_points_that_leave_are_not_found():
    wide = texture(2, (240, 320))
    covered = wide.copy()
    covered[80:160, 100:220] = texture(9, (80, 120))
    uv = query_points(wide, np.zeros((0, 2)), CELL, seed=0)
    _, good = follow(wide, covered, uv, uv, 1.0)
    inside = (np.abs(uv - (160, 120)) < (48, 28)).all(axis=1)
    outside = (np.abs(uv - (160, 120)) > (75, 55)).any(axis=1)
    assert good[inside].mean() < 0.3
    assert good[outside].mean() > 0.95

    moved = cv2.warpAffine(wide, np.array([[1.0, 0, 30], [0, 1, 0]]), (320, 240))
    new, good = follow(wide, moved, uv, uv + np.array([30, 0]), 1.0)
    assert not good[uv[:, 0] > 290].any()
    assert (new[good] >= 4).all() and (new[good] < (316, 236)).all()


def test_mismatch_is_the_round_trip_and_no_points_are_no_error():
    wide = texture(2, (240, 320))
    uv = query_points(wide, np.zeros((0, 2)), CELL, seed=0)
    new, mismatch = sought(wide, wide, uv, uv)
    assert np.allclose(new, uv, atol=1e-3)
    assert mismatch.max() < 1e-2
    for values in follow(wide, wide, np.zeros((0, 2)), np.zeros((0, 2)), 1.0):
        assert len(values) == 0


# ------------------------------------------------------------------ the table
def test_the_table_never_grows_and_frees_rows():
    table = TrackTable(rows=50, columns=6)
    random = np.random.default_rng(0)
    seen_ids: set[int] = set()
    for frame in range(40):
        if frame >= 5:
            table.close_column(frame - 5)
        table.open_column(frame)
        if frame:
            rows = table.rows_in(frame - 1)
            good = random.random(len(rows)) < 0.6
            table.see(rows, frame, random.uniform(0, 99, (len(rows), 2)), good)
        rows = table.add(frame, random.uniform(0, 99, (30, 2)), np.ones(30), np.zeros(30, bool))
        fresh = set(table.ids[rows].tolist())
        assert not fresh & seen_ids
        seen_ids |= fresh
        assert table.uv.shape == (50, 6, 2)
        assert table.used.sum() <= 50
        ids = table.ids[table.used]
        assert len(np.unique(ids)) == len(ids)
    assert len(seen_ids) > 150


def test_a_full_table_takes_as_many_as_fit():
    table = TrackTable(rows=10, columns=3)
    table.open_column(0)
    assert len(table.add(0, np.zeros((7, 2)), np.ones(7), np.zeros(7, bool))) == 7
    assert len(table.add(0, np.zeros((7, 2)), np.ones(7), np.zeros(7, bool))) == 3
    assert len(table.add(0, np.zeros((7, 2)), np.ones(7), np.zeros(7, bool))) == 0


def test_what_is_unseen_for_longest_makes_room_for_what_is_new():
    table = TrackTable(rows=6, columns=4)
    for frame in (0, 1, 2):
        table.open_column(frame)
    uv, still = np.arange(12.0).reshape(6, 2), np.zeros(6, bool)
    rows = table.add(0, uv, np.ones(6), still)
    table.see(rows, 1, uv, np.array([True] * 5 + [False]))
    table.see(rows[:5], 2, uv[:5], np.array([True, True, False, False, True]))
    ids = table.ids[rows]
    new = table.add(2, uv[:2] + 50, np.full(2, 3.0), still[:2])
    assert len(new) == 2
    held = set(table.ids[table.used].tolist())
    assert held == {*ids[[0, 1, 3, 4]].tolist(), *table.ids[new].tolist()}
    assert np.isnan(table.uv[new][:, [table.column(0), table.column(1)]]).all()
    assert len(table.add(2, uv, np.ones(6), still)) == 1, "what is tracked stays"


def test_a_lost_point_keeps_its_past_until_its_frames_go():
    table = TrackTable(rows=4, columns=4)
    for frame in (0, 1, 2):
        table.open_column(frame)
    rows = table.add(
        0, np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 2.0]), np.zeros(2, bool)
    )
    table.see(rows, 1, np.array([[1.5, 2.5], [3.5, 4.5]]), np.array([True, True]))
    table.see(rows, 2, np.zeros((2, 2)), np.array([True, False]))
    assert table.rows_in(1).tolist() == rows[:1].tolist()
    assert np.isnan(table.uv[rows[1], table.column(2)]).all()
    table.close_column(0)
    assert table.used[rows].tolist() == [True, False]
    assert table.rows_in(2).tolist() == rows[:1].tolist()


def test_a_later_frame_becomes_the_host_and_what_was_seen_before_stays():
    table = TrackTable(rows=4, columns=3)
    table.open_column(3)
    uv = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    rows = table.add(3, uv, np.ones(3), np.zeros(3, bool))
    for frame, good in ((5, [True, True, True]), (8, [True, False, True])):
        table.open_column(frame)
        table.see(rows, frame, uv + frame, np.array(good))
    assert table.seen_among(rows[::-1], 8).tolist() == rows[[2, 0]].tolist()
    table.rehost(rows[:2], 5)
    assert table.host[rows].tolist() == [5, 5, 3]
    assert table.host_uv[rows].tolist() == [*(uv[:2] + 5).tolist(), uv[2].tolist()]
    assert table.uv[rows, table.column(3)].tolist() == uv.tolist()
    assert table.uv[rows[0], table.column(8)].tolist() == (uv[0] + 8).tolist()

"""Ghosts in a static map: a wall, a box that walks before it, and points put by hand."""

from __future__ import annotations

import pytest
import torch
from analytic_scene import intrinsics
from real_sequence import require

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.ghosts import TrueView, _views, evaluate_ghosts
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.storage.dataset import SequenceFolder

VIEW = intrinsics(48, 64)
WALL, BOX = 4.0, 2.0


def true_view(step: int) -> TrueView:
    """A wall 4 before the camera; a box 2 before it covers other columns in each frame."""
    depth, moving = torch.full(VIEW.size, WALL), torch.zeros(VIEW.size, dtype=torch.bool)
    columns = slice(8 + 12 * step, 16 + 12 * step)
    depth[10:40, columns], moving[10:40, columns] = BOX, True
    T = torch.eye(4, dtype=torch.float64)
    T[0, 3] = 0.001 * step
    return TrueView(T, VIEW, depth, moving)


VIEWS = [true_view(step) for step in range(4)]


def on_pixels(depth: float, count: int) -> torch.Tensor:
    """Points at a depth, on pixels of row 20 that the box covers in the first frame."""
    points = pointmap.from_depth(torch.full(VIEW.size, depth), VIEW)
    return points[20, 9 : 9 + count]


def test_points_of_the_wall_are_no_ghosts():
    wall = pointmap.from_depth(torch.full(VIEW.size, WALL), VIEW).reshape(-1, 3)
    report = evaluate_ghosts(wall, VIEWS)
    assert report.ghosts == 0 and report.floating == 0
    assert report.num_points == len(wall)


def test_shares_are_those_put_in():
    wall = pointmap.from_depth(torch.full(VIEW.size, WALL), VIEW).reshape(-1, 3)[:90]
    cloud = torch.cat([wall, on_pixels(BOX, 6), on_pixels(3.0, 4)])
    report = evaluate_ghosts(cloud, VIEWS)
    assert report.ghosts == pytest.approx(0.06)
    assert report.floating == pytest.approx(0.04)


def test_depth_within_the_tolerance_is_the_surface():
    assert evaluate_ghosts(on_pixels(BOX * 1.04, 6), VIEWS).ghosts == 1
    assert evaluate_ghosts(on_pixels(BOX * 1.04, 6), VIEWS, tolerance=0.02).ghosts == 0


def test_a_foot_on_the_floor_is_no_ghost():
    """What lies within the tolerance of a static surface, too, may well be that."""
    touching = [TrueView(v.T_world_cam, VIEW, v.depth.clamp(max=2.05), v.moving) for v in VIEWS]
    assert evaluate_ghosts(on_pixels(BOX, 6), touching).ghosts == 0


def test_an_empty_map_cannot_be_judged():
    with pytest.raises(EvaluationError, match="no point"):
        evaluate_ghosts(torch.empty(0, 3), VIEWS)


@pytest.mark.data
def test_a_map_of_true_points_has_the_ghosts_that_the_masks_leave_in():
    """All true pixels of a frame: with the mask no ghost, without it nearly all that moves."""
    views = list(_views(SequenceFolder(require("rendered/room_walkers"))))[20:60:4]
    first = views[0]
    points = pointmap.from_depth(first.depth, first.intrinsics)[::4, ::4]
    world = se3.transform(first.T_world_cam.float(), points)
    moving = first.moving[::4, ::4]
    assert evaluate_ghosts(world[~moving], views).ghosts == 0
    left_in = evaluate_ghosts(world.reshape(-1, 3), views)
    share = float(moving.float().mean())
    assert 0.7 * share < left_in.ghosts <= share

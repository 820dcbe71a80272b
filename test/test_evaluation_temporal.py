"""Flicker, acceleration and slices of cases that can be worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from analytic_scene import depth_at, intrinsics, pose
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.temporal import (
    FlickerFrame,
    acceleration,
    depth_flicker,
    slice_picture,
    yt_slice,
)

VIEW = intrinsics(48, 64)
EVERYWHERE = torch.ones(48, 64, dtype=torch.bool)


def room(factors: list[float], **changes: Tensor) -> list[FlickerFrame]:
    """Frames of a walk through an exact room, each depth times its factor."""
    frames = []
    for index, factor in enumerate(factors):
        depth = depth_at(5 * index, VIEW)
        parts = {"geometry": depth, "static": EVERYWHERE} | changes
        frames.append(FlickerFrame(depth * factor, T_world_cam=pose(5 * index), **parts))
    return frames


def still(depths: list[Tensor], static: Tensor = EVERYWHERE) -> list[FlickerFrame]:
    """A camera that stands before a wall at depth 2."""
    wall = torch.full((48, 64), 2.0)
    eye = torch.eye(4, dtype=torch.float64)
    return [FlickerFrame(depth, wall, eye, static) for depth in depths]


def test_exact_depth_of_a_moving_camera_does_not_flicker():
    report = depth_flicker(room([1.0] * 5), VIEW)
    assert report.flicker < 1e-3
    assert report.num_pixels > 3 * 48 * 64


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6))
def test_a_factor_of_each_frame_is_the_flicker_where_the_camera_stands(factors):
    wall = torch.full((48, 64), 2.0)
    report = depth_flicker(still([wall * factor for factor in factors]), VIEW)
    pairs = pairwise(factors)
    assert report.flicker == pytest.approx(np.mean([abs(a - b) / a for a, b in pairs]), abs=1e-6)
    assert report.num_pixels == (len(factors) - 1) * 48 * 64


def test_flicker_is_seen_through_the_cameras_motion():
    once = depth_flicker(room([1.0, 1.02, 1.0, 1.02]), VIEW).flicker
    assert 0.01 < once < 0.03
    # The baseline stays, so a wrong depth reaches the other view along another ray.
    assert once == pytest.approx(0.02, rel=0.3)


def test_moving_unknown_and_hidden_pixels_do_not_count():
    wall = torch.full((48, 64), 2.0)
    left = torch.arange(64).expand(48, 64) < 32
    flickering = torch.where(left, wall, wall * 1.5)
    assert depth_flicker(still([wall, flickering, wall], left), VIEW).flicker == 0.0
    unknown = torch.where(left, wall, torch.nan)
    report = depth_flicker(still([wall, unknown, wall]), VIEW)
    assert (report.flicker, report.num_pixels) == (0.0, 2 * 48 * 32)
    frames = still([wall, wall * 9])
    near = torch.where(left, wall, wall / 2)  # something steps before the right half
    frames[1] = FlickerFrame(near, near, frames[1].T_world_cam, EVERYWHERE)
    report = depth_flicker(frames, VIEW)
    assert report.flicker == 0.0 and report.num_pixels == pytest.approx(48 * 32, abs=48)
    with pytest.raises(EvaluationError, match="no static pixel"):
        depth_flicker(still([wall, wall], ~EVERYWHERE), VIEW)
    with pytest.raises(EvaluationError, match="no static pixel"):
        depth_flicker(still([wall]), VIEW)


def test_without_truth_the_depth_finds_its_own_pixels():
    frames = [
        FlickerFrame(frame.depth, frame.depth, frame.T_world_cam, frame.static)
        for frame in room([1.0, 1.02, 1.0, 1.02])
    ]
    with_truth = depth_flicker(room([1.0, 1.02, 1.0, 1.02]), VIEW).flicker
    assert depth_flicker(frames, VIEW).flicker == pytest.approx(with_truth, rel=0.2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
def test_acceleration_equals_numpys_second_differences(seed, depth):
    points = np.random.default_rng(seed).normal(size=(9, 5, 3))
    points[4, 2] = np.nan
    second = np.linalg.norm(np.diff(points, 2, axis=0), axis=-1)
    expected = math.sqrt(np.nanmean(second**2)) / depth
    assert acceleration(torch.from_numpy(points), depth) == pytest.approx(expected)


def test_steady_motion_has_no_acceleration_and_a_parabola_its_own():
    time = torch.arange(10, dtype=torch.float64)[:, None, None]
    direction = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    assert acceleration(3 * time * direction, 2.0) == pytest.approx(0, abs=1e-12)
    assert acceleration(0.5 * 0.3 * time**2 * direction, 2.0) == pytest.approx(0.15)
    with pytest.raises(EvaluationError, match="three frames"):
        acceleration(time[:2] * direction, 2.0)
    with pytest.raises(EvaluationError, match="above zero"):
        acceleration(time * direction, math.nan)


def test_a_slice_shows_one_column_over_time():
    images = torch.arange(4 * 6 * 5).reshape(4, 6, 5)
    found = yt_slice(images, 3)
    assert found.shape == (6, 4)
    for t in range(4):
        assert torch.equal(found[:, t], images[t, :, 3])
    assert yt_slice([torch.zeros(6, 5, 3)], 0).shape == (6, 1, 3)
    with pytest.raises(EvaluationError, match="column 5"):
        yt_slice(images, 5)
    with pytest.raises(EvaluationError, match="no image"):
        yt_slice([], 0)


def test_a_picture_of_a_slice_is_linear_in_inverse_depth():
    depth = torch.tensor([[1.0, 4.0, 8 / 5, 0.5, 100.0, math.nan]])
    found = slice_picture(depth, 1.0, 4.0)
    assert found.dtype == np.uint8
    assert found.tolist() == [[255, 0, 128, 255, 0, 0]]
    with pytest.raises(EvaluationError, match="near"):
        slice_picture(depth, 2.0, 1.0)

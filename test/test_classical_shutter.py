"""Rolling shutter: what it does to points, and that the adjustment finds and undoes it."""

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from flow_scene import FOCAL as DENSE_FOCAL
from flow_scene import SIZE, pixels, rough_depth
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sequence import require
from sparse_scene import FOCAL, bearings, global_shutter, inverse_depths, project

from recon4d_ros.config import Config, DepthConfig
from recon4d_ros.datatypes import FlowField, Intrinsics
from recon4d_ros.predictors.classical import bundle, rigid
from recon4d_ros.predictors.classical import depth as dense
from recon4d_ros.predictors.classical.odometry import Odometry
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.problem import Problem, Readout
from recon4d_ros.predictors.classical.shutter import ReadoutTime, Shutter, image_motion
from recon4d_ros.storage.source import open_source

CAMERA = Pinhole(FOCAL, FOCAL, 319.5, 239.5, 480)
INTERVAL_S, READOUT_S = 1 / 30, 0.025
TWIST = np.array([-1.2, 0.3, 0.4, 0.6, 2.2, -1.0])  # per second

twists = st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6).map(np.array)


def pose(time_s: float) -> np.ndarray:
    """T_cam_world of a hand that shakes: velocities change from frame to frame."""
    shake = 0.02 * np.sin(time_s * np.array([7.0, 11.0, 9.0, 13.0, 8.0, 12.0]))
    return rigid.exp(TWIST * time_s + shake)


def seen(ray: np.ndarray, rho: np.ndarray, time_s: float) -> np.ndarray:
    """Px (N, 2) of points of frame 0's middle row, each at the time its row is read."""
    uv = CAMERA.pixels(project(pose(time_s), ray, rho))
    for _ in range(20):
        row_s = (uv[:, 1] - 239.5) / 480 * READOUT_S
        uv = np.stack(
            [
                CAMERA.pixels(project(pose(time_s + late), ray[k : k + 1], rho[k : k + 1]))[0]
                for k, late in enumerate(row_s)
            ]
        )
    return uv


@given(twists, st.floats(-0.6, 0.6), st.floats(-0.5, 0.5), st.floats(0.1, 2.0))
@settings(max_examples=40, deadline=None)
def test_image_motion_is_the_derivative_of_projection(xi, u, v, rho):
    ray, step = np.array([[u, v]]), 1e-6
    there, back = (
        project(rigid.exp(sign * step * xi), ray, np.array([rho])) for sign in (1.0, -1.0)
    )
    expected = (there - back)[0] / (2 * step)
    assert np.allclose(image_motion(ray[0], np.array(rho), xi), expected, atol=1e-6)


@given(twists)
@settings(max_examples=40, deadline=None)
def test_the_logarithm_undoes_the_exponential(xi):
    assert np.allclose(rigid.log(rigid.exp(xi)), xi, atol=1e-9)
    assert np.allclose(rigid.log(rigid.exp(1e-7 * xi)), 1e-7 * xi, rtol=1e-6, atol=1e-16)


def shutter(num_frames: int) -> Shutter:
    """Velocities measured from the poses of the middle rows."""
    made = Shutter(CAMERA, ReadoutTime())
    for frame in range(num_frames):
        made.open(frame, int(1e9 * frame * INTERVAL_S))
    poses = {frame: pose(frame * INTERVAL_S) for frame in range(num_frames)}
    made.measure(poses, list(range(num_frames)))
    return made


def test_sweep_is_what_the_readout_does_to_a_point():
    ray, rho = bearings(60, 5), inverse_depths(60, 5)
    made = shutter(7)
    time_s = 3 * INTERVAL_S
    bent = seen(ray, rho, time_s)
    still = project(pose(time_s), ray, rho)
    undone = CAMERA.normalised(bent) - READOUT_S * made.sweep(bent[:, None], [3], rho)[:, 0]
    before = np.abs(CAMERA.normalised(bent) - still).max(axis=1) * FOCAL
    after = np.abs(undone - still).max(axis=1) * FOCAL
    assert np.median(before) > 1.5
    assert np.median(after) < 0.15 * np.median(before)


def test_a_new_frame_needs_no_more_than_the_newest_three_poses():
    grown, whole = shutter(6), shutter(7)
    poses = {frame: pose(frame * INTERVAL_S) for frame in range(7)}
    uv, rho = CAMERA.pixels(bearings(20, 5))[:, None], inverse_depths(20, 5)
    assert np.any(grown.sweep(uv, [5], rho) != whole.sweep(uv, [5], rho))
    grown.open(6, int(6e9 * INTERVAL_S))
    assert np.all(grown.sweep(uv, [6], rho) == 0.0)
    grown.measure(poses, [4, 5, 6])
    for frame in range(7):
        assert np.array_equal(grown.velocity(frame), whole.velocity(frame))
        assert np.array_equal(grown.sweep(uv, [frame], rho), whole.sweep(uv, [frame], rho))
    grown.forget_all_but({5, 6})
    with pytest.raises(KeyError):
        grown.sweep(uv, [4], rho)


def rolling_problem(num_frames: int = 7, count: int = 250) -> tuple[Problem, np.ndarray]:
    ray, rho = bearings(count, 3), inverse_depths(count, 3)
    uv = np.stack([seen(ray, rho, frame * INTERVAL_S) for frame in range(num_frames)], axis=1)
    made = shutter(num_frames)
    T = np.stack([pose(frame * INTERVAL_S) for frame in range(num_frames)])
    readout = Readout(
        made.sweep(uv, list(range(num_frames)), rho),
        made.sweep(uv[:, :1], [0], rho)[:, 0],
        ReadoutTime(),
    )
    noise = np.random.default_rng(4).normal(size=uv.shape) * 0.1
    problem = Problem(
        T_cam_world=T,
        free=np.arange(num_frames) > 1,
        host=np.zeros(count, np.int64),
        ray=CAMERA.normalised(uv[:, 0]),
        rho=rho,
        uv=CAMERA.normalised(uv + noise),
        rho_prior=np.ones(count),
        rho_prior_weight=np.zeros(count),
        focal_px=FOCAL,
        focal_sigma=0.0,
        sigma_px=0.3,
        readout=readout,
    )
    return problem, T


def test_the_adjustment_finds_the_readout_and_mends_the_poses():
    problem, T = rolling_problem()
    found = bundle.solve(problem, 30)
    assert found.readout_s == pytest.approx(READOUT_S, rel=0.08)
    assert 0 < found.readout_sigma_s < 1e-3
    still = bundle.solve(replace(problem, readout=global_shutter(*problem.uv.shape[:2])), 30)
    errors = [np.abs(solution.T_cam_world - T).max() for solution in (found, still)]
    assert errors[0] < 0.6 * errors[1]
    assert np.nanmedian(found.residual_px) < 0.7 * np.nanmedian(still.residual_px)


def test_what_was_learned_is_bounded():
    sure, unsure = ReadoutTime.learned(0.02, 1e-6), ReadoutTime.learned(0.02, np.inf)
    assert 1e-3 < sure.sigma_s < unsure.sigma_s == ReadoutTime.sigma_s
    assert sure.seconds == unsure.seconds == 0.02


# ------------------------------------------------------------------ dense depth
def rolling_flow(twists_by_row: tuple[np.ndarray, np.ndarray], T: np.ndarray) -> FlowField:
    """Exact flow between two images whose rows are read in turn, by whole points in space."""
    height, width = SIZE
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    ray = (pixels() - centre) / DENSE_FOCAL
    points = np.concatenate([ray, np.ones((*SIZE, 1))], -1) * rough_depth()[..., None]
    at_row = (np.arange(height) - centre[1]) / height
    to_middle = rigid.exp(-at_row[:, None] * twists_by_row[0])
    middle = np.einsum("hij,hwj->hwi", to_middle[:, :3, :3], points) + to_middle[:, None, :3, 3]
    there = middle @ T[:3, :3].T + T[:3, 3]
    landing = pixels()
    for _ in range(15):
        late = rigid.exp(((landing[..., 1] - centre[1]) / height)[..., None] * twists_by_row[1])
        moved = np.einsum("hwij,hwj->hwi", late[..., :3, :3], there) + late[..., :3, 3]
        landing = moved[..., :2] / moved[..., 2:] * DENSE_FOCAL + centre
    inside = ((landing >= 0) & (landing <= [width - 1, height - 1])).all(-1)
    flow = torch.from_numpy((landing - pixels()).astype(np.float32))
    structure = torch.tensor((1e6, 0.0, 1e6)).expand(*SIZE, 3)
    return FlowField(0, 1, flow, torch.from_numpy(inside), structure)


def test_depth_of_rows_that_are_read_in_turn_is_exact():
    height, width = SIZE
    grid = Intrinsics(DENSE_FOCAL, DENSE_FOCAL, (width - 1) / 2, (height - 1) / 2, width, height)
    spins = np.array([0.02, 0.01, 0.0, 0.01, 0.03, -0.01]), np.array([0.03, 0, 0, 0, 0.02, 0.01])
    T = rigid.exp(np.array([0.25, -0.05, 0.05, 0.0, -0.02, 0.01]))
    field, rays = rolling_flow(spins, T), dense.Rays.of(grid)
    errors = []
    for twist in (spins, (np.zeros(6), np.zeros(6))):
        views = {0: dense.View(np.eye(4), twist[0]), 1: dense.View(T, twist[1])}
        found = dense.measured([field], views, rays, DepthConfig()).depth(0.2)
        known = np.isfinite(found)
        errors.append(np.median(np.abs(found / rough_depth() - 1)[known]))
    assert errors[0] < 2e-3
    assert errors[1] > 10 * errors[0]


# ------------------------------------------------------------------ real cameras
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "low_s", "high_s"),
    [
        ("tum_fr3_walking_halfsphere_clip", 0.026, 0.035),  # measured: 0.031
        ("icl_livingroom1", -0.003, 0.003),  # rendered, all rows at once
    ],
)
def test_the_readout_of_a_camera_is_found(name, low_s, high_s):
    odometry = None
    for frame in islice(open_source(require(name)), 40):
        if odometry is None:
            view = frame.intrinsics
            camera = Pinhole(view.fx, view.fy, view.cx, view.cy, view.height)
            config = Config()
            odometry = Odometry(config.odometry, config.window, camera, ReadoutTime())
        grey = cv2.cvtColor(frame.rgb.numpy(), cv2.COLOR_RGB2GRAY)
        odometry.track(frame.index, frame.stamp_ns, grey)
        if frame.index % 4 == 3:
            odometry.adjust()
    assert odometry.ready
    assert low_s < odometry.shutter.readout.seconds < high_s

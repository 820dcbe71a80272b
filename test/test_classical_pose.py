"""Pose of one frame, against OpenCV and the truth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sparse_scene import FOCAL, bearings, inverse_depths, motion, project

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.pose import Sightings, fit_rotation, refine_pose, sample_pose

TRUTH = motion((0.05, -0.1, 0.03), (0.2, -0.05, 0.1))
HOST = motion((0.02, 0.01, -0.04), (0.05, 0.1, -0.2))


def sightings(count: int = 200, noise_px: float = 0.0, seed: int = 0) -> Sightings:
    """Points of two hosts seen from TRUTH."""
    ray, rho = bearings(count, seed), inverse_depths(count, seed)
    hosts = np.where((np.arange(count) % 2 == 0)[:, None, None], np.eye(4), HOST)
    uv = np.concatenate(
        [
            project(TRUTH @ rigid.inverse(host), r[None], d[None])
            for host, r, d in zip(hosts, ray, rho, strict=True)
        ]
    )
    uv = uv + np.random.default_rng(seed).normal(size=uv.shape) * noise_px / FOCAL
    return Sightings(rigid.inverse(hosts), ray, rho, np.full(count, 1e-6), uv, FOCAL)


def with_outliers(seen: Sightings, share: float) -> tuple[Sightings, np.ndarray]:
    random = np.random.default_rng(5)
    wrong = random.random(len(seen.uv)) < share
    uv = np.where(wrong[:, None], random.uniform(-0.6, 0.6, seen.uv.shape), seen.uv)
    return replace(seen, uv=uv), wrong


def distance(T: np.ndarray) -> float:
    return float(np.abs(T - TRUTH).max())


def test_exact_sights_give_the_exact_pose():
    fit = refine_pose(sightings(), motion((0, 0, 0), (0.1, 0, 0.05)))
    assert distance(fit.T_cam_world) < 1e-7
    assert fit.inlier.all()
    assert fit.residual_px < 1e-4


def test_noisy_sights_give_what_opencv_finds():
    seen = sightings(noise_px=0.2)
    bearing = rigid.homogeneous(seen.ray) / seen.rho[:, None]
    points = (seen.T_world_host[:, :3, :3] @ bearing[..., None])[..., 0]
    points = points + seen.T_world_host[:, :3, 3]
    rotvec = Rotation.from_matrix(TRUTH[:3, :3]).as_rotvec()
    found, t = cv2.solvePnPRefineLM(
        points, seen.uv.copy(), np.eye(3), None, rotvec[:, None].copy(), TRUTH[:3, 3:].copy()
    )
    oracle = motion(tuple(found[:, 0]), tuple(t[:, 0]))
    fit = refine_pose(seen, np.eye(4))
    # The robust kernel weighs the larger of the small residuals a little less.
    assert np.abs(fit.T_cam_world - oracle).max() < 2e-4
    assert distance(fit.T_cam_world) < 1e-3
    assert 0.1 < fit.residual_px < 0.4


def test_a_quarter_of_wrong_sights_is_told_apart():
    seen, wrong = with_outliers(sightings(noise_px=0.2), 0.25)
    fit = refine_pose(seen, motion((0.04, -0.08, 0.02), (0.18, -0.04, 0.08)))
    assert distance(fit.T_cam_world) < 2e-3
    assert (fit.inlier == ~wrong).mean() > 0.98


def test_points_of_uncertain_depth_weigh_less():
    """Half of the depths are 30 % too large; only the one told so finds the pose."""
    seen = sightings(noise_px=0.1)
    unsure = np.arange(200) % 3 != 0
    wrong = np.where(unsure, seen.rho / 1.3, seen.rho)
    told = replace(seen, rho=wrong, rho_sigma=np.where(unsure, 0.3 * wrong, 1e-3))
    untold = replace(told, rho_sigma=np.full(200, 1e-3))
    errors = [distance(refine_pose(each, TRUTH).T_cam_world) for each in (told, untold)]
    assert errors[0] < 0.01
    assert errors[0] < 0.3 * errors[1]


def test_points_of_unknown_depth_still_hold_the_rotation():
    seen = sightings(noise_px=0.05)
    unknown = replace(seen, rho=np.ones(200), rho_sigma=np.ones(200))
    fit = refine_pose(unknown, motion((0.03, -0.08, 0.02), (0.2, -0.05, 0.1)))
    turned = Rotation.from_matrix(fit.T_cam_world[:3, :3].T @ TRUTH[:3, :3])
    assert turned.magnitude() < 0.03


def test_sampling_finds_the_pose_among_forty_percent_wrong_sights():
    seen, _ = with_outliers(sightings(noise_px=0.2), 0.4)
    T = sample_pose(seen)
    assert T is not None
    assert distance(T) < 0.02
    assert distance(refine_pose(seen, T).T_cam_world) < 3e-3


def test_sampling_says_when_there_is_nothing_to_find():
    seen = sightings(40)
    noise = np.random.default_rng(0).uniform(-0.6, 0.6, seen.uv.shape)
    assert sample_pose(replace(seen, uv=noise)) is None
    few = Sightings(*(part[:8] for part in vars(seen).values() if np.ndim(part)), FOCAL)
    assert sample_pose(few) is None


def test_sampling_is_the_same_in_every_run():
    seen, _ = with_outliers(sightings(noise_px=0.2), 0.4)
    assert np.array_equal(sample_pose(seen), sample_pose(seen))


@given(st.lists(st.floats(-0.2, 0.2), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_pure_rotation_is_found_exactly(rotvec):
    T = motion(tuple(rotvec), (0, 0, 0))
    ray = bearings(120, 4)
    R, length = fit_rotation(ray, project(T, ray, np.ones(120)), np.eye(3), FOCAL)
    assert np.allclose(R, T[:3, :3], atol=1e-8)
    assert length.max() < 1e-4


def test_what_rotation_leaves_over_is_the_parallax():
    ray, rho = bearings(300, 4), inverse_depths(300, 4)
    T = motion((0, 0.1, 0), (0, 0, 0.1))  # forward: no rotation looks like it
    R, length = fit_rotation(ray, project(T, ray, rho), np.eye(3), FOCAL)
    pure = FOCAL * np.linalg.norm(
        project(T, ray, rho) - project(motion((0, 0.1, 0), (0, 0, 0)), ray, rho), axis=1
    )
    assert Rotation.from_matrix(R.T @ T[:3, :3]).magnitude() < 0.02
    assert np.median(length) == pytest.approx(np.median(pure), rel=0.2)

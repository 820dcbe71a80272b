"""The first structure from exact and noisy tracks of point scenes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_scene import FOCAL, Path, bearings, global_shutter, inverse_depths, project

from recon4d_ros.predictors.classical import bootstrap as module
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.bootstrap import (
    Structure,
    Views,
    bootstrap,
    rotation_between,
)

SIDEWAYS = Path()
FORWARD = Path(rotvec=(0.0, 0.0, 0.0), translation=(0.0, 0.0, -0.05))
TURNING = Path(rotvec=(0.006, 0.02, -0.008), translation=(-0.04, 0.01, -0.02))


def views_of(
    path: Path,
    count: int = 200,
    noise_px: float = 0.1,
    moving: float = 0.0,
    rho: np.ndarray | None = None,
) -> Views:
    """What the odometry hands over: rotations are known as far as rotation alone explains them."""
    poses = path.poses()
    ray, rho = bearings(count, 1), inverse_depths(count, 1) if rho is None else rho
    random = np.random.default_rng(2)
    drift = random.normal(size=(count, 2)) * 0.01 * (random.random(count) < moving)[:, None]
    base = rigid.inverse(poses[0])
    uv = np.stack([project(T @ base, ray, rho) + k * drift for k, T in enumerate(poses)], axis=1)
    uv += random.normal(size=uv.shape) * noise_px / FOCAL
    guesses = [np.eye(3)]
    residual = 0.0
    for frame in range(1, len(poses)):
        R, residual = rotation_between(uv[:, [0, frame]], guesses[-1], FOCAL)
        guesses.append(R)
    still = global_shutter(count, len(poses))
    return Views(uv, np.stack(guesses), residual, FOCAL, 0.3, still)


def relative_errors(found: Structure, path: Path, count: int = 200) -> tuple[float, float]:
    """Median relative error of the inverse depths, and of the last camera's place, up to scale."""
    rho, T = inverse_depths(count, 1), path.poses()
    T_last = T[-1] @ rigid.inverse(T[0])
    scale = np.median(found.rho / rho)
    place = -T_last[:3, :3].T @ T_last[:3, 3] / scale
    ours = -found.T_cam_first[-1][:3, :3].T @ found.T_cam_first[-1][:3, 3]
    depth_error = np.median(np.abs(found.rho / (rho * scale) - 1))
    return float(depth_error), float(np.linalg.norm(ours - place) / np.linalg.norm(place))


@pytest.mark.parametrize("path", [SIDEWAYS, FORWARD, TURNING], ids=["sideways", "forward", "turn"])
def test_structure_is_recovered_up_to_scale(path):
    found = bootstrap(views_of(path))
    assert found is not None
    depth_error, place_error = relative_errors(found, path)
    assert depth_error < 0.03
    assert place_error < 0.05
    assert np.allclose(found.T_cam_first[0], np.eye(4), atol=1e-9)
    assert np.median(found.rho) == pytest.approx(1.0)
    assert np.nanmedian(found.residual_px) < 0.3


@given(
    st.lists(st.floats(-0.01, 0.01), min_size=3, max_size=3),
    st.floats(0, 2 * np.pi),
    st.floats(-0.7, 0.7),
)
@settings(max_examples=10, deadline=None)
def test_any_direction_of_motion_will_do(rotvec, azimuth, elevation):
    horizontal = np.cos(elevation)
    step = 0.05 * np.array(
        [horizontal * np.cos(azimuth), np.sin(elevation), horizontal * np.sin(azimuth)]
    )
    path = Path(tuple(rotvec), tuple(step))
    found = bootstrap(views_of(path, noise_px=0.05))
    assert found is not None
    assert relative_errors(found, path)[0] < 0.05


@pytest.mark.parametrize("path", [SIDEWAYS, TURNING], ids=["sideways", "turn"])
def test_a_start_that_takes_near_for_far_is_turned_round(path, monkeypatch):
    """As on the red kitchen, where the essential matrix was a mirrored one."""
    views = views_of(path)
    right = bootstrap(views)
    assert right is not None
    wrong = module._reversed(right)
    stuck = module._adjusted(views, *wrong)
    assert np.corrcoef(stuck.rho, inverse_depths(len(stuck.rho), 1))[0, 1] < -0.6
    monkeypatch.setattr(module, "_starts", lambda _: iter([wrong]))
    found = bootstrap(views)
    assert found is not None
    depth_error, place_error = relative_errors(found, path)
    assert depth_error < 0.03 and place_error < 0.05


def test_a_short_baseline_does_not_pull_near_and_far_together():
    """Depths from half a metre to eight, 3 px of parallax: the prior must not be heard."""
    rho = 1 / np.exp(np.random.default_rng(2).uniform(np.log(0.5), np.log(8.0), 600))
    path = Path(rotvec=(0.002, 0.004, 0.001), translation=(0.003, 0.003, 0.0))
    found = bootstrap(views_of(path, count=600, noise_px=0.3, rho=rho))
    assert found is not None
    true = rho / np.median(rho)
    assert np.median((found.rho / true)[true < 0.5]) == pytest.approx(1.0, abs=0.05)
    assert np.median((found.rho / true)[true > 2.0]) == pytest.approx(1.0, abs=0.03)


def test_a_quarter_of_moving_points_does_no_harm():
    found = bootstrap(views_of(SIDEWAYS, count=300, moving=0.25))
    assert found is not None
    depth_error, place_error = relative_errors(found, SIDEWAYS, count=300)
    assert depth_error < 0.05
    assert place_error < 0.1


def test_what_most_of_the_view_does_not_fit_is_told():
    """The fewer frames, the closer they must be explained: two explain nearly anything."""
    found = bootstrap(views_of(SIDEWAYS, count=300))
    assert found is not None and found.explains_most
    off = np.random.default_rng(0).random(found.residual_px.shape) < 0.3
    spoilt = replace(found, residual_px=np.where(off, 1.5, 0.1))
    assert spoilt.explains_most
    assert not replace(spoilt, T_cam_first=found.T_cam_first[:4]).explains_most


@pytest.mark.parametrize("rotvec", [(0.0, 0.02, 0.0), (0.01, 0.005, 0.02), (0.0, 0.0, 0.0)])
def test_without_translation_there_is_no_structure(rotvec):
    """A camera that turns or stands: noise alone must not pass for depth."""
    path = Path(rotvec=rotvec, translation=(0.0, 0.0, 0.0))
    for noise_px in (0.05, 0.3):
        assert bootstrap(views_of(path, noise_px=noise_px)) is None


def test_equal_input_gives_equal_structure():
    first, second = (bootstrap(views_of(TURNING)) for _ in range(2))
    assert np.array_equal(first.rho, second.rho)
    assert np.array_equal(first.T_cam_first, second.T_cam_first)

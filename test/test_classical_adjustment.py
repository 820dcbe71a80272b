"""What the odometry makes of a bundle adjustment before it takes it over."""

from dataclasses import replace

import numpy as np
import pytest
from sparse_scene import Path
from test_classical_bundle import problem

from recon4d_ros.predictors.classical import bundle, rigid
from recon4d_ros.predictors.classical.adjustment import Setup, is_shape_sure, regauged
from recon4d_ros.predictors.classical.pinhole import UNKNOWN, Pinhole
from recon4d_ros.predictors.classical.problem import Solution
from recon4d_ros.predictors.classical.tracks import TrackTable

FRAMES = 14


def adjusted(
    T_before: np.ndarray, T_after: np.ndarray, fixed: int = 1, seam: int = -1
) -> tuple[np.ndarray, Solution]:
    """Camera centres of a solution before and after its scale was mended, and that."""
    some, *_ = problem(Path(num_frames=FRAMES), count=20)
    some = replace(some, T_cam_world=T_before, free=np.arange(FRAMES) >= fixed)
    setup = Setup(np.arange(20), np.arange(20), list(range(FRAMES)), seam, some)
    found = replace(bundle.solve(some, 0), T_cam_world=T_after)
    mended = regauged(setup, found)
    return centres(mended.T_cam_world), mended


def path(scale: float = 1.0) -> np.ndarray:
    T = Path(num_frames=FRAMES).poses()
    T[:, :3, 3] *= scale
    return T


def centres(T_cam_world: np.ndarray) -> np.ndarray:
    return rigid.inverse(T_cam_world)[:, :3, 3]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3])
def test_a_scale_that_nothing_holds_stays(scale):
    found, mended = adjusted(path(), path(scale))
    assert np.allclose(found, centres(path()), atol=1e-12)
    start, *_ = problem(Path(num_frames=FRAMES), count=20)
    assert np.allclose(mended.rho, start.rho * scale)


def test_two_fixed_frames_hold_it():
    found, _ = adjusted(path(), path(1.3), fixed=2)
    assert np.allclose(found, centres(path(1.3)))


def test_a_wrong_first_step_does_not_tear_the_path():
    """Of a tenth: the last camera moves by less than a hundredth of its way."""
    before = path()
    before[1:, 0, 3] += 0.1 * before[1, 0, 3]
    found, _ = adjusted(before, path())
    last = centres(before)[-1]
    assert np.linalg.norm(found[-1] - last) < 0.01 * np.linalg.norm(last)


def test_frames_before_the_first_structure_say_nothing_of_the_scale():
    """They are in one place until they are adjusted."""
    before, after = path(), path(0.8)
    before[:4, :3, 3] = before[0, :3, 3]
    found, _ = adjusted(before, after)
    ways = np.linalg.norm(np.diff(found[4:], axis=0), axis=1)
    true = np.linalg.norm(np.diff(centres(path())[4:], axis=0), axis=1)
    assert np.allclose(ways, true)


def test_what_was_handed_out_last_keeps_its_pose():
    """And so the path goes on from there, however much all that was adjusted has turned."""
    turned = path(0.7) @ rigid.exp(np.array([0.3, -0.1, 0.2, 0.02, 0.1, -0.05]))
    found, mended = adjusted(path(), turned, seam=5)
    assert np.allclose(mended.T_cam_world[5], path()[5], atol=1e-12)
    assert np.allclose(found, centres(path()), atol=1e-9)
    elsewhere, _ = adjusted(path(), turned, seam=99)
    assert not np.allclose(elsewhere, centres(path()), atol=0.1)


def test_rotations_stay_rotations_over_many_windows():
    T = path()
    T[:, :3, :3] *= 1 + 1e-12  # what rounding leaves
    for _ in range(60):
        _, mended = adjusted(T, T, seam=5)
        T = mended.T_cam_world
    assert np.allclose(T[:, :3, :3] @ T[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-9)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_camera_that_stays_where_it_is_has_no_scale(before, after):
    found, mended = adjusted(path(before), path(after))
    assert np.allclose(found, centres(path(after)))
    assert np.isfinite(mended.rho).all()


# ------------------------------------------------------------------ what the focal length bends
def sure(by_focal: np.ndarray, sigma: float) -> bool:
    """Of points whose inverse depth 1 follows the log of a focal length as given."""
    some, *_ = problem(count=20)
    setup = Setup(np.arange(20), np.arange(20), list(range(6)), -1, some)
    solution = replace(bundle.solve(some, 0), rho=np.ones(20), rho_by_focal=by_focal)
    table = TrackTable(20, 6)
    table.alive[:] = True
    return is_shape_sure(table, setup, solution, Pinhole(500.0, 500.0, 320.0, 240.0, 480, sigma))


BENDING = np.linspace(-2.0, 2.0, 20)  # the median differs by 1 from the middle


def test_a_shape_is_sure_once_the_focal_length_bends_it_little():
    assert not sure(BENDING, 0.03)
    assert sure(BENDING, 0.015)


def test_the_scale_may_follow_the_focal_length():
    assert sure(np.full(20, 5.0), UNKNOWN)


def test_a_given_focal_length_bends_nothing_and_one_no_camera_has_tells_nothing():
    assert sure(np.zeros(20), 0.0)
    assert not sure(np.zeros(20), UNKNOWN)

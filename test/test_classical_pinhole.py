"""What a camera learns of its focal length from one adjustment to the next."""

from dataclasses import replace

import numpy as np
import pytest
from sparse_scene import FOCAL, Path
from test_classical_bundle import problem

from recon4d_ros.predictors.classical import adjustment
from recon4d_ros.predictors.classical.adjustment import Setup
from recon4d_ros.predictors.classical.pinhole import UNKNOWN, Pinhole
from recon4d_ros.predictors.classical.problem import Solution

GIVEN = Pinhole(500.0, 510.0, 319.5, 239.5, 480)
GUESSED = replace(GIVEN, sigma=UNKNOWN)


def test_a_given_focal_length_stays():
    assert GIVEN.learned(700.0, 0.001) is GIVEN
    assert GIVEN.is_sure


def test_a_guessed_one_is_sure_once_it_is_sharp_and_rests():
    moving = GUESSED.learned(606.0, 0.001)
    assert (moving.focal, moving.fy / moving.fx) == pytest.approx((606.0, 1.02))
    assert not moving.is_sure
    assert moving.learned(607.0, 0.001).is_sure
    assert not moving.learned(607.0, 0.05).is_sure


def test_what_the_past_claims_is_bounded():
    sharp, vague = GUESSED.learned(505.0, 1e-9), GUESSED.learned(505.0, 10.0)
    assert 1e-3 < sharp.sigma < vague.sigma == UNKNOWN


@pytest.mark.parametrize(
    ("focal_px", "usual"), [(200, False), (300, True), (1500, True), (2000, False)]
)
def test_a_focal_length_no_camera_has_is_told(focal_px, usual):
    assert GUESSED.is_usual(focal_px) == usual


def solved(sigma: float, width: int) -> tuple[Solution, float]:
    """Three iterations, by a camera that believes in three quarters of its focal length."""
    exact, _, _ = problem(Path(num_frames=8), count=150, noise_px=0.2)
    focal = 0.75 * FOCAL
    wrong = {"ray": exact.ray / 0.75, "uv": exact.uv / 0.75, "focal_px": focal}
    believed = replace(exact, **wrong, focal_sigma=sigma)
    setup = Setup(np.arange(150), np.arange(150), list(range(8)), -1, believed)
    camera = Pinhole(focal, focal, (width - 1) / 2, 10.0, 21, sigma)
    return adjustment.solved(setup, camera, 3), focal


def test_what_is_given_takes_three_iterations_and_what_is_not_as_many_as_it_needs():
    (given, focal), (found, _) = solved(0.0, 640), solved(UNKNOWN, 640)
    assert (given.focal_px, given.focal_sigma, given.iterations) == (focal, 0.0, 3)
    assert found.focal_px == pytest.approx(FOCAL, rel=0.04)
    assert 3 < found.iterations < 30


def test_a_focal_length_no_camera_has_is_held_instead():
    """Of an image this narrow the right one is 4.2 times the width."""
    found, focal = solved(UNKNOWN, 120)
    assert (found.focal_px, found.focal_sigma) == (focal, 0.0)
    camera = replace(GUESSED, sigma=0.1)
    assert camera.learned(found.focal_px, found.focal_sigma) is camera

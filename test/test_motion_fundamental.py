"""The background's fundamental matrix against exact cameras."""

import cv2
import numpy as np
import pytest
import torch

from recon4d_ros.geometry import epipolar
from recon4d_ros.motion.background import fundamental

K = np.array([[300.0, 0.0, 159.5], [0.0, 300.0, 119.5], [0.0, 0.0, 1.0]])
INLIER_PX = 0.3


def views(share, noise_px, seed, planar=False):
    """Points of two cameras; `share` of them on a thing that moves on its own; and the true F."""
    random = np.random.default_rng(seed)
    number = 700
    uv = random.uniform((0.0, 0.0), (320.0, 240.0), (number, 2))
    depth = random.uniform(2.0, 9.0, number)
    if planar:
        depth = 1.0 / (0.2 + 4e-4 * uv[:, 0] - 3e-4 * uv[:, 1])
    X = np.c_[uv, np.ones(number)] @ np.linalg.inv(K).T * depth[:, None]
    t = np.array([0.15, -0.04, 0.08])
    R, _ = cv2.Rodrigues(np.array([0.01, -0.02, 0.015]))
    moves = np.arange(number) < share * number
    X_moved = X + np.where(moves[:, None], [0.1, 0.25, 0.0], 0.0)
    target = (X_moved @ R.T + t) @ K.T
    target = target[:, :2] / target[:, 2:] + noise_px * random.standard_normal((number, 2))
    cross = np.array([[0.0, -t[2], t[1]], [t[2], 0.0, -t[0]], [-t[1], t[0], 0.0]])
    F = np.linalg.inv(K).T @ cross @ R @ np.linalg.inv(K)
    mixed = random.permutation(number)
    return uv[mixed], target[mixed], F / np.linalg.norm(F), ~moves[mixed]


def distance(F, source, target):
    """From the epipolar lines (Sampson), px."""
    tensors = (torch.from_numpy(held) for held in (F, source, target))
    return epipolar.sampson(*tensors).sqrt().numpy()


def test_exact_points_give_the_exact_matrix():
    source, target, F, _ = views(0.0, 0.0, 0)
    found = fundamental(source, target, INLIER_PX)
    assert np.linalg.norm(found) == pytest.approx(1.0)
    assert np.abs(found * np.sign((found * F).sum()) - F).max() < 1e-6
    assert abs(np.linalg.det(found)) < 1e-15


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_things_that_move_and_noise_are_outvoted(share, seed):
    source, target, F, rests = views(share, 0.1, seed)
    ours, truth = (
        distance(matrix, source, target) for matrix in (fundamental(source, target, INLIER_PX), F)
    )
    assert np.median(ours[rests]) < 1.2 * np.median(truth[rests])
    if share > 0.0:
        assert (ours[~rests] > 3 * INLIER_PX).mean() > 0.7


def test_two_fifths_may_be_wrong():
    """With 150 trials four of these sixty go wrong, by 3 to 5 px in the median."""
    for seed in range(60):
        source, target, _, rests = views(0.4, 0.1, seed)
        found = fundamental(source, target, INLIER_PX)
        assert np.median(distance(found, source, target)[rests]) < 0.06, f"seed {seed}"


def test_a_plane_is_explained():
    """Of a plane F is not known, but some F explains all of it."""
    source, target, _, _ = views(0.0, 0.05, 1, planar=True)
    found = fundamental(source, target, INLIER_PX)
    assert np.median(distance(found, source, target)) < 0.05


def test_points_without_a_model_give_none():
    one = np.full((80, 2), 7.0)
    assert fundamental(one, one, INLIER_PX) is None

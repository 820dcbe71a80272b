"""Belief drawn to the edges of the image."""

from __future__ import annotations

import numpy as np
import torch
from flow_scene import SIZE, FlowScene, ellipse, overlap, smooth_noise

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame
from recon4d_ros.motion.fusion import Votes
from recon4d_ros.motion.outline import _factors, _resized, to_edges
from recon4d_ros.motion.segmentation import Segmenter

SCALE = 320 / 512
THING = ellipse((160, 90), (40, 30))
SMEARED = ellipse((160, 90), (45, 35))


def image(thing: np.ndarray, contrast: float = 60.0) -> np.ndarray:
    grey = 100 + 8 * smooth_noise(1, 3.0) + contrast * thing
    return np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=-1).astype(np.uint8)


RING = SMEARED & ~ellipse((160, 90), (30, 20))
NOWHERE = np.zeros(SIZE, bool)


def believed(moving: np.ndarray, undecided: np.ndarray = NOWHERE, unrest: float = 0.0) -> Votes:
    belief = np.where(undecided, 0, np.where(moving, 4.0, -4.0)).astype(np.float32)
    everywhere = np.zeros(SIZE, np.float32)
    return Votes(belief, everywhere, ~undecided, everywhere + np.float32(unrest))


def test_a_smeared_belief_shrinks_to_the_thing():
    found = to_edges(believed(SMEARED), image(THING), SCALE) > 0
    assert overlap(SMEARED, THING) < 0.77
    assert overlap(found, THING) > 0.92


def test_pixels_without_a_vote_follow_their_colour():
    found = to_edges(believed(THING, RING), image(THING), SCALE) > 0
    assert overlap(found, THING) > 0.92


def test_what_does_not_look_at_rest_moves_although_no_pair_says_so():
    """A limb of its own colour beside a thing: nothing around it tells what it does."""
    limb = np.zeros(SIZE, bool)
    limb[60:120, 206:216] = True
    seen = image(THING | limb)
    for unrest, moves in ((0.0, False), (1.0, True), (2.0, True)):
        found = to_edges(believed(THING, limb, unrest), seen, SCALE) > 0
        assert (found[limb].mean() > 0.9) == moves, (unrest, found[limb].mean())
        assert not found[~limb & ~SMEARED].any()


def test_unrest_says_nothing_of_pixels_that_pairs_decided():
    plain, restless = believed(SMEARED), believed(SMEARED, unrest=2.0)
    found = (to_edges(votes, image(THING), SCALE) for votes in (plain, restless))
    assert np.array_equal(*found)


def test_without_an_edge_the_belief_stays_where_it_was():
    plain = to_edges(believed(SMEARED), image(THING, 0.0), SCALE) > 0
    assert overlap(plain, SMEARED) > 0.85


def test_factors_are_those_of_weighted_least_squares():
    """Against float64 normal equations of every square, twice averaged."""
    random = np.random.default_rng(0)
    height, width, side = 9, 11, 5
    colours = random.uniform(0, 1, (height, width, 3)).astype(np.float32)
    weight = random.uniform(0.1, 1, (height, width)).astype(np.float32)
    belief = random.normal(size=(height, width)).astype(np.float32)
    found = _factors(colours, belief * weight, weight, side)[4, 5]
    total, mean = 0.0, np.zeros(4)
    for row in range(2, 7):
        for column in range(3, 8):
            at = np.s_[row - 2 : row + 3, column - 2 : column + 3]
            X = np.concatenate([colours[at].reshape(-1, 3), np.ones((25, 1))], -1).astype(float)
            w, y = weight[at].reshape(-1).astype(float), belief[at].reshape(-1).astype(float)
            ridge = np.diag([5e-5 * w.sum()] * 3 + [0.0])
            solved = np.linalg.solve(X.T @ (X * w[:, None]) + ridge, X.T @ (w * y))
            mean += w.sum() * solved
            total += w.sum()
    inner = _factors(colours, belief * weight, weight, side)
    assert np.allclose(inner[4, 5], mean / total, rtol=2e-2, atol=2e-2), found


def test_resizing_a_mask_keeps_its_mean():
    assert abs(_resized(THING.astype(np.float32), (160, 90)).mean() - THING.mean()) < 1e-4


def test_the_segmenter_draws_to_the_edges_of_the_frame():
    scene = FlowScene(rotation_deg=(0.1, 0.5, 0.2), object_motion=(0.05, 0, 0))
    frame = Frame(10, 10, torch.from_numpy(image(scene.moving)))
    arrival = scene.arrival(10)
    drawn = Segmenter(Config().motion).segment_frame(arrival, frame).mask[0].numpy()
    assert overlap(drawn, scene.moving) > 0.9

"""Places found again: retrieval, the geometric check, and look-alikes that must be refused."""

import math
from dataclasses import replace

import loop_scene
import numpy as np
import pytest
import torch
from loop_scene import VIEW, keyframe, ring_pose
from real_sequence import RealSequence
from torch import Tensor

from recon4d_ros.alignment import loop_closure
from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore, detect
from recon4d_ros.alignment.loop_closure import (
    agree,
    displacement,
    find_loops,
    median_depth,
    verified,
)
from recon4d_ros.alignment.reprojection import SharedPoints, errors, jacobians, refined
from recon4d_ros.alignment.retrieval import Places, candidates, words
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.geometry import camera, se3, sim3

CONFIG = AlignmentConfig()
DRIFT = sim3.from_coordinates(
    torch.tensor([0.2, -0.1, 0.3, 0.03, 0.05, -0.02, 0.2], dtype=torch.float64)
)


def store_of(*keyframes: Keyframe) -> KeyframeStore:
    return KeyframeStore.of(len(keyframes), keyframes)


# ------------------------------------------------------------------ retrieval
def test_words_survive_noise_and_tell_points_apart() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (300, 32)).astype(np.uint8)
    noisy = np.packbits(np.unpackbits(first, axis=1) ^ (rng.random((300, 256)) < 0.1), axis=1)
    other = rng.integers(0, 256, (300, 32)).astype(np.uint8)
    shared = np.intersect1d(words(first), words(noisy)).size
    assert shared > 3 * np.intersect1d(words(first), words(other)).size
    assert np.array_equal(words(first), words(first[::-1]))


def test_the_place_seen_again_comes_first_and_neighbours_never() -> None:
    walk = [keyframe(20 * k, ring_pose(k / 18)) for k in range(18)]
    again = keyframe(400, ring_pose(7.2 / 18))
    store = store_of(*walk, again)
    places = Places().of(store)
    assert candidates(again, store, places, 100, 3)[0].index == 140
    assert all(kf.index <= 100 for kf in candidates(again, store, places, 300, 20))
    elsewhere = replace(again, submap=1)
    assert candidates(elsewhere, store, places, 100, 3) == ()
    fewer = places.of(store_of(*walk[:4]))
    assert set(fewer.words) == {0, 20, 40, 60}
    assert fewer.words[20] is places.words[20]  # described once


@pytest.mark.data
def test_retrieval_on_a_real_kitchen() -> None:
    numbers = list(range(0, 150, 15))
    sequence = RealSequence("scenes7_redkitchen_clip150", [*numbers, 4])
    made = []
    for k in range(len(numbers) + 1):
        features = detect(sequence.frame(k), sequence.view.size, 500)
        eye, nowhere = torch.eye(4, dtype=torch.float64), torch.zeros(len(features.uv), 3)
        index = 1000 if k == len(numbers) else 15 * k
        made.append(
            Keyframe(
                index, index, 0, eye, sequence.view, features.uv, nowhere, features.descriptors
            )
        )
    store = KeyframeStore(20, tuple(made), torch.zeros(11, 11))
    found = candidates(made[-1], store, Places().of(store), 500, 2)
    assert [kf.index for kf in found] == [0, 15]


# ------------------------------------------------------------------ the refinement
def shared_points(seed: int, count: int = 60, noise: float = 0.0) -> tuple[SharedPoints, Tensor]:
    rng = np.random.default_rng(seed)
    S = sim3.from_coordinates(torch.from_numpy(rng.normal(size=7) * 0.15))
    new = torch.from_numpy(rng.uniform([-1, -1, 2], [1, 1, 6], (count, 3)))
    old = se3.transform(S, new)
    far = torch.from_numpy(1 + noise * rng.normal(size=(2, count, 1)))
    uv_new, uv_old = camera.project(new, VIEW), camera.project(old, VIEW)
    blur = torch.from_numpy(noise * 5 * rng.normal(size=(2, count, 2)))
    points = SharedPoints(
        new * far[0], old * far[1], uv_new + blur[0], uv_old + blur[1], VIEW, VIEW, 0.1
    )
    return points, S


def test_derivatives_of_the_errors_equal_finite_differences() -> None:
    points, S = shared_points(1, count=5, noise=0.1)
    h = 1e-6
    for J, part in zip(jacobians(points, S), range(3), strict=True):
        for k in range(7):
            step = torch.zeros(2, 7, dtype=torch.float64)
            step[0, k], step[1, k] = h, -h
            ahead, behind = (errors(points, S @ D)[part] for D in sim3.from_coordinates(step))
            torch.testing.assert_close(J[..., k], (ahead - behind) / (2 * h), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_refinement_finds_the_similarity_and_knows_its_error(seed: int) -> None:
    points, S = shared_points(seed)
    start = S @ sim3.from_coordinates(torch.full((7,), 0.03, dtype=torch.float64))
    torch.testing.assert_close(refined(points, start)[0], S, atol=1e-6, rtol=0)
    points, S = shared_points(seed, count=200, noise=0.05)
    found, information = refined(points, start)
    error = sim3.coordinates(sim3.inverse(S) @ found)
    assert 0.2 < float(error @ information @ error) < 40.0  # 7 degrees of freedom


def test_points_behind_a_camera_have_no_error_to_speak_of() -> None:
    points, S = shared_points(0)
    turned = S @ sim3.from_coordinates(torch.tensor([0.0, 0, 0, 0, math.pi, 0, 0]).double())
    assert all(bool(part.isnan().all()) for part in errors(points, turned))


# ------------------------------------------------------------------ the check
@pytest.mark.parametrize("turn", [0.0, 0.02, -0.03])
def test_a_place_seen_again_gives_the_similarity(turn: float) -> None:
    old = keyframe(0, ring_pose(0.4))
    new = keyframe(300, ring_pose(0.4 + turn), DRIFT)
    loop = verified(new, old, CONFIG)
    assert loop is not None and loop.num_inliers >= CONFIG.loop_inliers
    # The similarity that undoes the drift, in the camera of the old keyframe.
    truth = sim3.inverse(old.T_map_cam) @ sim3.inverse(DRIFT) @ new.T_map_cam
    error = sim3.coordinates(sim3.inverse(truth) @ loop.S_old_new)
    assert float(error[:3].norm()) < 0.03 * median_depth(old)
    assert float(error[3:6].norm()) < 0.03 and float(error[6].abs()) < 0.01
    # It knows that small images leave turning and moving aside hard to tell apart.
    error[:3] /= median_depth(new)
    assert float(error @ loop.information @ error) < 24.3  # 99.9 % of 7 degrees of freedom
    assert displacement(new, old.T_map_cam @ loop.S_old_new) > 0.1


def test_another_place_is_refused() -> None:
    old = keyframe(0, ring_pose(0.0))
    for turn in (0.3, 0.5, 0.7):
        assert verified(keyframe(300, ring_pose(turn)), old, CONFIG) is None


def poster_world(world: Tensor, shift: float) -> Tensor:
    """Cells that differ with `shift`, except in a poster that hangs in the middle of the view."""
    cell = torch.floor(world * 4.0 + 0.01).long()
    on_poster = (world[:, 1].abs() < 0.7) & ((world[:, 0] - shift).abs() < 0.9)
    same = torch.floor((world - torch.tensor([shift, 0.0, 0.0])) * 8.0 + 0.01).long()
    return torch.where(on_poster[:, None], same, cell + 1000 + int(shift * 10))


def facing_wall(x: float) -> Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[0, 3] = x
    return T


def test_one_object_seen_at_two_places_is_no_loop() -> None:
    """The same poster at two walls: every match agrees, but around it nothing does."""
    views = [(-0.75, 0), (0.75, 300)]
    old, new = (
        keyframe(
            index, facing_wall(x), paint=loop_scene.painted(lambda w, x=x: poster_world(w, x))
        )
        for x, index in views
    )
    lenient = replace(CONFIG, loop_inliers=25)
    assert verified(new, old, lenient) is None
    # It is the spread that refuses it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_closure, "_MIN_SPREAD", 0.0)
        assert verified(new, old, lenient) is not None


def test_the_same_texture_on_another_shape_is_no_loop() -> None:
    old = keyframe(0, ring_pose(0.4))
    new = keyframe(300, ring_pose(0.4), DRIFT)
    generator = torch.Generator().manual_seed(0)
    offset = new.points_map - new.T_map_cam[:3, 3]
    bent = 2.0 ** torch.randn(len(offset), 1, generator=generator, dtype=torch.float64)
    other = replace(new, points_map=new.T_map_cam[:3, 3] + offset * bent)
    assert verified(other, old, CONFIG) is None


def test_loops_that_contradict_each_other_are_noticed() -> None:
    new = keyframe(300, ring_pose(0.4))
    near = DRIFT @ new.T_map_cam
    nudge = sim3.from_coordinates(torch.full((7,), 0.01, dtype=torch.float64))
    assert agree(new, near, nudge @ near)
    assert not agree(new, near, DRIFT @ DRIFT @ DRIFT @ near)


def test_loops_are_the_best_first_and_deterministic() -> None:
    walk = [keyframe(20 * k, ring_pose(k / 18)) for k in range(18)]
    again = keyframe(400, ring_pose(7.2 / 18), DRIFT)
    store = store_of(*walk, again)
    places = Places().of(store)
    first, second = (find_loops(again, store, places, 100, CONFIG) for _ in range(2))
    assert first[0].old == 140
    counts = [loop.num_inliers for loop in first]
    assert counts == sorted(counts, reverse=True)
    assert all(torch.equal(a.S_old_new, b.S_old_new) for a, b in zip(first, second, strict=True))

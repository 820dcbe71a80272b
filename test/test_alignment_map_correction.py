"""Loops close: a drifting predictor on a closed path, what moves with the map, what is refused."""

from dataclasses import replace
from functools import cache

import loop_scene
import pytest
import torch
from loop_scene import VIEW, DriftingPredictor, Walk, ate, drifted, ring
from real_sequence import RealSequence
from torch import Tensor

from recon4d_ros.alignment import map_correction
from recon4d_ros.alignment.keyframes import KeyframeStore
from recon4d_ros.alignment.map_correction import corrections_at, moved_state, moved_store
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import EventKind, MapCorrection
from recon4d_ros.geometry import camera, se3, sim3

COUNT, TURNS = 160, 1.17
STEP = torch.tensor([0.0009, -0.0005, 0.0006, 0.0002, 0.0005, -0.0002, -0.001]).double()
STILL = torch.zeros(7, dtype=torch.float64)


@cache
def walked(closes: bool, names_gauge: bool = True, noise: float = 0.0) -> Walk:
    walk = ring(COUNT, TURNS)
    predictor = DriftingPredictor(walk, drifted(walk.poses, STEP, noise), names_gauge=names_gauge)
    return Walk(walk.frames, predictor, AlignmentConfig(loop_closure=closes)).run()


# ------------------------------------------------------------------ the whole
@pytest.mark.parametrize("names_gauge", [True, False])
def test_a_closed_loop_takes_two_thirds_of_the_drift_away(names_gauge: bool) -> None:
    """Lengths shrink by 15 % and the heading turns on the way round."""
    closed, poses = walked(True, names_gauge), ring(COUNT, TURNS).poses
    before, after = ate(closed.first, poses), ate(closed.final, poses)
    print(f"ATE of first poses {before:.4f} m, of corrected ones {after:.4f} m")
    assert ate(walked(False).final, poses) > 0.06
    assert after < ate(walked(False).final, poses) / 3
    assert len(closed.corrections) >= 1
    if names_gauge:
        assert {event.kind for event in walked(False).events} == {EventKind.INITIALISED}


def test_random_drift_is_taken_away_too() -> None:
    poses = ring(COUNT, TURNS).poses
    closed = walked(True, True, 0.0005)
    assert ate(closed.final, poses) < ate(closed.first, poses) / 3


def test_the_scale_at_the_end_is_that_of_the_start_again() -> None:
    closed = walked(True)
    local = closed.predictor.local
    assert float(local[-1] / local[0]) < 0.87
    assert closed.aligner._state.join.scale * float(local[-1]) == pytest.approx(1.0, abs=0.03)


def test_everything_kept_lies_where_the_corrected_poses_say() -> None:
    """The join, the poses, the keyframes, their points and the sample agree after corrections."""
    closed = walked(True)
    state, store = closed.aligner._state, closed.aligner._store
    for index, T_map_cam in state.poses.items():
        torch.testing.assert_close(T_map_cam, closed.final[index], atol=1e-9, rtol=0)
    for keyframe in store.keyframes:
        T = closed.final[keyframe.index]
        torch.testing.assert_close(keyframe.T_map_cam, T, atol=1e-6, rtol=0)
        points = se3.transform(se3.inverse(keyframe.T_map_cam), keyframe.points_map)
        seen = camera.project(points, VIEW)
        # Depth is that of the nearest pixel, so half a pixel may lie between.
        assert float((seen - keyframe.uv).abs().median()) < 0.5
    prediction = closed.predictor.window(range(COUNT - 12, COUNT))
    T_map_key = state.join.T_map_gauge @ sim3.make(1.0, _scaled(prediction, state.join.scale))
    torch.testing.assert_close(T_map_key, closed.final[prediction.key_index], atol=1e-9, rtol=0)
    fresh = KeyframeStore.empty(store.limit)
    for keyframe in store.keyframes:
        fresh = fresh.added(keyframe)
    torch.testing.assert_close(fresh.overlap, store.overlap)


def _scaled(prediction, scale: float) -> Tensor:
    T = prediction.T_gauge_key.clone()
    T[:3, 3] *= scale
    return T


def test_nothing_jumps_without_an_event() -> None:
    """Poses of frames in a row differ by the camera's step, except where a correction says so."""
    closed, plain = walked(True), walked(False)
    moves = {
        i: float((closed.first[i][:3, 3] - closed.first[i - 1][:3, 3]).norm())
        for i in range(1, COUNT)
    }
    stamps = {event.stamp_ns for event in closed.events if event.correction is not None}
    announced = {i + 1 for i in range(COUNT) if loop_scene.scene.stamp(i) in stamps}
    usual = max(
        float((plain.first[i][:3, 3] - plain.first[i - 1][:3, 3]).norm()) for i in range(1, COUNT)
    )
    jumps = {i for i, move in moves.items() if move > 1.3 * usual}
    assert jumps and jumps <= announced
    first = closed.corrections[0]
    i = next(iter(sorted(announced)))
    expected = sim3.transform_pose(first.S_new_old[-1], plain.first[i])
    torch.testing.assert_close(closed.first[i], expected, atol=1e-9, rtol=0)


def test_the_event_says_what_moved() -> None:
    event = next(event for event in walked(True).events if event.correction is not None)
    correction = event.correction
    assert event.kind is EventKind.MAP_CORRECTION and event.submap == correction.submap == 0
    assert "sees the place of frame" in event.message and "lengths" in event.message
    assert bool((correction.indices.diff() > 0).all())
    assert bool((correction.stamps_ns.diff() > 0).all())
    assert len(correction.indices) == len(correction.S_new_old) == len(correction.stamps_ns)
    torch.testing.assert_close(correction.S_new_old[0], torch.eye(4, dtype=torch.float64))
    turns = sim3.split(correction.S_new_old)[0]
    assert float(turns[-1]) > 1.1  # lengths had shrunk


@pytest.mark.data
def test_real_images_of_a_way_there_and_back() -> None:
    """A rendered living room, hand-held, with smooth depth errors of 3 % and a drift of ours."""
    there = list(range(0, 210, 4))
    sequence = RealSequence("icl_livingroom1", [*there, *there[-2::-1]])
    count = len(sequence.poses)
    frames = tuple(sequence.frame(index) for index in range(count))
    noise = torch.Generator().manual_seed(1)
    coarse = 0.03 * torch.randn(count, 1, 6, 8, generator=noise, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, sequence.view.size, mode="bicubic")[:, 0]
    depths = tuple(
        depth * (1 + error) for depth, error in zip(sequence.depths, smooth, strict=True)
    )
    walk = loop_scene.Ring(frames, sequence.poses, depths, sequence.view)
    step = torch.tensor([0.001, -0.0006, 0.0008, 0.0002, 0.0006, -0.0002, -0.001]).double()
    predictor = DriftingPredictor(walk, drifted(walk.poses, step))
    closed = Walk(frames, predictor, AlignmentConfig(loop_min_gap=40)).run()
    before, after = ate(closed.first, walk.poses), ate(closed.final, walk.poses)
    print(f"ATE of first poses {before:.4f} m, of corrected ones {after:.4f} m")
    assert closed.corrections and after < before / 2


# ------------------------------------------------------------------ what must not move
def test_a_predictor_without_drift_is_left_alone() -> None:
    walk = ring(COUNT, TURNS)
    predictor = DriftingPredictor(walk, drifted(walk.poses, STILL))
    closed = Walk(walk.frames, predictor, AlignmentConfig()).run()
    assert closed.corrections == []
    assert closed.aligner._loops.links  # the loops were found, and agreed
    assert ate(closed.final, walk.poses) < 1e-9


def half_turned(world: Tensor) -> Tensor:
    """Cells that look the same after half a turn: (x, z) and (-x, -z) are one."""
    sign = torch.where(world[:, 2:] < 0, -1.0, 1.0)
    folded = torch.cat([world[:, :1] * sign, world[:, 1:2], world[:, 2:] * sign], 1)
    return torch.floor(folded * 4.0 + 0.01).long()


def test_places_that_look_and_are_built_alike_are_told_apart_by_the_drift() -> None:
    """Half a turn on, the room looks as it did half a turn before; the loop would be false."""
    walk = ring(110, 0.75, loop_scene.painted(half_turned))
    predictor = DriftingPredictor(walk, drifted(walk.poses, STEP))
    config = AlignmentConfig(loop_min_gap=60)
    refused = []
    solve = map_correction._solved

    def noted(anchors, loop, *rest):
        solution = solve(anchors, loop, *rest)
        refused.append((loop.old, loop.new, solution.cost))
        return solution

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_correction, "_solved", noted)
        closed = Walk(walk.frames, predictor, config).run()
    assert refused and min(cost for _, _, cost in refused) > 100.0
    assert closed.corrections == [] and closed.aligner._loops.links == ()


# ------------------------------------------------------------------ the pieces
def correction_of(walk: Walk) -> MapCorrection:
    return MapCorrection(
        submap=0,
        indices=torch.tensor([0, 100, 148]),
        stamps_ns=torch.tensor([1, 2, 3]),
        S_new_old=sim3.from_coordinates(
            torch.stack([STILL, 0.5 * torch.ones(7).double(), torch.full((7,), 0.6).double()])
        ),
    )


def test_distances_seen_from_a_keyframe_only_scale() -> None:
    closed = walked(False)
    store, correction = closed.aligner._store, correction_of(closed)
    moved = moved_store(store, correction)
    S = corrections_at(correction, [kf.index for kf in store.keyframes])
    for before, after, each in zip(store.keyframes, moved.keyframes, S, strict=True):
        scale, _ = sim3.split(each)
        ours = se3.transform(se3.inverse(before.T_map_cam), before.points_map)
        theirs = se3.transform(se3.inverse(after.T_map_cam), after.points_map)
        torch.testing.assert_close(theirs, float(scale) * ours)
    apart = replace(store.keyframes[3], submap=7)
    both = KeyframeStore.of(store.limit, (*store.keyframes[:3], apart))
    assert moved_store(both, correction).keyframes[3] is apart


def test_the_state_moves_as_one_where_the_present_is() -> None:
    closed = walked(False)
    state, correction = closed.aligner._state, correction_of(closed)
    moved, S = moved_state(state, correction), correction.S_new_old[-1]
    torch.testing.assert_close(
        sim3.make(moved.join.scale, moved.join.T_map_gauge),
        S @ sim3.make(state.join.scale, state.join.T_map_gauge),
    )
    torch.testing.assert_close(
        moved.sample.points_map, se3.transform(S, state.sample.points_map), equal_nan=True
    )
    torch.testing.assert_close(moved.poses[159], sim3.transform_pose(S, state.poses[159]))
    early = corrections_at(correction, [50])[0]
    torch.testing.assert_close(moved.poses[50], sim3.transform_pose(early, state.poses[50]))


def test_memory_is_bounded_with_few_keyframes_and_many_rounds() -> None:
    walk = ring(COUNT, 3.0)
    predictor = DriftingPredictor(walk, drifted(walk.poses, 0.5 * STEP))
    config = AlignmentConfig(max_keyframes=12, loop_min_gap=40)
    closed = Walk(walk.frames, predictor, config)
    sizes = []
    for index in range(COUNT):
        closed.step(index)
        assert len(closed.aligner._loops.links) <= 24
        assert len(closed.aligner._loops.places.words) <= 12
        sizes.append(closed.aligner.memory_bytes)
    assert max(sizes[-60:]) < 1.1 * max(sizes[80:140])
    closed.aligner.reset()
    assert closed.aligner.memory_bytes == 0

"""A thing over most of the view: flow takes it for the background, tracks know better."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flow_scene import SIZE, FlowScene, ellipse, grid_of_tracks, overlap

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Tracks
from recon4d_ros.motion.background_choice import (
    LEAST_CONTRADICTION,
    MEMORY,
    BackgroundChoice,
    contradiction,
)
from recon4d_ros.motion.epipolar_pair import PairEvidence
from recon4d_ros.motion.segmentation import Segmenter
from recon4d_ros.motion.track_votes import SeenTracks

LARGE = ellipse((150, 90), (125, 78))
SCENE = FlowScene(
    translation=(-0.05, 0, 0),
    object_motion=(0.04, 0.05, 0),
    moving=LARGE,
    noise_px=0.05,
)
WINDOWS = [(0, 11), (4, 15)]
SETTLED = [range(6), range(6, 10)]


def mobility(moving: float, resting: float, seed: int = 0) -> np.ndarray:
    """Of a poor tracker: one track in three is as likely moving as not."""
    uv, random = grid_of_tracks(), np.random.default_rng(seed)
    known = np.where(LARGE[uv[:, 1], uv[:, 0]], moving, resting)
    guess = random.uniform(0.2, 0.8, len(uv))
    return np.where(random.random(len(uv)) < 1 / 3, guess, known).astype(np.float32)


def seen(moving: float, resting: float) -> SeenTracks:
    return SeenTracks(grid_of_tracks(), mobility(moving, resting))


def pair(unexplained: np.ndarray | None) -> PairEvidence:
    nothing = np.zeros(SIZE, np.float32)
    return PairEvidence(0, 3, nothing, np.ones(SIZE, bool), unexplained=unexplained)


def test_the_scene_is_what_it_says():
    assert 0.5 < LARGE.mean() < 0.6


# ---------------------------------------------------------------- the choice alone
def test_a_part_that_moves_less_than_the_rest_is_the_background():
    region = BackgroundChoice().choose([pair(None), pair(~LARGE)], seen(0.6, 0.4), None)
    assert region is not None and (region == ~LARGE).all()


@pytest.mark.parametrize(
    ("moving", "resting"), [(0.5, 0.5), (0.55, 0.5), (0.2, 0.6)], ids=["silent", "weak", "agree"]
)
def test_the_majority_is_believed_until_the_tracks_contradict_it(moving: float, resting: float):
    choice = BackgroundChoice()
    assert choice.choose([pair(~LARGE)], seen(moving, resting), None) is None
    assert not choice.is_overruled


def test_what_is_left_over_in_a_corner_is_a_thing():
    corner = ellipse((20, 20), (60, 60))
    uv = grid_of_tracks()
    tracks = SeenTracks(uv, np.where(corner[uv[:, 1], uv[:, 0]], 0.1, 0.9))
    assert contradiction(corner, tracks) > 0.5
    assert BackgroundChoice().choose([pair(corner)], tracks, None) is None


def test_not_to_know_that_something_rests_is_no_word_against_it():
    """Tracks of an odometry are known to rest, or unknown."""
    uv = grid_of_tracks()
    odometry = SeenTracks(uv, np.where(LARGE[uv[:, 1], uv[:, 0]], 0.5, 0.0))
    assert BackgroundChoice().choose([pair(~LARGE)], odometry, None) is None


def test_few_tracks_overrule_nothing():
    uv = grid_of_tracks()[::16]
    tracks = SeenTracks(uv, np.where(LARGE[uv[:, 1], uv[:, 0]], 0.9, 0.1))
    assert BackgroundChoice().choose([pair(~LARGE)], tracks, None) is None


def frames_kept(moving: float, resting: float, at_most: int = 40) -> int:
    """For how many frames tracks must speak against a choice until it is given up."""
    choice = BackgroundChoice()
    choice.choose([pair(~LARGE)], seen(0.6, 0.4), None)
    for number in range(at_most):
        if choice.choose([pair(None)], seen(moving, resting), ~LARGE) is None:
            assert choice.choose([], seen(0.6, 0.4), ~LARGE) is None  # for good
            return number
    return at_most


def test_a_choice_lasts_while_tracks_are_silent_and_ends_when_they_contradict_it():
    assert frames_kept(0.5, 0.5) == frames_kept(0.49, 0.51) == 40
    assert frames_kept(0.2, 0.8) <= 1
    assert frames_kept(0.3, 0.6) < MEMORY


def test_one_window_that_contradicts_it_weakly_ends_no_choice_but_two_do():
    weak = 0.41, 0.585
    assert LEAST_CONTRADICTION < contradiction(LARGE, seen(*weak)) < 1.25 * LEAST_CONTRADICTION
    assert MEMORY < frames_kept(*weak) <= 3 * MEMORY


def test_tracks_that_speak_for_a_choice_again_save_it():
    choice = BackgroundChoice()
    choice.choose([pair(~LARGE)], seen(0.6, 0.4), None)
    for word in 5 * [(0.41, 0.585), (0.41, 0.585), (0.6, 0.4), (0.6, 0.4)]:
        assert choice.choose([pair(None)], seen(*word), ~LARGE) is not None


def test_a_choice_ends_when_the_thing_covers_little():
    choice = BackgroundChoice()
    choice.choose([pair(~LARGE)], seen(0.6, 0.4), None)
    assert choice.choose([], seen(0.6, 0.4), ~ellipse((20, 20), (30, 30))) is None
    assert not choice.is_overruled


# ---------------------------------------------------------------- through the segmenter
def frame(index: int) -> Frame:
    """Two plain sides. They stay where they are, whatever the flow: near the edge between them
    the thing is clearly seen at rest, which costs a few hundredths.
    """
    grey = torch.where(torch.from_numpy(LARGE), 180, 60).to(torch.uint8)
    return Frame(index, index, grey[..., None].expand(-1, -1, 3).contiguous())


def tracked(window: SimpleNamespace, moving: float, resting: float) -> SimpleNamespace:
    uv = torch.from_numpy(grid_of_tracks().astype(np.float32)).expand(len(window.indices), -1, -1)
    rows = [mobility(moving, resting, index) for index in window.indices]
    found = torch.from_numpy(np.stack(rows))
    tracks = Tracks(torch.arange(uv.shape[1]), uv, torch.ones_like(found), found)
    return SimpleNamespace(**{**vars(window), "tracks": tracks})


@cache
def stream(is_moving: bool) -> tuple[list[SimpleNamespace], list[SimpleNamespace]]:
    """Arrivals and windows of the scene, or of one in which nothing moves."""
    scene = SCENE if is_moving else replace(SCENE, object_motion=(0, 0, 0))
    arrivals = range(WINDOWS[-1][1] + 1)
    known = [scene.arrival(i, tuple(k for k in (3, 6) if k <= i)) for i in arrivals]
    return known, [scene.window(*window) for window in WINDOWS]


def overlaps(word: list[tuple[float, float] | None], is_moving: bool = True) -> list[list[float]]:
    """IoU of final masks, and of those on arrival after the first window."""
    arrivals, windows = stream(is_moving)
    segmenter = Segmenter(Config().motion)
    final, arrived = [], []
    for window, said, settled in zip(windows, word, SETTLED, strict=True):
        for arrival in arrivals[len(arrived) : window.indices[-1] + 1]:
            mask = segmenter.segment_frame(arrival, frame(arrival.index)).mask[0]
            arrived.append(overlap(mask.numpy(), LARGE))
        spoken = window if said is None else tracked(window, *said)
        shown = [frame(index) for index in window.indices]
        masks = segmenter.segment(spoken, settled, shown).mask.numpy()
        final += [overlap(mask, LARGE) for mask in masks]
    return [final, arrived[WINDOWS[0][1] + 1 :]]


def test_flow_alone_takes_the_thing_for_the_background():
    final, _ = overlaps([None, None])
    assert max(final) < 0.1


def test_poor_tracks_are_enough_to_tell_the_background():
    final, arrived = overlaps([(0.6, 0.4)] * 2)
    assert min(final) > 0.75 and np.mean(final) > 0.9
    assert min(arrived) > 0.8


def test_the_background_is_kept_while_tracks_are_silent():
    final, _ = overlaps([(0.6, 0.4), (0.45, 0.45)])
    assert min(final[len(SETTLED[0]) :]) > 0.8


def test_tracks_that_call_a_static_scene_moving_change_nothing():
    final, arrived = overlaps([(0.7, 0.4)] * 2, is_moving=False)
    assert max(final) == max(arrived) == 0.0


def test_a_reset_believes_the_majority_again():
    _, windows = stream(True)
    segmenter = Segmenter(Config().motion)
    shown = [frame(index) for index in windows[0].indices]
    segmenter.segment(tracked(windows[0], 0.6, 0.4), SETTLED[0], shown)
    assert segmenter._choice.is_overruled
    segmenter.reset()
    assert not segmenter._choice.is_overruled


def test_the_bound_lies_between_what_the_tests_call_weak_and_clear():
    assert contradiction(~LARGE, seen(0.55, 0.5)) < LEAST_CONTRADICTION
    assert contradiction(~LARGE, seen(0.6, 0.4)) > LEAST_CONTRADICTION

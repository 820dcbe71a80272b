"""Votes of tracks: what pairs cannot see, what they invent, and things that stop and go."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flow_scene import SIZE, FlowScene, ellipse, grid_of_tracks, overlap

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Tracks
from recon4d_ros.motion.fusion import Votes
from recon4d_ros.motion.segmentation import Segmenter
from recon4d_ros.motion.track_votes import (
    HOLD_FRAMES,
    MAX_TRACKS,
    MobilityFilter,
    SeenTracks,
    on_grid,
    with_tracks,
    without_resting,
)

SCALE = 320 / 512
THING = ellipse((200, 90), (30, 38))
STILL = FlowScene(translation=(-0.05, 0, 0))


def tracks(moving: float, resting: float = 0.05) -> SeenTracks:
    uv = grid_of_tracks()
    mobility = np.where(THING[uv[:, 1], uv[:, 0]], moving, resting)
    return SeenTracks(uv, mobility.astype(np.float32))


def no_votes() -> Votes:
    zeros = np.zeros(SIZE, np.float32)
    return Votes(np.full(SIZE, -2, np.float32), zeros, np.ones(SIZE, bool), zeros)


def test_a_part_with_moving_tracks_moves_where_pairs_are_blind():
    found = with_tracks(no_votes(), tracks(0.9), None, SCALE)
    assert overlap(found.belief > 0, THING) > 0.85
    assert overlap(found.evidence > 1, THING) > 0.85


@pytest.mark.parametrize(
    "seen", [tracks(0.55), SeenTracks(np.array([[9, 9], [9, 14]]), np.ones(2))]
)
def test_few_or_unsure_tracks_move_nothing(seen: SeenTracks):
    assert (with_tracks(no_votes(), seen, None, SCALE).belief <= 0).all()


def test_a_track_speaks_for_its_own_depth_only():
    depth = np.where(THING, 2.0, 4.0).astype(np.float32)
    uv = np.array([[174, 90], [178, 84], [180, 96], [185, 90]])
    seen = SeenTracks(uv, np.ones(4, np.float32))
    moving = with_tracks(no_votes(), seen, depth, SCALE).belief > 0
    assert moving.any() and not moving[~THING].any()
    assert (with_tracks(no_votes(), seen, None, SCALE).belief > 0)[~THING].any()


def test_small_parts_that_tracks_call_still_are_dropped():
    speck, thing = ellipse((60, 60), (6, 6)), ellipse((200, 90), (30, 30))
    seen = SeenTracks(grid_of_tracks(3), np.full(len(grid_of_tracks(3)), 0.1, np.float32))
    kept = without_resting(speck | thing, seen) & (speck | thing)
    assert not kept[speck].any()
    assert kept[thing].all()  # too large for tracks to overrule the pairs
    moving = SeenTracks(seen.uv, np.full(len(seen.uv), 0.8, np.float32))
    assert (without_resting(speck, moving) & speck).sum() == speck.sum()


def test_mobility_rises_fast_falls_slowly_and_is_held():
    one = np.array([7])
    state = MobilityFilter()
    for frame in range(4):
        state.update(frame, one, np.ones(1, np.float32))
    assert state.held(3, one)[0] == pytest.approx(1 - 0.5**4)
    for frame in range(4, 30):
        state.update(frame, one, np.zeros(1, np.float32))
        expected = (1 - 0.5**4) * 0.8 ** (frame - 3)
        held = state.held(frame, one)[0]
        assert (held >= 0.75) == (frame <= 3 + HOLD_FRAMES)
        assert held == pytest.approx(max(expected, 0.75 if frame <= 13 else 0), rel=1e-5)


def test_the_filter_is_bounded_and_forgets_the_oldest():
    state = MobilityFilter()
    for frame in range(40):
        ids = np.arange(frame * 300, frame * 300 + 300)
        state.update(frame, ids, np.ones(300, np.float32))
    assert len(state._ids) == MAX_TRACKS
    assert not state.held(39, np.array([0, 1])).any()
    assert state.held(39, np.array([39 * 300]))[0] >= 0.5
    assert not state.held(39, np.array([10**9])).any()


def test_positions_of_the_frame_land_on_the_grid():
    assert on_grid(np.array([[0.5, 0.5], [639.0, 359.0]]), (360, 640), SIZE).tolist() == [
        [0, 0],
        [319, 179],
    ]


# ---------------------------------------------------------------- through the segmenter
def seen_tracks(moving: float) -> Tracks:
    uv = torch.from_numpy(grid_of_tracks().astype(np.float32))[None]
    inside = torch.from_numpy(THING)[uv[0, :, 1].long(), uv[0, :, 0].long()]
    mobility = torch.where(inside, moving, 0.05)[None].float()
    return Tracks(torch.arange(uv.shape[1]), uv, torch.ones_like(mobility), mobility)


def frame_of(index: int) -> Frame:
    grey = torch.where(torch.from_numpy(THING), 180, 60).to(torch.uint8)
    return Frame(index, index, grey[..., None].expand(-1, -1, 3).contiguous())


def masks_over_time(mobility_of: list[float]) -> list[float]:
    """Share of the thing that is masked, frame by frame, while the pairs see nothing move."""
    segmenter, shares = Segmenter(Config().motion), []
    for index, moving in enumerate(mobility_of):
        arrival = STILL.arrival(index, offsets=(3,))
        tracked = SimpleNamespace(**{**vars(arrival), "tracks": seen_tracks(moving)})
        mask = segmenter.segment_frame(tracked, frame_of(index)).mask[0].numpy()
        assert mask[~ellipse((200, 90), (38, 46))].mean() < 0.002
        shares.append(float(mask[THING].mean()))
    return shares


def test_a_thing_that_stops_stays_masked_for_ten_frames_and_no_longer():
    shares = masks_over_time([0.95] * 3 + [0.05] * 15)
    assert min(shares[: 3 + HOLD_FRAMES]) > 0.8
    assert max(shares[3 + HOLD_FRAMES :]) == 0.0


def test_resting_tracks_flag_nothing():
    assert max(masks_over_time([0.05] * 3)) == 0.0

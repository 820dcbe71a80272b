"""Clips that are shown again in other guise: what is true of them goes with the picture."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from training_clips import SlidingClips

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.predictors.chained_flow import followed_tracks, searched_flow
from recon4d_ros.training.remembered import (
    RememberedClips,
    disguised,
    drawn_disguise,
    mirrored,
    reversed_in_time,
)

SOURCE = SlidingClips(num_frames=5, size=(32, 48), num_tracks=7)


class Counted:
    """What a source is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def clips(self, first: int, count: int) -> Clips:
        self.asked.append((first, count))
        return SOURCE.clips(first, count)


def marked() -> Clips:
    """A clip whose points lie on whole pixels of their own colour."""
    clip = SOURCE.clips(0, 1)
    tracks = torch.randint(2, 30, (1, 5, 7, 2), generator=torch.Generator().manual_seed(1))
    rgb = torch.zeros_like(clip.rgb)
    for frame in range(5):
        for point in range(7):
            x, y = tracks[0, frame, point].tolist()
            rgb[0, frame, y, x] = torch.tensor([point + 1, 100 + point, 200 + point])
    visibility = colours(rgb, tracks.float())[..., 0] == torch.arange(7) + 1
    queries = torch.cat([torch.zeros(1, 7, 1), tracks[:, 0].float()], dim=-1)
    return dataclasses.replace(
        clip, rgb=rgb, tracks=tracks.float(), visibility=visibility, queries=queries
    )


def colours(rgb: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """(1, T, N, 3) at pixels."""
    x, y = uv.long().unbind(dim=-1)
    frame = torch.arange(rgb.shape[1])[:, None]
    return rgb[0][frame, y[0], x[0]][None]


def assert_true(clip: Clips) -> None:
    """Points that are seen lie on their colour, in whatever order its channels are."""
    found = colours(clip.rgb, clip.tracks).sort(dim=-1).values[..., 0]
    assert (found == torch.arange(7) + 1)[clip.visibility].all()


@pytest.mark.parametrize("sideways", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
def test_a_mirrored_clip_is_as_true(sideways: bool, upside_down: bool) -> None:
    clip, turns = marked(), torch.tensor([[sideways, upside_down]])
    shown = mirrored(clip, turns)
    assert_true(shown)
    assert torch.equal(shown.rgb, clip.rgb) is not (sideways or upside_down)
    torch.testing.assert_close(shown.queries[..., 1:], shown.tracks[:, 0])
    again = mirrored(shown, turns)
    assert torch.equal(again.rgb, clip.rgb) and torch.equal(again.tracks, clip.tracks)


def test_a_reversed_clip_is_as_true() -> None:
    clip = marked()
    shown = reversed_in_time(clip, torch.tensor([True]))
    assert_true(shown)
    assert torch.equal(shown.rgb[:, 0], clip.rgb[:, -1])
    assert (shown.queries[..., 0] == 4).all()
    torch.testing.assert_close(shown.queries[..., 1:], shown.tracks[:, 4])


def test_each_clip_of_a_batch_has_its_own_guise() -> None:
    both = Clips.joined([SOURCE.clips(0, 1), SOURCE.clips(0, 1)])
    mirror = mirrored(both, torch.tensor([[True, False], [False, False]]))
    assert torch.equal(mirror.rgb[0], both.rgb[0].flip(2))
    assert torch.equal(mirror.rgb[1], both.rgb[1])
    film = reversed_in_time(both, torch.tensor([False, True]))
    assert torch.equal(film.rgb[0], both.rgb[0])
    assert torch.equal(film.rgb[1], both.rgb[1].flip(0))


@pytest.mark.parametrize("seed", range(6))
def test_remembered_flow_leads_along_the_tracks_in_every_guise(seed: int) -> None:
    clip = smooth()
    clip = dataclasses.replace(clip, searched_flow=searched_flow(clip.rgb))
    shown = disguised(clip, drawn_disguise(clip, seed))
    found = followed_tracks(shown.searched_flow, shown.queries)
    error = (found.uv - shown.tracks).norm(dim=-1)
    assert error.max() < 0.3
    assert (found.visibility_logit > 0).all()


def smooth() -> Clips:
    """A clip that slides by (1.5, -0.5) px per frame and points far from its border."""
    noise = np.random.default_rng(0).integers(0, 256, (130, 150, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 1.5)
    step = np.array([1.5, -0.5])
    frames = []
    for frame in range(5):
        shift = np.hstack([np.eye(2), (30 - step * frame)[:, None]])
        options = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(picture, shift, (96, 64), flags=options))
    start = torch.tensor([[40.0, 30.0], [50.0, 35.0], [45.5, 20.25]])
    tracks = start + torch.arange(5.0)[:, None, None] * torch.from_numpy(step).float()
    return dataclasses.replace(
        SlidingClips(num_frames=5, size=(64, 96), num_tracks=3).clips(0, 1),
        rgb=torch.from_numpy(np.stack(frames))[None],
        tracks=tracks[None],
        visibility=torch.ones(1, 5, 3, dtype=torch.bool),
        queries=torch.cat([torch.zeros(3, 1), start], dim=-1)[None],
    )


def test_queries_are_points_that_are_seen_early_and_late() -> None:
    clip = dataclasses.replace(marked(), visibility=torch.rand(1, 5, 7) < 0.6)
    hidden = torch.arange(7) == 2
    clip = dataclasses.replace(clip, visibility=clip.visibility & ~hidden)
    first_sights, frames = 0, set()
    for seed in range(40):
        shown = disguised(clip, drawn_disguise(clip, seed))
        frame = shown.queries[0, :, 0].long()
        seen = ~hidden & clip.visibility.any(dim=1)[0]
        assert shown.visibility[0, frame, torch.arange(7)][seen].all()
        at = shown.tracks[0, frame, torch.arange(7)]
        torch.testing.assert_close(shown.queries[0, seen, 1:], at[seen])
        earliest = shown.visibility[0].float().argmax(dim=0)
        first_sights += int((frame == earliest)[seen].sum())
        frames |= set(frame.tolist())
    assert frames == {0, 1, 2, 3, 4}
    assert 0.5 < first_sights / (40 * int(seen.sum())) < 0.95


def test_every_clip_comes_once_a_round_and_is_rendered_once() -> None:
    source = Counted()
    shown = RememberedClips(source, 4, seed=3)
    rounds = [[shown.clips(4 * turn + place, 1) for place in range(4)] for turn in range(3)]
    assert source.asked == [(0, 4)]
    moves = {tuple(SOURCE.clips(number, 1).moves_in_clip[0].tolist()) for number in range(4)}
    for turn in rounds:
        assert {tuple(clip.moves_in_clip[0].tolist()) for clip in turn} == moves
    pictures = {clip.rgb.numpy().tobytes() for turn in rounds for clip in turn}
    assert len(pictures) > 9


def test_equal_numbers_give_equal_clips_whatever_the_batch() -> None:
    one, other = RememberedClips(Counted(), 4, seed=3), RememberedClips(Counted(), 4, seed=3)
    together, apart = one.clips(2, 5), [other.clips(number, 1) for number in (6, 5, 4, 3, 2)]
    for item in dataclasses.fields(Clips):
        value = getattr(together, item.name)
        if isinstance(value, torch.Tensor):
            joined = torch.cat([getattr(clip, item.name) for clip in apart[::-1]])
            assert torch.equal(value, joined), item.name
    seeded = RememberedClips(Counted(), 4, seed=4).clips(2, 5)
    assert not torch.equal(seeded.rgb, together.rgb)

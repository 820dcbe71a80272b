"""Batches that are made while a step runs: the right ones, in order, errors included."""

from __future__ import annotations

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from training_clips import SlidingClips

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import SourceError
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.sampling import draw_world
from recon4d_ros.synthetic.clips.settings import CameraShares
from recon4d_ros.training.config import ClipsConfig
from recon4d_ros.training.session import clip_settings
from recon4d_ros.training.sources import Ahead, Inline, Request, batches

CPU = torch.device("cpu")


class WatchedClips:
    """Remembers who made what."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.is_made: dict[int, threading.Event] = defaultdict(threading.Event)

    def clips(self, first: int, count: int) -> Clips:
        if first >= 100:
            raise SourceError("there are no clips from 100 on")
        self.made.append(first)
        self.threads.add(threading.current_thread().name)
        self.is_made[first].set()
        return SlidingClips().clips(first, count)


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    made = Ahead(CPU)
    yield made
    made.close()


def test_a_cpu_makes_its_batches_itself() -> None:
    assert isinstance(batches(CPU), Inline)


def test_the_following_batch_is_made_before_it_is_asked_for(ahead: Ahead) -> None:
    source = WatchedClips()
    for first in (0, 2, 4):
        clips = ahead.batch(Request(source, first, 2), lambda n=first: Request(source, n + 2, 2))
        assert torch.equal(clips.rgb, SlidingClips().clips(first, 2).rgb)
    assert source.is_made[6].wait(30.0)
    assert source.made == [0, 2, 4, 6]
    assert all(name.startswith("clips") for name in source.threads)


def test_what_is_no_longer_wanted_is_thrown_away(ahead: Ahead) -> None:
    source, other = WatchedClips(), WatchedClips()
    ahead.batch(Request(source, 0, 2), lambda: Request(source, 2, 2))
    clips = ahead.batch(Request(other, 2, 1), lambda: Request(other, 3, 1))
    assert len(clips.rgb) == 1 and other.made[0] == 2


def test_an_error_of_the_thread_is_raised_where_the_batch_is_wanted(ahead: Ahead) -> None:
    source = WatchedClips()
    ahead.batch(Request(source, 98, 2), lambda: Request(source, 100, 2))
    with pytest.raises(SourceError, match="from 100 on"):
        ahead.batch(Request(source, 100, 2), lambda: Request(source, 102, 2))


def test_a_run_says_how_fast_and_how_far_the_camera_goes() -> None:
    def farthest(fastest: float, travel: float) -> float:
        """Metres in a clip of six frames of scenes that are at most 8 m deep."""
        clips = ClipsConfig(num_frames=6, camera_fastest=fastest, camera_travel=travel)
        settings = dataclasses.replace(clip_settings(clips), camera=CameraShares(0, 0, 0, 1, 0, 0))
        velocity = draw_world(settings, Dice(3, range(64), CPU)).camera.velocity
        return float(6 * velocity.norm(dim=-1).max())

    # Sideways speeds are up to 1.3 times the drawn one, for the slant of the way.
    assert farthest(0.03, 0.35) < 1.3 * 8 * 6 * 0.03
    assert 1.3 * 8 * 6 * 0.03 < farthest(0.1, 0.6) < 1.3 * 8 * 0.6
    assert farthest(0.1, 0.2) < 1.3 * 8 * 0.2

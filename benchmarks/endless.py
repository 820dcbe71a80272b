"""A short sequence as an endless stream: forwards, backwards, forwards, without a jump."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from recon4d_ros.datatypes import Frame
from recon4d_ros.storage.dataset import SequenceFolder

PERIOD_NS = 33_333_333


def endless_frames(sequence: Path) -> Iterator[Frame]:
    """Frames with running numbers and stamps 1/30 s apart; the images are decoded once."""
    frames = tuple(SequenceFolder(sequence))
    there_and_back = itertools.cycle([*frames, *frames[-2:0:-1]])
    for index, frame in enumerate(there_and_back):
        yield replace(frame, index=index, stamp_ns=index * PERIOD_NS)

"""A short sequence as an endless stream: forwards, backwards, forwards, without a jump."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from recon4d_ros.datatypes import Frame
from recon4d_ros.storage.dataset import SequenceFolder

PERIOD_NS = 33_333_333
Item = TypeVar("Item")


def there_and_back(items: Sequence[Item]) -> Iterator[Item]:
    """The items forwards, backwards, forwards ... without one twice in a row."""
    return itertools.cycle([*items, *items[-2:0:-1]])


def endless_frames(sequence: Path) -> Iterator[Frame]:
    """Frames with running numbers and stamps 1/30 s apart; the images are decoded once."""
    for index, frame in enumerate(there_and_back(tuple(SequenceFolder(sequence)))):
        yield replace(frame, index=index, stamp_ns=index * PERIOD_NS)

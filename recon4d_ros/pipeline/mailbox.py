"""The one hand-over between the thread that receives images and the thread that works on them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from recon4d_ros.config import InputConfig

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """A bounded queue between two threads.

    Live (`lossless` False): `put` never waits; when full, the oldest item makes room. Replay
    (`lossless` True): `put` waits for room, so that nothing is lost.
    """

    def __init__(self, capacity: int, *, lossless: bool) -> None:
        """Make an empty, open mailbox for at most `capacity` items."""
        self._items: deque[Item] = deque()
        self._capacity = capacity
        self._lossless = lossless
        self._changed = threading.Condition()
        self._is_open = True

    @classmethod
    def of(cls, config: InputConfig) -> Mailbox[Item]:
        """The mailbox that `input.mode` and `input.queue_size` ask for."""
        if config.mode == "replay":
            return cls(config.queue_size, lossless=True)
        return cls(1, lossless=False)

    def __len__(self) -> int:
        """Items that wait."""
        with self._changed:
            return len(self._items)

    def put(self, item: Item) -> Item | None:
        """Leave an item; a lossless mailbox waits for room, until there is some or it is closed.

        Returns:
            The item that is lost by it: the oldest one of a full live mailbox, `item` itself when
            the mailbox is closed, None when nothing is lost.
        """
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self._has_room or not self._is_open)
            if not self._is_open:
                return item
            lost = None if self._has_room else self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
            return lost

    def take(self, timeout_s: float) -> Item | None:
        """The oldest item, or None after `timeout_s` seconds or when closed and empty."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                remaining = deadline - time.monotonic()
                if remaining <= 0.0 or not self._is_open:
                    return None
                self._changed.wait(remaining)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Take nothing more and wake whoever waits; items inside can still be taken."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """False after `close`."""
        with self._changed:
            return self._is_open

    @property
    def _has_room(self) -> bool:
        return len(self._items) < self._capacity


class DenseSchedule:
    """Which images of a live stream get depth and a mask: all, if the machine keeps up with that.

    If the image after a dense one had to wait, the machine does not keep up; then every n-th image
    is dense and the others get their pose only, which costs a fraction. The pose follows the
    camera, and each dense image tries anew whether there is time for more.
    """

    def __init__(self, config: InputConfig) -> None:
        """By `input.mode` and `input.dense_every`."""
        self._is_replay = config.mode == "replay"
        self._every = config.dense_every
        self._num_since = 0
        self._keeps_up = True

    def next(self, is_free: bool) -> bool:
        """Whether the image taken now is to be dense.

        Args:
            is_free: nothing before it is in the way.
        """
        if self._num_since == 0:
            self._keeps_up = is_free
        self._num_since += 1
        dense = self._is_replay or self._keeps_up or self._num_since >= self._every
        if dense:
            self._num_since = 0
        return dense

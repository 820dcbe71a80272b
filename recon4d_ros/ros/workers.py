"""The threads that work on images: one follows the camera, one makes the map."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recon4d_ros.config import Config
from recon4d_ros.pipeline.mailbox import DenseSchedule, Mailbox
from recon4d_ros.ros.perception import Arrival, Pending, Perception

# The workers look this often whether the map is due or the node stops.
_IDLE_S = 0.1
# An image that waited no longer found the worker idle.
IN_TIME_S = 0.003
# A frame takes well under a second; a worker that outlives this is stuck and is reported.
_JOIN_S = 20.0


class Workers:
    """Takes images through `Perception`.

    Live, tracking does not wait for mapping: the second thread is behind by `window.stride` frames
    at most, then the first one waits and images are dropped. A replay gives the same result every
    time, so there, and with a predictor that cannot do both at once, one thread does all.
    """

    def __init__(
        self, config: Config, perception: Perception, on_error: Callable[[Exception], None]
    ) -> None:
        """Make the threads; they begin at `start`.

        Args:
            config: of the node.
            perception: does the work.
            on_error: is told what an image raised; the next one gets its chance.
        """
        self._config = config
        self._perception = perception
        self._on_error = on_error
        self._maps_aside = perception.maps_aside and config.input.mode == "live"
        self._arrivals: Mailbox[Arrival] = Mailbox.of(config.input)
        self._pending: Mailbox[Pending] = Mailbox(config.window.stride, lossless=True)
        works = (self._track, self._map_aside) if self._maps_aside else (self._track,)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def start(self) -> None:
        """Begin to take images."""
        for thread in self._threads:
            thread.start()

    def put(self, arrival: Arrival) -> Arrival | None:
        """Leave an image; the one that is lost by it, see `Mailbox.put`."""
        return self._arrivals.put(arrival)

    def close(self) -> None:
        """Take no more images."""
        self._arrivals.close()

    def join(self) -> bool:
        """Wait until what was taken before `close` is done; whether the threads ended."""
        self._threads[0].join(_JOIN_S)
        self._pending.close()
        self._threads[-1].join(_JOIN_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _track(self) -> None:
        schedule = DenseSchedule(self._config.input)
        while self._arrivals.is_open:
            arrival = self._arrivals.take(_IDLE_S)
            with self._guard():
                if arrival is not None:
                    self._take(arrival, schedule)
                if not self._maps_aside:
                    self._publish_map()

    def _take(self, arrival: Arrival, schedule: DenseSchedule) -> None:
        dense = schedule.next(self._is_free(arrival))
        pending = self._perception.track(arrival, dense=dense)
        if self._maps_aside:
            self._pending.put(pending)
        else:
            self._perception.map(pending)

    def _is_free(self, arrival: Arrival) -> bool:
        """Whether depth and mask of this image would be made at once."""
        if self._maps_aside:
            return self._perception.has_mapped_all
        return time.monotonic() - arrival.received_s < IN_TIME_S

    def _map_aside(self) -> None:
        while self._pending.is_open or len(self._pending) > 0:
            pending = self._pending.take(_IDLE_S)
            with self._guard():
                if pending is not None:
                    self._perception.map(pending)
                self._publish_map()

    def _publish_map(self) -> None:
        self._perception.publish_map_if_due(self._config.map.publish_rate)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._on_error(error)

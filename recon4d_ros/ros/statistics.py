"""What the node counts and times; filled by two threads, read by the diagnostics."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# About ten seconds of a 30 Hz camera.
_RECENT = 300


@dataclass(frozen=True)
class Snapshot:
    """The figures of one moment.

    Attributes:
        num_received, num_posed, num_lost: images since the node was configured.
        dropped: images that did not enter, by cause.
        input_rate_hz, output_rate_hz: of the last seconds; 0 when nothing came.
        stamp_to_tf_ms, receive_to_tf_ms: p50 and p95 of the newest poses; NaN before the first.
        since_image_s: time since the last image; infinite before the first.
        stage_ms: mean time per stage of the newest steps.
    """

    num_received: int
    num_posed: int
    num_lost: int
    dropped: Mapping[str, int]
    input_rate_hz: float
    output_rate_hz: float
    stamp_to_tf_ms: tuple[float, float]
    receive_to_tf_ms: tuple[float, float]
    since_image_s: float
    stage_ms: Mapping[str, float]


@dataclass
class _Recent:
    """The newest values of one figure."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def percentiles(self) -> tuple[float, float]:
        if not self.values:
            return float("nan"), float("nan")
        p50, p95 = np.percentile(list(self.values), [50, 95])
        return float(p50), float(p95)

    def rate(self, now_s: float, span_s: float = 5.0) -> float:
        """Entries per second, of times in seconds."""
        recent = [value for value in self.values if now_s - value <= span_s]
        if len(recent) < 2:
            return 0.0
        # A stream that ended lowers its rate until the span has passed.
        return (len(recent) - 1) / max(now_s - recent[0], 1e-6)


class Statistics:
    """Counters and the newest times. All times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._arrivals, self._poses = _Recent(), _Recent()
        self._stamp_ms, self._receive_ms = _Recent(), _Recent()
        self._stages: deque[Mapping[str, float]] = deque(maxlen=_RECENT)
        self._last_arrival_s = -float("inf")

    def received(self, now_s: float) -> None:
        """An image message came in."""
        with self._lock:
            self._counts["received"] += 1
            self._arrivals.values.append(now_s)
            self._last_arrival_s = now_s

    def dropped(self, cause: str) -> None:
        """An image did not enter."""
        with self._lock:
            self._dropped[cause] += 1

    def posed(self, now_s: float, stamp_to_tf_s: float, receive_to_tf_s: float) -> None:
        """A pose was published."""
        with self._lock:
            self._counts["posed"] += 1
            self._poses.values.append(now_s)
            self._stamp_ms.values.append(1e3 * stamp_to_tf_s)
            self._receive_ms.values.append(1e3 * receive_to_tf_s)

    def lost(self) -> None:
        """A frame has no pose."""
        with self._lock:
            self._counts["lost"] += 1

    def stages(self, seconds: Mapping[str, float]) -> None:
        """The times of one step."""
        with self._lock:
            self._stages.append(dict(seconds))

    def snapshot(self, now_s: float) -> Snapshot:
        """The figures at `now_s`."""
        with self._lock:
            return Snapshot(
                self._counts["received"],
                self._counts["posed"],
                self._counts["lost"],
                dict(self._dropped),
                self._arrivals.rate(now_s),
                self._poses.rate(now_s),
                self._stamp_ms.percentiles(),
                self._receive_ms.percentiles(),
                now_s - self._last_arrival_s,
                self._mean_stage_ms(),
            )

    def _mean_stage_ms(self) -> dict[str, float]:
        sums: Counter[str] = Counter()
        for stages in self._stages:
            sums.update(stages)
        return {name: 1e3 * total / len(self._stages) for name, total in sums.items()}

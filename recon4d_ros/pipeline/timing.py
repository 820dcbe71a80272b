"""Wall time of the stages of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage."""

    def __init__(self, so_far: Mapping[str, float] | None = None) -> None:
        """Start with no stage, or go on from what was measured before."""
        self.seconds: dict[str, float] = dict(so_far or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

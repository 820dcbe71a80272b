"""SIGINT and SIGTERM as a wish to stop, at any moment and however often they come."""

from __future__ import annotations

import signal
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Installed from the main thread; `is_set` once a signal has come."""

    def __init__(self) -> None:
        """Install the handlers."""
        self.is_set = False
        for number in _STOPPING:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only a plain assignment: the interrupted thread could hold any lock.
        self.is_set = True

    def ignore_more(self) -> None:
        """Let nothing interrupt the teardown, nor the interpreter's own after it."""
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)

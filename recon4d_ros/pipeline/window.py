"""The ring of frames that are still in work."""

from __future__ import annotations

from collections import deque

from recon4d_ros.config import WindowConfig
from recon4d_ros.datatypes import Frame, Window


class SlidingWindow:
    """Holds the last `window.size` frames and gives a window at every `window.stride` new ones."""

    def __init__(self, config: WindowConfig) -> None:
        """Start empty."""
        self._stride = config.stride
        self._frames: deque[Frame] = deque(maxlen=config.size)
        self._num_new = 0

    def push(self, frame: Frame) -> Window | None:
        """Take a frame; a window when enough new ones came, smaller at the start of a stream."""
        self._frames.append(frame)
        self._num_new += 1
        return self.flush() if self._num_new == self._stride else None

    def flush(self) -> Window | None:
        """The frames as they are; None when all of them were handed out before."""
        if self._num_new == 0:
            return None
        window = Window(tuple(self._frames), self._num_new)
        self._num_new = 0
        return window

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames held, oldest first."""
        return tuple(self._frames)

    def reset(self) -> None:
        """Forget all frames."""
        self._frames.clear()
        self._num_new = 0

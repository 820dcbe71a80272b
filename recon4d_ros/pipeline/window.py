"""The ring of frames that are still in work."""

from __future__ import annotations

from collections import deque

from recon4d_ros.config import WindowConfig
from recon4d_ros.datatypes import Frame, Window


class SlidingWindow:
    """Holds the last `window.size` frames, and gives windows that make frames final.

    At every `window.stride` new frames a window makes as many final, the oldest of them as late
    as `window.final_lag` allows. Those at the start of a stream have no past that tells of them:
    each has a window of its own, as late.
    """

    def __init__(self, config: WindowConfig) -> None:
        """Start empty."""
        self._config = config
        self._frames: deque[Frame] = deque(maxlen=config.size)
        self._num_waiting = self._num_final = 0

    def push(self, frame: Frame) -> Window | None:
        """Take a frame; a window when one must become final, smaller at the start of a stream."""
        self._frames.append(frame)
        self._num_waiting += 1
        stride, lag = self._config.stride, self._config.final_lag
        if self._num_waiting <= lag:
            return None
        num_settled = 1 if self._num_final < stride else stride
        self._num_waiting -= num_settled
        self._num_final += num_settled
        return Window(tuple(self._frames), frame.index - lag + num_settled)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames held, oldest first."""
        return tuple(self._frames)

    def reset(self) -> None:
        """Forget all frames."""
        self._frames.clear()
        self._num_waiting = self._num_final = 0

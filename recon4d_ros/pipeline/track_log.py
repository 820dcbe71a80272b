"""Tracks of each frame, kept until the frame's depth is known."""

from __future__ import annotations

from recon4d_ros.config import WindowConfig
from recon4d_ros.datatypes import Frame, Tracks, Window
from recon4d_ros.pipeline.window import SlidingWindow
from recon4d_ros.predictors.interface import PointTracker


class TrackLog:
    """Runs a tracker over sliding windows and keeps what it says of every frame.

    A frame's entry is that of the last window in which `window.final_lag` frames may still follow
    it, so that its mobility rests on both sides. It grows until `forget_before` is called.
    """

    def __init__(self, config: WindowConfig, tracker: PointTracker) -> None:
        """Start empty, with a tracker that has seen nothing."""
        self._config = config
        self._tracker = tracker
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._window = SlidingWindow(self._config)
        self._tracker.reset()
        self._known: dict[int, Tracks] = {}
        self._settled_before = 0

    def push(self, frame: Frame) -> None:
        """Take the next frame."""
        window = self._window.push(frame)
        if window is not None:
            self._note(window)
            self._settled_before = window.settled_before

    def of(self, index: int) -> Tracks | None:
        """Tracks of a frame (T = 1) as far as they are known; None before it was tracked."""
        if index not in self._known and self._window.frames:
            self._note(Window(self._window.frames, self._settled_before))
        return self._known.get(index)

    def forget_before(self, first: int) -> None:
        """Drop what is known of frames before `first`."""
        self._known = {index: known for index, known in self._known.items() if index >= first}

    def _note(self, window: Window) -> None:
        tracks = self._tracker.track(window)
        for row, index in enumerate(window.indices):
            if index >= self._settled_before:
                self._known[index] = tracks.in_frame(row)

"""What the rest of the house knows of predictors and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from recon4d_ros.datatypes import Frame, FramePrediction, Tracks, Window, WindowPrediction


class PointmapPredictor(Protocol):
    """Gives pointmaps of frames; may carry state from frame to frame, never sees the map.

    Attributes:
        name: for messages and reports.
        maps_aside: one thread may call `densify` and `predict`, in the order of the frames, while
            another one goes on tracking.
    """

    name: str
    maps_aside: bool

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        """Pose of one frame on its arrival, from past frames only.

        Args:
            frame: the next frame.
            dense: depth is wanted; False when there is time for the pose only.

        Returns:
            What is known; depth and correspondences may be left to `densify`.

        Raises:
            PredictorError: the frame cannot be used; the predictor's state is unchanged.
        """
        ...

    def densify(self, prediction: FramePrediction) -> FramePrediction:
        """Depth and correspondences of a frame tracked with `dense`, from past frames only."""
        ...

    def predict(self, window: Window) -> WindowPrediction:
        """Pointmaps of a window whose frames have all been given to `track` before.

        Raises:
            PredictorError: the window holds a frame that was never tracked.
        """
        ...

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        ...


@runtime_checkable
class Described(Protocol):
    """Has facts about itself for the diagnostics, such as device and precision."""

    @property
    def description(self) -> Mapping[str, str]:
        """Names and values; they may change while it works."""
        ...


@runtime_checkable
class Corrigible(Protocol):
    """Takes the motion of most of the view for the camera's, and can be told better."""

    def tell_moving(self, index: int, moving: Tensor | None) -> bool:
        """Hear what moves in a frame where most of the view does.

        Args:
            index: of a frame given to `track` before.
            moving: (H, W) bool on the dense grid; None where most of the view rests.

        Returns:
            Whether the poses given so far are found to rest on what moves. The next frame is lost,
            and those after it are in a new gauge.
        """
        ...


class PointTracker(Protocol):
    """Tracks points over frames."""

    name: str

    def track(self, window: Window) -> Tracks:
        """Tracks over the frames of a window, px of the frames' own size.

        Raises:
            PredictorError: the frames differ in size.
        """
        ...

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        ...

"""What was known of depth before a frame came, kept for the judgement of its flow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import FlowField, FramePrediction, Intrinsics, WindowPrediction
from recon4d_ros.motion.ego_flow import (
    AlongLine,
    Bools,
    DepthRange,
    along_line,
    carried,
    depth_range,
)

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Views:
    """Cameras of a prediction, in the frame that lasts as long as its gauge.

    Attributes:
        gauge: as in `FramePrediction`.
        grid: intrinsics of the dense grid.
        T_gauge_cam: (4, 4) by frame number; frames without a pose are left out.
    """

    gauge: int
    grid: Intrinsics
    T_gauge_cam: Mapping[int, Matrix]

    @staticmethod
    def of_frame(prediction: FramePrediction) -> Views:
        """The camera of one frame."""
        poses = () if prediction.T_key_cam is None else ((prediction.index, prediction.T_key_cam),)
        return Views._of(prediction, poses)

    @staticmethod
    def of_window(prediction: WindowPrediction) -> Views:
        """The cameras of a window."""
        T = prediction.T_key_cam
        return Views._of(prediction, () if T is None else zip(prediction.indices, T, strict=True))

    @staticmethod
    def _of(
        prediction: FramePrediction | WindowPrediction, poses: Iterable[tuple[int, Tensor]]
    ) -> Views:
        T_gauge_key = prediction.T_gauge_key
        known = (
            {}
            if T_gauge_key is None
            else {
                index: (T_gauge_key @ T).numpy() for index, T in poses if bool(T.isfinite().all())
            }
        )
        return Views(prediction.gauge, prediction.intrinsics, known)


@dataclass(frozen=True, eq=False)
class _Arrival:
    gauge: int
    T_gauge_cam: Matrix
    depth: DepthRange


class KnownDepths:
    """Depth of the last frames as it was on their arrival; bounded."""

    def __init__(self, bound: int) -> None:
        """Keep up to `bound` frames."""
        self._bound = bound
        self._arrivals: OrderedDict[int, _Arrival] = OrderedDict()

    def reset(self) -> None:
        """Forget all frames."""
        self._arrivals.clear()

    def forget_from(self, index: int) -> None:
        """Drop a frame number and later ones."""
        for later in [known for known in self._arrivals if known >= index]:
            del self._arrivals[later]

    def keep(self, prediction: FramePrediction, moving: Bools) -> None:
        """Remember the depth of a frame, but not of what moves: that is none.

        Args:
            prediction: of the frame; nothing is kept where it has no pose or no depth.
            moving: (H, W).
        """
        views = Views.of_frame(prediction)
        T = views.T_gauge_cam.get(prediction.index)
        if T is None or not bool(prediction.depth.isfinite().any()):
            return
        resting = np.where(moving, np.float32(np.nan), prediction.depth.numpy())
        depth = depth_range(resting, prediction.confidence.numpy())
        self._arrivals[prediction.index] = _Arrival(prediction.gauge, T, depth)
        while len(self._arrivals) > self._bound:
            self._arrivals.popitem(last=False)

    def ask(self, field: FlowField, views: Views) -> AlongLine | None:
        """What of a pair's flow the depth of its earlier frame does not explain.

        That depth knows nothing of the later frame. None when it, or a pose, is missing.
        """
        earlier = self._arrivals.get(min(field.source, field.target))
        if earlier is None or earlier.gauge != views.gauge:
            return None
        arrived = {min(field.source, field.target): earlier.T_gauge_cam}
        poses = {**arrived, **views.T_gauge_cam}
        source, target = poses.get(field.source), poses.get(field.target)
        if source is None or target is None:
            return None
        T = np.linalg.inv(target) @ source
        flow, depth = field.flow.numpy(), earlier.depth
        if field.target < field.source:
            depth = carried(depth, flow, views.grid, T)
        return along_line(flow, field.valid.numpy(), depth, views.grid, T)

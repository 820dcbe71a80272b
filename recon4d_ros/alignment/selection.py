"""Which frames of a window become keyframes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from recon4d_ros.alignment.keyframes import Keyframe, detect, visible_share
from recon4d_ros.alignment.succession import key_pose
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import AlignedWindow, DynamicMask, Frame, Window
from recon4d_ros.geometry import se3

_MAX_DYNAMIC_SHARE = 0.7
_BLURRED_SHARE = 0.2
_EDGE_RATIO = 0.05
# An anchor with fewer measured pixels than this would match nothing.
_MIN_MEASURED_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class _Anchor:
    """The last keyframe, as far as the rule needs it."""

    index: int
    T_map_cam: Tensor
    points_map: Tensor


def worth_keeping(
    window: Window,
    aligned: AlignedWindow,
    last: Keyframe | None,
    newest: int,
    config: AlignmentConfig,
) -> Tensor:
    """Frames (T,) bool that see too little of the last keyframe, or turned, or come long after it.

    Never a frame without pose or depth, a blurred one, or one that mostly moves.

    Args:
        window: the frames.
        aligned: where they lie.
        last: newest keyframe of the submap.
        newest: number of the newest frame considered before.
        config: the thresholds.
    """
    keep = torch.zeros(len(window.frames), dtype=torch.bool)
    anchor = None if last is None else _Anchor(last.index, last.T_map_cam, last.points_map)
    for position, frame in enumerate(window.frames):
        T_map_cam = aligned.T_map_cam[position]
        if frame.index <= newest or not bool(T_map_cam.isfinite().all()):
            continue
        if anchor is not None and not _left_behind(
            anchor, frame.index, T_map_cam, aligned, config
        ):
            continue
        if not _can_anchor(aligned, position) or blurred(position, window.frames):
            continue
        keep[position] = True
        # Its own points are not known before `commit`; turn and distance decide until then.
        anchor = _Anchor(frame.index, T_map_cam, torch.zeros(0, 3, dtype=torch.float64))
    return keep


def new_keyframes(aligned: AlignedWindow, window: Window, max_features: int) -> list[Keyframe]:
    """The keyframes of an aligned window, with features on static, measured surfaces."""
    rows = torch.nonzero(aligned.is_keyframe).squeeze(-1).tolist()
    made = [_keyframe(aligned, window.frames[row], row, max_features) for row in rows]
    return [keyframe for keyframe in made if len(keyframe.points_map) > 0]


def blurred(position: int, frames: tuple[Frame, ...]) -> bool:
    """Whether a frame is among the least sharp fifth of its window (variance of the Laplacian)."""
    scores = [_sharpness(frame) for frame in frames]
    rank = sum(score < scores[position] for score in scores)
    return rank < int(_BLURRED_SHARE * len(frames))


def _sharpness(frame: Frame) -> float:
    # Every second pixel of the green channel: a comparison needs no more.
    green = np.ascontiguousarray(frame.rgb[::2, ::2, 1].numpy())
    return float(cv2.Laplacian(green, cv2.CV_16S).std())


def _can_anchor(aligned: AlignedWindow, position: int) -> bool:
    """Whether a frame has enough depth and enough that stands still."""
    prediction, dynamic = aligned.prediction, aligned.dynamic
    measured = prediction.confidence[position] > 0
    if float(measured.float().mean()) < _MIN_MEASURED_SHARE:
        return False
    return not _mostly_moving(dynamic, prediction.indices[position])


def _mostly_moving(dynamic: DynamicMask, index: int) -> bool:
    if index not in dynamic.indices:
        return False
    return float(dynamic.of(index).float().mean()) > _MAX_DYNAMIC_SHARE


def _left_behind(
    anchor: _Anchor, index: int, T_map_cam: Tensor, aligned: AlignedWindow, config: AlignmentConfig
) -> bool:
    if index - anchor.index >= config.keyframe_interval:
        return True
    trace = float((anchor.T_map_cam[:3, :3] * T_map_cam[:3, :3]).sum())
    if (trace - 1.0) / 2.0 < math.cos(math.radians(config.keyframe_rotation)):
        return True
    if len(anchor.points_map) == 0:
        return False
    share = visible_share(anchor.points_map, T_map_cam, aligned.prediction.intrinsics)
    return share < config.keyframe_overlap


def _smooth(points: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Pixels (P,) bool whose 3 x 3 neighbours are all measured and about equally far.

    A corner on the outline of an object has the depth of neither side for certain.
    """
    around = torch.arange(-1, 2)
    rows = (y[:, None, None] + around[:, None]).clamp(0, points.shape[0] - 1)
    columns = (x[:, None, None] + around).clamp(0, points.shape[1] - 1)
    distance = torch.linalg.vector_norm(points[rows, columns], dim=-1).flatten(1)
    # NaN compares False, so one unknown neighbour is enough to refuse.
    smooth: Tensor = distance.amax(1) <= (1.0 + _EDGE_RATIO) * distance.amin(1)
    return smooth


def _keyframe(aligned: AlignedWindow, frame: Frame, row: int, max_features: int) -> Keyframe:
    prediction = aligned.prediction
    features = detect(frame, prediction.intrinsics.size, max_features)
    x, y = features.uv.round().long().unbind(-1)
    points = prediction.points_key[row][y, x].double() * aligned.scale
    use = _smooth(prediction.points_key[row], x, y) & (prediction.confidence[row][y, x] > 0)
    use &= ~prediction.filled[row][y, x]
    if frame.index in aligned.dynamic.indices:
        use &= ~aligned.dynamic.of(frame.index)[y, x]
    return Keyframe(
        index=frame.index,
        stamp_ns=frame.stamp_ns,
        submap=aligned.submap,
        T_map_cam=aligned.T_map_cam[row],
        intrinsics=prediction.intrinsics,
        uv=features.uv[use],
        points_map=se3.transform(key_pose(aligned), points[use]),
        descriptors=features.descriptors[use.numpy()],
    )

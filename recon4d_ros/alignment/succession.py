"""The state of the map after one more window, and the events on the way; pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.alignment import evidence
from recon4d_ros.alignment.placement import scaled
from recon4d_ros.alignment.state import Join, Landmarks, MapState, PixelSample
from recon4d_ros.datatypes import AlignedWindow, EventKind, MapEvent, Window
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3

# Poses kept by frame number: several windows of the largest size.
_MAX_POSES = 192
# A landmark this many median distances away is another point, or one that moved.
_CONTRADICTION = 5.0


def key_pose(aligned: AlignedWindow) -> Tensor:
    """T_map_key (4, 4) of an aligned window.

    Raises:
        AlignmentError: no frame of the window has a pose.
    """
    prediction = aligned.prediction
    row = prediction.indices.index(prediction.key_index)
    T_key_cam = prediction.T_key_cam
    if T_key_cam is None:
        return aligned.T_map_cam[row]
    both = aligned.T_map_cam[:, 0, 0].isfinite() & T_key_cam[:, 0, 0].isfinite()
    if bool(both[row]):
        return aligned.T_map_cam[row] @ se3.inverse(scaled(T_key_cam[row], aligned.scale))
    posed = torch.nonzero(both).squeeze(-1)
    if len(posed) == 0:
        raise AlignmentError(
            f"no frame of the window {prediction.indices} ties its key frame "
            f"{prediction.key_index} to the map; a predictor must choose a posed key frame"
        )
    first = int(posed[0])
    T_cam_key = se3.inverse(scaled(T_key_cam[first], aligned.scale))
    return aligned.T_map_cam[first] @ T_cam_key


def successor(before: MapState | None, aligned: AlignedWindow, max_landmarks: int) -> MapState:
    """The state after an aligned window."""
    prediction = aligned.prediction
    same = before if before is not None and before.submap == aligned.submap else None
    same_gauge = same is not None and same.join.gauge == prediction.gauge
    window_number = 0 if before is None else before.num_windows
    sample = _sampled(aligned, None if same is None else same.sample)
    landmarks = same.landmarks if same is not None and same_gauge else Landmarks()
    has_depth = bool((sample.weight > 0).any())
    return MapState(
        submap=aligned.submap,
        join=_join(same, aligned),
        poses=_latest_poses({} if same is None else dict(same.poses), aligned),
        sample=sample,
        landmarks=_with_landmarks(landmarks, aligned, window_number, max_landmarks),
        num_windows=window_number + 1,
        has_depth=has_depth or (same is not None and same.has_depth),
        last_index=prediction.indices[-1],
    )


def events(
    before: MapState | None, after: MapState, aligned: AlignedWindow, window: Window
) -> tuple[MapEvent, ...]:
    """Discontinuities between two states."""
    kinds: list[tuple[EventKind, str]] = []
    if after.submap > (0 if before is None else before.submap):
        kinds.append((EventKind.NEW_SUBMAP, "the map goes on at a new origin and scale"))
    fresh = before is None or before.submap != after.submap
    if after.has_depth and (fresh or (before is not None and not before.has_depth)):
        kinds.append((EventKind.INITIALISED, "depth is known from here on"))
    newest = window.frames[-1]
    return tuple(
        MapEvent(kind, newest.stamp_ns, aligned.submap, f"frame {newest.index}: {text}")
        for kind, text in kinds
    )


def _join(same: MapState | None, aligned: AlignedWindow) -> Join:
    gauge, T_gauge_key = aligned.prediction.gauge, aligned.prediction.T_gauge_key
    if T_gauge_key is None:
        return Join(gauge, aligned.scale, None)
    old = None if same is None else same.join
    is_held = old is not None and old.gauge == gauge and old.scale == aligned.scale
    if old is not None and is_held and old.T_map_gauge is not None:
        # The very same numbers, so that not even rounding adds up.
        return old
    T_key_gauge = se3.inverse(scaled(T_gauge_key, aligned.scale))
    return Join(gauge, aligned.scale, key_pose(aligned) @ T_key_gauge)


def _latest_poses(poses: dict[int, Tensor], aligned: AlignedWindow) -> dict[int, Tensor]:
    for index, T_map_cam in zip(aligned.prediction.indices, aligned.T_map_cam, strict=True):
        if bool(T_map_cam.isfinite().all()):
            poses[index] = T_map_cam
    latest = sorted(poses)[-_MAX_POSES:]
    return {index: poses[index] for index in latest}


def _sampled(aligned: AlignedWindow, before: PixelSample | None) -> PixelSample:
    """Static pixels in the map; where a frame was sampled before its first positions stay.

    So the scale of a predictor that has a new one in every window is carried by the first sight
    of each frame, not handed on from the last window alone.
    """
    prediction = aligned.prediction
    step = evidence.sample_step(prediction.intrinsics.size)
    points, weight = evidence.static_samples(prediction, aligned.dynamic, step)
    posed = aligned.T_map_cam[:, 0, 0].isfinite()
    weight = torch.where(posed[:, None], weight, 0.0)
    points_map = se3.transform(key_pose(aligned), points * aligned.scale)
    sample = PixelSample(prediction.indices, step, points_map, weight)
    return sample if before is None else _with_first_sight(sample, before)


def _with_first_sight(sample: PixelSample, before: PixelSample) -> PixelSample:
    shared = [index for index in sample.indices if index in before.indices]
    if not shared or before.points_map.shape[1] != sample.points_map.shape[1]:
        return sample
    here = [sample.indices.index(index) for index in shared]
    there = [before.indices.index(index) for index in shared]
    seen = before.weight[there] > 0
    points, weight = sample.points_map.clone(), sample.weight.clone()
    points[here] = torch.where(seen[..., None], before.points_map[there], points[here])
    weight[here] = torch.where(seen, before.weight[there], weight[here])
    return PixelSample(sample.indices, sample.step, points, weight)


def _with_landmarks(
    landmarks: Landmarks, aligned: AlignedWindow, window_number: int, limit: int
) -> Landmarks:
    ids, points = aligned.prediction.landmark_ids, aligned.prediction.landmarks_key
    if ids is None or points is None:
        return landmarks
    known = points.isfinite().all(-1)
    points_map = se3.transform(key_pose(aligned), points[known] * aligned.scale)
    tolerance = _CONTRADICTION * aligned.residual
    return landmarks.observed(ids[known], points_map, tolerance, window_number, limit)

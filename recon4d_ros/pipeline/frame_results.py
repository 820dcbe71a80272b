"""What goes out of one frame: made of its prediction, its mask and its place in the map."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recon4d_ros.alignment.aligner import Located
from recon4d_ros.datatypes import (
    AlignedWindow,
    DynamicMask,
    Frame,
    FramePrediction,
    Reconstruction,
    TrackedFrame,
    TrackingState,
    Tracks,
    Window,
    WindowPrediction,
)
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.refinement.completion import complete


def posed(frame: Frame, prediction: FramePrediction, located: Located) -> Reconstruction:
    """A frame of which nothing but the pose is known."""
    nowhere = _blank(prediction, False)
    return Reconstruction(
        frame=frame,
        is_final=False,
        T_map_cam=located.T_map_cam,
        depth=_blank(prediction, torch.nan),
        confidence=_blank(prediction, 0.0),
        dynamic_mask=nowhere,
        filled=nowhere,
        intrinsics=prediction.intrinsics,
        intrinsics_source=prediction.intrinsics_source,
        state=located.state,
        submap=located.submap,
        scale_known=False,
        residual_px=prediction.residual_px,
        num_support=prediction.num_support,
        is_dense=False,
    )


def provisional(
    tracked: TrackedFrame, prediction: FramePrediction, dynamic: DynamicMask
) -> Reconstruction:
    """A tracked frame with depth and mask, from past frames only."""
    depth = prediction.depth * tracked.scale  # NaN while the scale is not known
    return complete(
        replace(
            tracked.pose,
            depth=depth,
            confidence=torch.where(depth.isfinite(), prediction.confidence, 0.0),
            dynamic_mask=dynamic.mask[0],
            filled=prediction.filled,
            is_dense=True,
        )
    )


def undecided(prediction: FramePrediction) -> DynamicMask:
    """Nothing is said of any pixel."""
    nowhere = _blank(prediction, False)[None]
    return DynamicMask((prediction.index,), nowhere, _blank(prediction, 0.0)[None], nowhere)


def _blank(prediction: FramePrediction | WindowPrediction, value: float) -> Tensor:
    """(H, W) of one value, in the memory of one: most live frames have no maps."""
    return torch.tensor(value).expand(prediction.intrinsics.size)


def final(window: Window, aligned: AlignedWindow, index: int, is_dense: bool) -> Reconstruction:
    """Final result of a frame of a window, complete but for the smoothing."""
    row = window.indices.index(index)
    prediction = aligned.prediction
    T_map_cam = _pose_or_none(aligned.T_map_cam[row])
    if is_dense:
        depth = _own_depth(aligned, row)
        confidence = torch.where(depth.isfinite(), prediction.confidence[row], 0.0)
    else:
        depth, confidence = _blank(prediction, torch.nan), _blank(prediction, 0.0)
    state = prediction.states[row] if T_map_cam is not None else TrackingState.LOST
    if T_map_cam is not None and state is TrackingState.LOST:
        state = TrackingState.TRACKING  # posed by the map, not by the predictor
    assert prediction.pose_residual_px is not None and prediction.pose_support is not None
    return complete(
        Reconstruction(
            frame=window.frames[row],
            is_final=True,
            T_map_cam=T_map_cam,
            depth=depth,
            confidence=confidence,
            dynamic_mask=aligned.dynamic.of(index),
            filled=prediction.filled[row],
            intrinsics=prediction.intrinsics,
            intrinsics_source=prediction.intrinsics_source,
            state=state,
            submap=aligned.submap,
            scale_known=False,
            residual_px=float(prediction.pose_residual_px[row]),
            num_support=int(prediction.pose_support[row]),
            is_dense=is_dense,
        )
    )


def refuted(result: Reconstruction) -> Reconstruction:
    """A final result of which nothing but the mask holds, for its pose rested on what moves."""
    return replace(
        result,
        T_map_cam=None,
        state=TrackingState.LOST,
        depth=torch.full_like(result.depth, torch.nan),
        confidence=torch.zeros_like(result.confidence),
        filled=torch.zeros_like(result.filled),
        tracks=None,
    )


def tracks(prediction: WindowPrediction, index: int) -> Tracks | None:
    """Tracks of one frame of a window (T = 1)."""
    if prediction.tracks is None:
        return None
    return prediction.tracks.in_frame(prediction.indices.index(index))


def _pose_or_none(T: Tensor) -> Tensor | None:
    return T if bool(T.isfinite().all()) else None


def _own_depth(aligned: AlignedWindow, row: int) -> Tensor:
    """Depth (H, W) of a window's frame in map units, in its own camera."""
    prediction = aligned.prediction
    points = prediction.points_key[row]
    T_key_cam = None if prediction.T_key_cam is None else prediction.T_key_cam[row]
    if T_key_cam is None or not bool(T_key_cam.isfinite().all()) or not aligned.scale > 0:
        return torch.full(points.shape[:2], torch.nan)
    points_cam = pointmap.transform(se3.inverse(T_key_cam).float(), points)
    return pointmap.to_depth(points_cam) * aligned.scale

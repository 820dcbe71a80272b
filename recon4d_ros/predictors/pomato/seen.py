"""What is kept of each frame, and how predictions are put together from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.datatypes import (
    FlowField,
    FramePrediction,
    Intrinsics,
    IntrinsicsSource,
    Matching,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.predictors.pomato.edge import RawEdge, Reading, read_edge


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame as the predictor knows it, in the unit and the frame of its gauge.

    Attributes:
        index, stamp_ns: of the frame.
        gauge: number of the gauge.
        T_gauge_cam: (4, 4) float64, None while it could not be placed.
        depth: (H, W) float32 z-depth, NaN where unknown.
        confidence: (H, W) float32, the network's own scale; 0 where depth is NaN.
        residual_px, num_support: of the pose.
        overlap: share of its pixels that the keyframe sees.
        is_dense: it was asked for with flow and matching.
        num_padding: frames repeated to fill the network's window.
        flows, matchings: from this frame to others.
    """

    index: int
    stamp_ns: int
    gauge: int
    T_gauge_cam: Tensor | None
    depth: Tensor
    confidence: Tensor
    residual_px: float
    num_support: int
    overlap: float = 1.0
    is_dense: bool = True
    num_padding: int = 0
    flows: tuple[FlowField, ...] = ()
    matchings: tuple[Matching, ...] = ()

    def read(self, readings: Sequence[Reading], known: Mapping[int, Seen]) -> Seen:
        """With what pairs with known frames say of it; the first of them counts most.

        The pose is that of the first pair that gives one, depth is the mean over those that do.
        """
        poses = [_placed(reading, known) for reading in readings]
        posed = [(T, r) for T, r in zip(poses, readings, strict=True) if T is not None]
        flows = tuple(r.flow for r in readings if r.flow is not None)
        matchings = tuple(r.matching for r in readings if r.matching is not None)
        said = replace(
            self,
            overlap=readings[0].overlap,
            num_padding=readings[0].raw.num_padding,
            flows=flows,
            matchings=matchings,
        )
        if not posed:
            return said
        T_gauge_cam, first = posed[0]
        depth = torch.stack([reading.depth for _, reading in posed]).nanmean(dim=0)
        conf = torch.stack([reading.raw.now.conf for _, reading in posed]).mean(dim=0)
        return replace(
            said,
            T_gauge_cam=T_gauge_cam,
            depth=depth,
            confidence=torch.where(depth.isfinite(), conf, 0.0),
            residual_px=first.pose.residual_px,
            num_support=first.pose.num_support,
        )

    def read_own(self, raw: RawEdge, T_gauge_cam: Tensor, scale: float = 1.0) -> Seen:
        """With its depth by a map in its own camera, at a pose that is known."""
        depth = pointmap.to_depth(raw.now.points * scale)
        return replace(
            self,
            T_gauge_cam=T_gauge_cam,
            depth=depth,
            confidence=torch.where(depth.isfinite(), raw.now.conf, 0.0),
            num_padding=raw.num_padding,
        )


def reread(
    known: Mapping[int, Seen], raws: Mapping[int, RawEdge], key: int, camera: Intrinsics
) -> dict[int, Seen]:
    """Frames as a whole window says, which was decoded against a keyframe in it.

    The window's unit follows from the depth that was known of its frames: a pixel's depth at its
    own time is the same whatever the keyframe. Frames that cannot be placed stay as they are.
    """
    T_gauge_key = known[key].T_gauge_cam
    assert T_gauge_key is not None
    own_depth = pointmap.to_depth(raws[key].now.points)
    readings = {i: read_edge(raw, camera, own_depth) for i, raw in raws.items() if i != key}
    depths = {key: own_depth, **{i: reading.depth for i, reading in readings.items()}}
    scale = common_scale([(known[i].depth, depth) for i, depth in depths.items()])
    seen = dict(known)
    seen[key] = known[key].read_own(raws[key], T_gauge_key, scale)
    for index, reading in readings.items():
        if reading.pose.T_points_cam is not None:
            seen[index] = known[index].read([reading.scaled(scale)], seen)
    return seen


def common_scale(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Median ratio of known depths (H, W) to new ones of the same pixels; 1 when none is known."""
    ratios = [(known / new) for known, new in pairs]
    medians = [ratio[ratio.isfinite()].median() for ratio in ratios if ratio.isfinite().any()]
    return float(torch.stack(medians).median()) if medians else 1.0


def _placed(reading: Reading, known: Mapping[int, Seen]) -> Tensor | None:
    T_gauge_target = known[reading.raw.target].T_gauge_cam
    T_target_cam = reading.pose.T_points_cam
    if T_gauge_target is None or T_target_cam is None:
        return None
    return T_gauge_target @ T_target_cam


def frame_prediction(
    seen: Seen, key: Seen, camera: Intrinsics, source: IntrinsicsSource
) -> FramePrediction:
    """What goes out of a frame on its arrival; T_key_cam as the held keyframe sees it."""
    unknown = torch.full_like(seen.depth, torch.nan)
    return FramePrediction(
        index=seen.index,
        stamp_ns=seen.stamp_ns,
        gauge=seen.gauge,
        key_index=key.index,
        intrinsics=camera,
        intrinsics_source=source,
        T_key_cam=_relative(key, seen),
        depth=seen.depth if seen.is_dense else unknown,
        confidence=seen.confidence if seen.is_dense else torch.zeros_like(seen.confidence),
        flows=seen.flows,
        state=_state(seen),
        residual_px=seen.residual_px,
        num_support=seen.num_support,
        filled=torch.zeros(camera.size, dtype=torch.bool),
        is_dense=seen.is_dense,
        matchings=seen.matchings,
        num_padding=seen.num_padding,
    )


def window_prediction(
    window: Window, frames: Sequence[Seen], key: Seen, camera: Intrinsics, source: IntrinsicsSource
) -> WindowPrediction:
    """What goes out of a window; frames without a pose in the key's gauge are unknown."""
    nowhere = torch.full((4, 4), torch.nan, dtype=torch.float64)
    poses = [_relative(key, seen) if seen.gauge == key.gauge else None for seen in frames]
    T_key_cam = torch.stack([nowhere if T is None else T for T in poses])
    points = tuple(_points(T, seen.depth, camera) for T, seen in zip(poses, frames, strict=True))
    conf = torch.stack([seen.confidence for seen in frames])
    inside = set(window.indices)
    return WindowPrediction(
        indices=window.indices,
        stamps_ns=tuple(seen.stamp_ns for seen in frames),
        gauge=key.gauge,
        key_index=key.index,
        intrinsics=camera,
        intrinsics_source=source,
        points_key=points,
        confidence=torch.where(torch.stack([p[..., 0].isfinite() for p in points]), conf, 0.0),
        filled=torch.zeros(conf.shape, dtype=torch.bool),
        T_key_cam=T_key_cam,
        pose_residual_px=torch.tensor([seen.residual_px for seen in frames]),
        pose_support=torch.tensor([seen.num_support for seen in frames]),
        states=tuple(TrackingState.LOST if T is None else TrackingState.TRACKING for T in poses),
        flows=tuple(f for seen in frames for f in seen.flows if f.target in inside),
        matchings=tuple(m for seen in frames for m in seen.matchings if m.target in inside),
        num_padding=max(seen.num_padding for seen in frames),
    )


def _points(T_key_cam: Tensor | None, depth: Tensor, camera: Intrinsics) -> Tensor:
    """Pointmap (H, W, 3) in the key camera; NaN for a frame without a pose."""
    points = pointmap.from_depth(depth, camera)
    if T_key_cam is None:
        return torch.full_like(points, torch.nan)
    return pointmap.transform(T_key_cam.float(), points)


def _relative(key: Seen, seen: Seen) -> Tensor | None:
    if seen.T_gauge_cam is None or key.T_gauge_cam is None:
        return None
    return se3.inverse(key.T_gauge_cam) @ seen.T_gauge_cam


def _state(seen: Seen) -> TrackingState:
    return TrackingState.LOST if seen.T_gauge_cam is None else TrackingState.TRACKING

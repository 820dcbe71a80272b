"""The frozen dataclasses that travel between the rooms of the house.

Tensors are torch, on the CPU unless a docstring says otherwise. Shapes use the letters of
docs/conventions.md: T frames, H W rows and columns, N tracks, E directed pairs. Poses are float64,
images uint8, everything dense float32. Camera frames are optical (x right, y down, z forward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import CameraMotion as CameraMotion
from recon4d_ros.datatypes.clips import Clips as Clips
from recon4d_ros.datatypes.correspondence import FlowField as FlowField
from recon4d_ros.datatypes.correspondence import Matching as Matching
from recon4d_ros.datatypes.correspondence import PairPointmaps as PairPointmaps
from recon4d_ros.datatypes.correspondence import Tracks as Tracks
from recon4d_ros.datatypes.correspondence import Tracks3D as Tracks3D
from recon4d_ros.datatypes.events import EventKind as EventKind
from recon4d_ros.datatypes.events import MapCorrection as MapCorrection
from recon4d_ros.datatypes.events import MapEvent as MapEvent


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera of exactly one image size, in pixels; the first pixel's centre is (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def K(self) -> Tensor:
        """Camera matrix, (3, 3) float64."""
        rows = [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


class IntrinsicsSource(Enum):
    """Where the intrinsics of a result come from."""

    GIVEN = "given"
    ESTIMATED = "estimated"


@dataclass(frozen=True, eq=False)
class Frame:
    """One stamped, rectified RGB image.

    Attributes:
        index: running number of the frame since the last reset, 0 first.
        stamp_ns: acquisition time, nanoseconds; strictly increasing within a stream.
        rgb: (H, W, 3) uint8.
        intrinsics: of this image; None when unknown (it is then estimated).
    """

    index: int
    stamp_ns: int
    rgb: Tensor
    intrinsics: Intrinsics | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]


@dataclass(frozen=True, eq=False)
class Window:
    """Up to T consecutive frames fed to a predictor together, oldest first.

    Attributes:
        frames: the frames; fewer than the configured size only at the start of a stream.
        settled_before: frames of a lower number are final once the window is done.
    """

    frames: tuple[Frame, ...]
    settled_before: int

    @property
    def indices(self) -> tuple[int, ...]:
        """Frame numbers, oldest first."""
        return tuple(frame.index for frame in self.frames)


class TrackingState(Enum):
    """What the pose of a frame rests on."""

    INITIALISING = "initialising"  # posed in the gauge of the first frame, depth not yet known
    TRACKING = "tracking"
    NO_PARALLAX = "no_parallax"  # standing or rotating: pose tracked, depth kept from before
    LOST = "lost"  # no pose


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """What a predictor knows of one frame on its arrival, from past frames only.

    Coordinates are those of its reference frame `key_index`, in the predictor's own scale.

    Attributes:
        index, stamp_ns: of the frame.
        gauge: number of the predictor's gauge; it grows when the predictor starts anew, and
            coordinates of different gauges have nothing in common.
        key_index: frame whose camera is the coordinate frame.
        intrinsics, intrinsics_source: of the dense grid (H, W); given or estimated.
        T_key_cam: (4, 4) float64, None when tracking is lost.
        depth: (H, W) float32 z-depth, NaN where unknown.
        confidence: (H, W) float32, the predictor's own scale, 0 where depth is NaN.
        flows, matchings: of this frame with past ones, both directions; of a network that matches.
        state: what the pose rests on.
        residual_px, num_support: median reprojection error, dense-grid px, and number of points.
        filled: (H, W) bool, depth borrowed from the surroundings.
        tracks: live tracks of this frame (T = 1), or None.
        is_dense: depth and flows were computed; otherwise NaN and empty.
        num_padding: frames repeated to fill a network's window at the start of a stream.
        T_gauge_key: (4, 4) float64 pose of the `key_index` camera in a frame that lasts as long
            as `gauge` does; None when the predictor keeps none.
    """

    index: int
    stamp_ns: int
    gauge: int
    key_index: int
    intrinsics: Intrinsics
    intrinsics_source: IntrinsicsSource
    T_key_cam: Tensor | None
    depth: Tensor
    confidence: Tensor
    flows: tuple[FlowField, ...]
    state: TrackingState
    residual_px: float
    num_support: int
    filled: Tensor
    tracks: Tracks | None = None
    T_gauge_key: Tensor | None = None
    is_dense: bool = True
    matchings: tuple[Matching, ...] = ()
    num_padding: int = 0


@dataclass(frozen=True, eq=False)
class WindowPrediction:
    """Pointmaps of a window in its keyframe's camera.

    Attributes:
        indices, stamps_ns: the T frame numbers, oldest first, and their stamps.
        gauge: as in `FramePrediction`.
        key_index: frame whose camera is the coordinate frame; one of `indices`.
        intrinsics, intrinsics_source: of the dense grid (H, W); given or estimated.
        points_key: T times (H, W, 3) float32 in the keyframe camera, NaN where unknown.
        confidence: (T, H, W) float32, the predictor's own scale, 0 where points are NaN.
        filled: (T, H, W) bool, depth borrowed from the surroundings.
        T_key_cam: (T, 4, 4) float64 poses, NaN for a frame without one; None: PnP finds them.
        pose_residual_px, pose_support: (T,) float32 medians and int64 numbers of points, or None.
        states, flows: one state per frame; correspondences between frames of the window.
        landmark_ids: (P,) int64 sparse static points, the same id in every window; or None.
        landmarks_key: (P, 3) float64 in the keyframe camera, or None.
        tracks, matchings: over the window, None or empty without.
        T_gauge_key: as in `FramePrediction`; None when no frame lasts from window to window.
        num_padding: the largest one of its frames, see `FramePrediction`.
    """

    indices: tuple[int, ...]
    stamps_ns: tuple[int, ...]
    gauge: int
    key_index: int
    intrinsics: Intrinsics
    intrinsics_source: IntrinsicsSource
    points_key: tuple[Tensor, ...]
    confidence: Tensor
    filled: Tensor
    T_key_cam: Tensor | None
    pose_residual_px: Tensor | None
    pose_support: Tensor | None
    states: tuple[TrackingState, ...]
    flows: tuple[FlowField, ...]
    landmark_ids: Tensor | None = None
    landmarks_key: Tensor | None = None
    tracks: Tracks | None = None
    T_gauge_key: Tensor | None = None
    matchings: tuple[Matching, ...] = ()
    num_padding: int = 0


@dataclass(frozen=True, eq=False)
class DynamicMask:
    """Which pixels of some frames show a surface that moves in the world.

    Attributes:
        indices: frame numbers, oldest first (T of them).
        mask: (T, H, W) bool, True where the surface moves.
        evidence: (T, H, W) float32, squared residual over its threshold; > 1 speaks for motion.
        decided: (T, H, W) bool, False where no pair could vote.
    """

    indices: tuple[int, ...]
    mask: Tensor
    evidence: Tensor
    decided: Tensor

    def of(self, index: int) -> Tensor:
        """Mask (H, W) of one frame number."""
        return self.mask[self.indices.index(index)]


@dataclass(frozen=True, eq=False)
class AlignedWindow:
    """A window in map coordinates.

    Attributes:
        prediction, dynamic: what was aligned, and its mask.
        T_map_cam: (T, 4, 4) float64, NaN where the frame has no pose.
        scale: map units per predictor unit; NaN, and so every depth, while the gauge is apart.
        submap: number of the submap; a new one starts after a failed relocalisation.
        is_keyframe: (T,) bool, frames worth keeping as alignment anchors.
        residual: median distance of shared points after alignment, map units.
        num_shared: shared points and poses it rests on; 0 when it opens a submap.
    """

    prediction: WindowPrediction
    dynamic: DynamicMask
    T_map_cam: Tensor
    scale: float
    submap: int
    is_keyframe: Tensor
    residual: float
    num_shared: int


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What is known of one frame: provisional on arrival, final at a fixed lag.

    Attributes:
        frame: the input frame.
        is_final: nothing of the frame changes any more.
        T_map_cam: (4, 4) float64 camera pose in the map, None when there is none.
        depth: (H, W) float32 on the dense grid, map units (metres if scale_known), NaN invalid.
        confidence: (H, W) float32, 0 where depth is NaN.
        dynamic_mask, filled: (H, W) bool, the surface moves; its depth is borrowed from others.
        intrinsics, intrinsics_source: of the dense grid; given or estimated.
        state, residual_px, num_support: what the pose rests on, and its quality.
        submap: number of the submap; poses of different submaps share no gauge.
        scale_known: metric scale or arbitrary.
        is_dense: depth and mask were computed; otherwise NaN and undecided.
        tracks: of the frame, smoothed; None where nothing was tracked or smoothed.
    """

    frame: Frame
    is_final: bool
    T_map_cam: Tensor | None
    depth: Tensor
    confidence: Tensor
    dynamic_mask: Tensor
    filled: Tensor
    intrinsics: Intrinsics
    intrinsics_source: IntrinsicsSource
    state: TrackingState
    submap: int
    scale_known: bool
    residual_px: float
    num_support: int
    is_dense: bool = True
    tracks: Tracks3D | None = None


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """A frame whose pose is known; its depth, its mask and its window's work are still to come.

    Attributes:
        pose: what can be said of the frame now, neither depth nor mask among it.
        prediction: of the frame.
        scale: map units per unit of the predictor; NaN when not known.
        dense: depth and mask are wanted.
        window: the window that this frame completes, or None.
        events: discontinuities this frame brings.
        stage_seconds: wall time per stage so far.
    """

    pose: Reconstruction
    prediction: FramePrediction
    scale: float
    dense: bool
    window: Window | None
    events: tuple[MapEvent, ...]
    stage_seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class StepOutput:
    """Everything one call of `Reconstructor.step` has to say.

    Attributes:
        provisional: the frame just given.
        final: earlier frames that became final, oldest first.
        events: discontinuities, in order. A map correction is the last one and moves everything
            handed out so far, this step's results among it.
        stage_seconds: wall time per stage of this step.
    """

    provisional: Reconstruction
    final: tuple[Reconstruction, ...] = ()
    events: tuple[MapEvent, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """P coloured points in map coordinates.

    Attributes:
        points, rgb: (P, 3) float32 and uint8.
        confidence, num_observations: (P,) float32 and int32.
    """

    points: Tensor
    rgb: Tensor
    confidence: Tensor
    num_observations: Tensor


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Stamped camera poses, oldest first.

    Attributes:
        stamps_ns, T_world_cam: (N,) int64, strictly increasing, and (N, 4, 4) float64.
    """

    stamps_ns: Tensor
    T_world_cam: Tensor

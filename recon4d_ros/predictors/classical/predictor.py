"""The classical predictor: odometry and triangulated flow behind the `PointmapPredictor` door."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    FlowField,
    Frame,
    FramePrediction,
    Intrinsics,
    IntrinsicsSource,
    TrackingState,
    Tracks,
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import PredictorError
from recon4d_ros.geometry.image_grid import fit_long_side, resize_intrinsics, resize_uv
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.depth import (
    InverseDepth,
    Rays,
    View,
    carried,
    fused,
    measured,
    unknown,
)
from recon4d_ros.predictors.classical.images import fitted, grey_image
from recon4d_ros.predictors.classical.odometry import Odometry, Tracked
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import ReadoutTime
from recon4d_ros.predictors.classical.tracks import Grey
from recon4d_ros.predictors.flow import FlowHistory

# Focal length over the long side of a camera of which nothing is known (56 degrees of view).
_USUAL_FOCAL = 0.95
# Mobility of points that agree with the camera's motion, and of those not judged yet.
_STATIC, _UNKNOWN = 0.0, 0.3


@dataclass(frozen=True, eq=False)
class _Known:
    """What is kept of a frame while it can still be in a window."""

    gauge: int
    stamp_ns: int
    fields: tuple[FlowField, ...]
    tracked: Tracked
    depth: InverseDepth
    is_dense: bool
    is_final: bool = False


class ClassicalPredictor:
    """Visual odometry with dense depth, on the CPU, without weights.

    It carries state from frame to frame (tracks, landmarks, depth); `reset` clears it. When the
    odometry is lost it starts anew in a new gauge.
    """

    name = "classical"

    def __init__(self, config: Config) -> None:
        """Make the predictor; sizes are taken from the first frame."""
        self._config = config
        self._flow = FlowHistory(config.flow)
        self._worker = ThreadPoolExecutor(1, "flow")
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        self._flow.reset()
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._gauge = 0
        self._input: Intrinsics | None = None
        self._odometry: Odometry | None = None
        self._readout = ReadoutTime()
        self._gauge_start = 0

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        """Pose, depth and flow of a frame, from past frames only.

        Args:
            frame: the next frame.
            dense: False: its pose only.

        Raises:
            PredictorError: the frame's size or intrinsics differ from those before.
        """
        self._check(frame)
        grey = grey_image(frame)
        image = fitted(grey, self._tracking_size)
        fields: tuple[FlowField, ...] = ()
        estimate = unknown(self._dense.size)
        if dense:
            # Flow and odometry know nothing of each other, and OpenCV works outside the GIL.
            small = fitted(grey, self._dense.size)
            flowing = self._worker.submit(self._flow.push, frame.index, small)
            tracked = self._advance(frame, image)
            fields = flowing.result()
            estimate = self._arrival_depth(frame.index, fields)
        else:
            tracked = self._advance(frame, image)
        self._remember(frame, tracked, fields, estimate, dense)
        prediction = self._frame_prediction(frame.index)
        if tracked.T_cam_world is None:
            self._start_anew(frame, image)
        return prediction

    def predict(self, window: Window) -> WindowPrediction:
        """Adjust the window's poses, measure the depth of its settled frames with later partners.

        Raises:
            PredictorError: a frame of the window was never tracked.
        """
        missing = [index for index in window.indices if index not in self._known]
        if missing:
            raise PredictorError(f"frames {missing} were not tracked; give each to track() first")
        assert self._odometry is not None
        self._odometry.adjust()
        for index in self._settled(window):
            self._settle(index)
        return self._window_prediction(window)

    # ------------------------------------------------------------------ tracking
    def _check(self, frame: Frame) -> None:
        height, width = frame.size
        if self._input is None:
            self._open(frame, height, width)
        expected = self._input
        assert expected is not None
        if frame.size != expected.size:
            raise PredictorError(
                f"frame {frame.index} is {width} x {height}, the stream {expected.width} x "
                f"{expected.height}; reset before feeding another camera"
            )
        if frame.intrinsics is not None and frame.intrinsics != expected:
            raise PredictorError(
                f"frame {frame.index} has other intrinsics than the stream; reset before feeding "
                "another camera"
            )

    def _open(self, frame: Frame, height: int, width: int) -> None:
        """Fix sizes and camera by the first frame."""
        self._source = IntrinsicsSource.GIVEN
        camera = frame.intrinsics
        if camera is None:
            self._source = IntrinsicsSource.ESTIMATED
            focal = _USUAL_FOCAL * max(height, width)
            camera = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)
        self._input = camera
        image = self._config.image
        self._tracking_size = fit_long_side((height, width), image.tracking_max_side)
        self._dense = fit_long_side(camera, image.dense_max_side)
        self._rays = Rays.of(self._dense)
        self._odometry = self._new_odometry(frame.index)

    def _new_odometry(self, index: int) -> Odometry:
        assert self._input is not None
        camera = resize_intrinsics(self._input, self._tracking_size)
        pinhole = Pinhole(camera.fx, camera.fy, camera.cx, camera.cy, camera.height)
        self._gauge_start = index
        known = self._source is IntrinsicsSource.GIVEN
        return Odometry(self._config.odometry, self._config.window, pinhole, known, self._readout)

    def _advance(self, frame: Frame, grey: Grey) -> Tracked:
        assert self._odometry is not None
        was_ready = self._odometry.ready
        tracked = self._odometry.track(frame.index, frame.stamp_ns, grey)
        if self._odometry.ready and not was_ready:
            self._take_focal()
        return tracked

    def _take_focal(self) -> None:
        """The focal length the bootstrap settled on, in the pixels of the input."""
        assert self._odometry is not None and self._input is not None
        if self._source is IntrinsicsSource.GIVEN:
            return
        focal = self._odometry.shutter.camera.focal * self._input.width / self._tracking_size[1]
        self._input = replace(self._input, fx=focal, fy=focal)
        self._dense = fit_long_side(self._input, self._config.image.dense_max_side)
        self._rays = Rays.of(self._dense)

    def _start_anew(self, frame: Frame, grey: Grey) -> None:
        assert self._odometry is not None
        self._gauge += 1
        self._readout = self._odometry.shutter.readout
        self._odometry = self._new_odometry(frame.index)
        self._odometry.track(frame.index, frame.stamp_ns, grey)

    # ------------------------------------------------------------------ depth
    def _poses(self) -> dict[int, Array]:
        """Poses that depth may rest on: none before the odometry knows depth."""
        assert self._odometry is not None
        return self._odometry.poses if self._odometry.ready else {}

    def _views(self) -> dict[int, View]:
        """The same with what moves while an image is read."""
        assert self._odometry is not None
        shutter = self._odometry.shutter
        seconds = shutter.readout.seconds
        poses = self._poses()
        return {frame: View(T, seconds * shutter.velocity(frame)) for frame, T in poses.items()}

    def _arrival_depth(self, index: int, fields: tuple[FlowField, ...]) -> InverseDepth:
        from_here = [field for field in fields if field.source == index]
        now = measured(from_here, self._views(), self._rays, self._config.depth)
        return self._with_past(index, from_here, now)

    def _with_past(self, index: int, fields: list[FlowField], now: InverseDepth) -> InverseDepth:
        """Joined with the nearest partner's estimate, carried along the flow."""
        poses = self._poses()
        past = [field for field in fields if field.target < index]
        if not past or index not in poses:
            return now
        field = max(past, key=lambda entry: entry.target)
        known = self._known.get(field.target)
        if known is None or known.gauge != self._gauge or field.target not in poses:
            return now
        T = poses[field.target] @ rigid.inverse(poses[index])
        prior = carried(known.depth, field, T, self._rays, self._config.depth)
        return fused(now, prior, self._config.depth)

    def _settled(self, window: Window) -> list[int]:
        """Frames that this window makes final and that are not measured finally yet."""
        newest = window.indices[-1]
        stride = self._config.window.final_lag - self._config.window.stride + 1
        ready = [index for index in window.indices if index <= newest - stride]
        return [index for index in ready if not self._known[index].is_final]

    def _settle(self, index: int) -> None:
        """Depth of a frame from past and later partners, with adjusted poses."""
        known = self._known[index]
        estimate = known.depth
        if known.gauge == self._gauge and known.is_dense:
            later = [field for entry in self._known.values() for field in entry.fields]
            fields = [field for field in later if field.source == index]
            now = measured(fields, self._views(), self._rays, self._config.depth)
            estimate = self._with_past(index, fields, now)
        self._known[index] = replace(known, depth=estimate, is_final=True)

    # ------------------------------------------------------------------ what goes out
    def _remember(
        self,
        frame: Frame,
        tracked: Tracked,
        fields: tuple[FlowField, ...],
        estimate: InverseDepth,
        is_dense: bool,
    ) -> None:
        known = _Known(self._gauge, frame.stamp_ns, fields, tracked, estimate, is_dense)
        self._known[frame.index] = known
        while len(self._known) > self._config.window.size:
            self._known.popitem(last=False)

    def _state(self, index: int, tracked: Tracked) -> TrackingState:
        """TRACKING only if the recent baseline shows depth; standing and turning say so."""
        assert self._odometry is not None
        if tracked.state is not TrackingState.TRACKING or not self._odometry.ready:
            return tracked.state
        poses = self._odometry.poses
        here = rigid.inverse(poses[index])[:3, 3]
        past = [entry for entry in self._known if entry in poses and entry < index]
        baseline = max(
            (float(np.linalg.norm(rigid.inverse(poses[entry])[:3, 3] - here)) for entry in past),
            default=np.inf,
        )
        _, depths = self._odometry.sparse_depth(index)
        typical = float(np.median(depths)) if len(depths) else 1.0
        enough = baseline > self._config.depth.min_baseline * typical
        return TrackingState.TRACKING if enough else TrackingState.NO_PARALLAX

    def _frame_prediction(self, index: int) -> FramePrediction:
        known = self._known[index]
        T = known.tracked.T_cam_world
        if T is not None:
            assert self._odometry is not None
            T = self._odometry.poses[index]
        limit = self._config.depth.max_relative_sigma
        return FramePrediction(
            index=index,
            stamp_ns=known.stamp_ns,
            gauge=self._gauge,
            key_index=self._gauge_start,
            intrinsics=self._dense,
            intrinsics_source=self._source,
            T_key_cam=None if T is None else torch.from_numpy(rigid.inverse(T)),
            depth=torch.from_numpy(known.depth.depth(limit)),
            confidence=torch.from_numpy(known.depth.confidence(limit)),
            flows=known.fields,
            state=self._state(index, known.tracked),
            residual_px=self._on_dense_grid(known.tracked.residual_px),
            num_support=known.tracked.num_support,
            filled=torch.zeros(self._dense.size, dtype=torch.bool),
            T_gauge_key=torch.eye(4, dtype=torch.float64),
            is_dense=known.is_dense,
        )

    def _window_prediction(self, window: Window) -> WindowPrediction:
        assert self._odometry is not None
        known = [self._known[index] for index in window.indices]
        poses = self._odometry.poses
        here = [
            index in poses and entry.gauge == self._gauge
            for index, entry in zip(window.indices, known, strict=True)
        ]
        key = window.indices[here.index(True)] if any(here) else window.indices[-1]
        T_key = poses.get(key, np.eye(4))
        depth, confidence = self._dense_maps(known, here)
        T = [
            T_key @ rigid.inverse(poses[index]) if ok else np.full((4, 4), np.nan)
            for index, ok in zip(window.indices, here, strict=True)
        ]
        T_key_cam = torch.from_numpy(np.stack(T))
        points = self._points_key(depth, T_key_cam)
        ids, positions = self._odometry.landmarks()
        positions = positions @ T_key[:3, :3].T + T_key[:3, 3]
        return WindowPrediction(
            indices=window.indices,
            stamps_ns=tuple(entry.stamp_ns for entry in known),
            gauge=self._gauge,
            key_index=key,
            intrinsics=self._dense,
            intrinsics_source=self._source,
            points_key=points,
            confidence=confidence,
            filled=torch.zeros(depth.shape, dtype=torch.bool),
            T_key_cam=T_key_cam,
            pose_residual_px=torch.tensor(
                [self._on_dense_grid(entry.tracked.residual_px) for entry in known]
            ),
            pose_support=torch.tensor([entry.tracked.num_support for entry in known]),
            states=tuple(
                entry.tracked.state if ok else TrackingState.LOST
                for entry, ok in zip(known, here, strict=True)
            ),
            flows=self._flows_inside(window),
            landmark_ids=torch.from_numpy(ids),
            landmarks_key=torch.from_numpy(positions),
            tracks=self._tracks(window),
            T_gauge_key=torch.from_numpy(rigid.inverse(T_key)),
        )

    def _tracks(self, window: Window) -> Tracks:
        """The points of the odometry: static, as far as their depth is known."""
        assert self._odometry is not None and self._input is not None
        ids, uv, is_sure = self._odometry.tracks(window.indices)
        px = resize_uv(torch.from_numpy(uv), self._tracking_size, self._input.size).float()
        seen = px[..., 0].isfinite()
        mobility = torch.where(torch.from_numpy(is_sure), _STATIC, _UNKNOWN).expand(seen.shape)
        return Tracks(torch.from_numpy(ids), px, seen.float(), mobility)

    def _points_key(self, depth: Tensor, T_key_cam: Tensor) -> Tensor:
        """Pointmaps (T, H, W, 3) in the key camera of depths (T, H, W)."""
        rays = self._rays.directions
        points = torch.full((*depth.shape, 3), torch.nan)
        known = depth.isfinite().flatten(1).any(dim=1)
        for row, T in enumerate(T_key_cam.float()):
            if not known[row]:
                continue
            flat = points[row].view(-1, 3)
            torch.mm(rays, T[:3, :3].mT, out=flat)
            flat.mul_(depth[row].view(-1, 1)).add_(T[:3, 3])
        return points

    def _dense_maps(self, known: list[_Known], here: list[bool]) -> tuple[Tensor, Tensor]:
        """Depth and confidence (T, H, W); nothing for frames outside the gauge."""
        limit = self._config.depth.max_relative_sigma
        shape = (len(known), *self._dense.size)
        depth, confidence = np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)
        for row, (entry, ok) in enumerate(zip(known, here, strict=True)):
            if ok and entry.is_dense:
                depth[row] = entry.depth.depth(limit)
                confidence[row] = entry.depth.confidence(limit)
        return torch.from_numpy(depth), torch.from_numpy(confidence)

    def _flows_inside(self, window: Window) -> tuple[FlowField, ...]:
        inside = set(window.indices)
        fields = (field for index in window.indices for field in self._known[index].fields)
        return tuple(field for field in fields if {field.source, field.target} <= inside)

    def _on_dense_grid(self, px: float) -> float:
        return px * self._dense.width / self._tracking_size[1]

"""The classical predictor: odometry and triangulated flow behind the `PointmapPredictor` door."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

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
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import PredictorError
from recon4d_ros.geometry import image_grid
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
from recon4d_ros.predictors.classical.known import (
    Fields,
    Gauge,
    Known,
    dense_maps,
    flows_inside,
    own_tracks,
    relative_baseline,
)
from recon4d_ros.predictors.classical.odometry import Odometry
from recon4d_ros.predictors.classical.pinhole import UNKNOWN, Pinhole
from recon4d_ros.predictors.classical.pose import Tracked
from recon4d_ros.predictors.classical.shutter import ReadoutTime
from recon4d_ros.predictors.classical.told import ToldPoints
from recon4d_ros.predictors.classical.tracks import Grey
from recon4d_ros.predictors.flow import FlowHistory

# Focal length over the long side of a camera of which nothing is known (56 degrees of view).
_USUAL_FOCAL = 0.95


class ClassicalPredictor:
    """Visual odometry with dense depth, on the CPU, without weights.

    It carries state from frame to frame (tracks, landmarks, depth); `reset` clears it. When the
    odometry is lost it starts anew in a new gauge. One thread may track while another one makes
    depth and adjusts windows.
    """

    name = "classical"
    maps_aside = True

    def __init__(self, config: Config) -> None:
        """Make the predictor; sizes are taken from the first frame."""
        self._config = config
        self._flow = FlowHistory(config.flow)
        self._worker = ThreadPoolExecutor(1, "flow")
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        self._worker.submit(self._flow.reset).result()
        self._known: OrderedDict[int, Known] = OrderedDict()
        self._gauge: Gauge | None = None
        self._input: Intrinsics | None = None

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        """Pose of a frame, from past frames only.

        Args:
            frame: the next frame.
            dense: `densify` will ask for its depth and flow, which begin to be computed.

        Raises:
            PredictorError: the frame's size or intrinsics differ from those before.
        """
        self._check(frame)
        grey = grey_image(frame)
        flowing: Future[Fields] | None = None
        # Flow and odometry know nothing of each other, and OpenCV works outside the GIL.
        small = fitted(grey, self._dense.size)
        if dense:
            flowing = self._worker.submit(self._flow.push, frame.index, small)
        else:
            self._worker.submit(self._flow.skip, frame.index, small)
        return self._tracked(frame, fitted(grey, self._tracking_size), flowing)

    def densify(self, prediction: FramePrediction) -> FramePrediction:
        """Depth and flow of a frame that was tracked with `dense`, from past frames only."""
        index = prediction.index
        known = self._known[index]
        views = self._views(known.gauge)
        assert known.flowing is not None
        known = replace(known, fields=known.flowing.result())
        known = replace(known, depth=self._arrival_depth(index, known, views))
        self._keep(index, known)
        limit = self._config.depth.max_relative_sigma
        return replace(
            prediction,
            depth=torch.from_numpy(known.depth.depth(limit)),
            confidence=torch.from_numpy(known.depth.confidence(limit)),
            flows=known.fields,
            is_dense=True,
        )

    def predict(self, window: Window) -> WindowPrediction:
        """Adjust the window's poses, measure the depth of its settled frames with later partners.

        Raises:
            PredictorError: a frame of the window was never tracked.
        """
        missing = [index for index in window.indices if index not in self._known]
        if missing:
            raise PredictorError(f"frames {missing} were not tracked; give each to track() first")
        gauge = self._known[window.indices[-1]].gauge_after
        gauge.odometry.adjust(window.settled_before)
        self._take_focal(gauge.odometry)
        views = self._views(gauge)
        for index in self._settled(window):
            self._settle(index, gauge, views)
        prediction = self._window_prediction(window, gauge)
        with self._lock:
            while next(iter(self._known)) < window.indices[0]:
                self._known.popitem(last=False)
        return prediction

    def tell_moving(self, index: int, moving: Tensor | None) -> bool:
        """Points on what moves hold no pose any more; see `Corrigible`."""
        known = self._known.get(index)
        if known is None:
            return False
        size = self._tracking_size
        mask = None if moving is None else image_grid.resize_mask(moving, size).numpy()
        return known.gauge_after.odometry.tell_moving(index, mask)

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
        self._tracking_size = image_grid.fit_long_side((height, width), image.tracking_max_side)
        self._dense = image_grid.fit_long_side(camera, image.dense_max_side)
        self._rays = Rays.of(self._dense)
        tracked = image_grid.resize_intrinsics(camera, self._tracking_size)
        sigma = UNKNOWN if self._source is IntrinsicsSource.ESTIMATED else 0.0
        pinhole = Pinhole(tracked.fx, tracked.fy, tracked.cx, tracked.cy, tracked.height, sigma)
        self._gauge = self._new_gauge(frame.index, 0, pinhole, ReadoutTime())

    def _new_gauge(
        self,
        index: int,
        number: int,
        camera: Pinhole,
        readout: ReadoutTime,
        told: ToldPoints | None = None,
    ) -> Gauge:
        config = self._config
        odometry = Odometry(config.odometry, config.window, camera, readout, told)
        return Gauge(number, index, odometry)

    def _tracked(
        self, frame: Frame, grey: Grey, flowing: Future[Fields] | None
    ) -> FramePrediction:
        gauge = after = self._gauge
        assert gauge is not None and after is not None
        tracked = self._advance(gauge.odometry, frame, grey)
        if tracked.T_cam_world is None:
            self._gauge = after = self._started_anew(gauge, frame, grey)
        depth = unknown(self._dense.size)
        known = Known(gauge, after, frame.stamp_ns, tracked, flowing, (), depth)
        with self._lock:
            self._known[frame.index] = known
            while len(self._known) > self._config.window.num_remembered:
                self._known.popitem(last=False)
        return self._frame_prediction(frame.index)

    def _advance(self, odometry: Odometry, frame: Frame, grey: Grey) -> Tracked:
        was_ready = odometry.ready
        tracked = odometry.track(frame.index, frame.stamp_ns, grey)
        if odometry.ready and not was_ready:
            self._take_focal(odometry)
        return tracked

    def _take_focal(self, odometry: Odometry) -> None:
        """The focal length as far as the odometry knows it, in the pixels of the input."""
        assert self._input is not None
        if self._source is IntrinsicsSource.GIVEN or not odometry.ready:
            return
        focal = odometry.shutter.camera.focal * self._input.width / self._tracking_size[1]
        self._input = replace(self._input, fx=focal, fy=focal)
        self._dense = image_grid.fit_long_side(self._input, self._config.image.dense_max_side)
        self._rays = Rays.of(self._dense)

    def _started_anew(self, lost: Gauge, frame: Frame, grey: Grey) -> Gauge:
        told, shutter = lost.odometry.told(frame.index), lost.odometry.shutter
        number = lost.number + 1
        gauge = self._new_gauge(frame.index, number, shutter.camera, shutter.readout, told)
        gauge.odometry.track(frame.index, frame.stamp_ns, grey)
        return gauge

    # ------------------------------------------------------------------ depth
    def _keep(self, index: int, known: Known) -> None:
        """Replace what is known of a frame, unless it was forgotten meanwhile."""
        with self._lock:
            if index in self._known:
                self._known[index] = known

    def _views(self, gauge: Gauge) -> dict[int, View]:
        """Poses that depth may rest on, and how the camera moved while an image was read.

        None before the odometry knows depth.
        """
        odometry = gauge.odometry
        if not odometry.knows_depth:
            return {}
        shutter = odometry.shutter
        with odometry.lock:
            seconds = shutter.readout.seconds
            return {
                frame: View(T, seconds * shutter.velocity(frame))
                for frame, T in odometry.poses.items()
            }

    def _arrival_depth(self, index: int, known: Known, views: Mapping[int, View]) -> InverseDepth:
        from_here = [field for field in known.fields if field.source == index]
        now = measured(from_here, views, self._rays, self._config.depth)
        return self._with_past(index, from_here, now, known.gauge, views)

    def _with_past(
        self,
        index: int,
        fields: list[FlowField],
        now: InverseDepth,
        gauge: Gauge,
        views: Mapping[int, View],
    ) -> InverseDepth:
        """Joined with the nearest partner's estimate, carried along the flow."""
        past = [field for field in fields if field.target < index]
        if not past or index not in views:
            return now
        field = max(past, key=lambda entry: entry.target)
        known = self._known.get(field.target)
        if known is None or known.gauge is not gauge or field.target not in views:
            return now
        T = views[field.target].T_cam_world @ rigid.inverse(views[index].T_cam_world)
        prior = carried(known.depth, field, T, self._rays, self._config.depth)
        return fused(now, prior, self._config.depth)

    def _settled(self, window: Window) -> list[int]:
        """Frames that this window makes final and that are not measured finally yet."""
        ready = [index for index in window.indices if index < window.settled_before]
        return [index for index in ready if not self._known[index].is_final]

    def _settle(self, index: int, gauge: Gauge, views: Mapping[int, View]) -> None:
        """Depth of a frame from past and later partners, with adjusted poses."""
        with self._lock:
            known = self._known[index]
            later = [field for entry in self._known.values() for field in entry.fields]
        estimate = known.depth
        if known.gauge is gauge and known.is_dense:
            fields = [field for field in later if field.source == index]
            now = measured(fields, views, self._rays, self._config.depth)
            estimate = self._with_past(index, fields, now, gauge, views)
        self._keep(index, replace(known, depth=estimate, is_final=True))

    # ------------------------------------------------------------------ what goes out
    def _state(self, index: int, known: Known) -> TrackingState:
        """TRACKING only if the recent baseline shows depth; standing and turning say so."""
        odometry, state = known.gauge.odometry, known.tracked.state
        if state is not TrackingState.TRACKING:
            return state
        with self._lock:
            recent = list(self._known)[-self._config.window.size :]
        baseline = relative_baseline(odometry, recent, index)
        enough = baseline > self._config.depth.min_baseline
        return TrackingState.TRACKING if enough else TrackingState.NO_PARALLAX

    def _frame_prediction(self, index: int) -> FramePrediction:
        known = self._known[index]
        T = known.tracked.T_cam_world
        if T is not None:
            T = known.gauge.odometry.poses[index]
        return FramePrediction(
            index=index,
            stamp_ns=known.stamp_ns,
            gauge=known.gauge.number,
            key_index=known.gauge.start,
            intrinsics=self._dense,
            intrinsics_source=self._source,
            T_key_cam=None if T is None else torch.from_numpy(rigid.inverse(T)),
            # One number each, seen as an image: `densify` fills them in.
            depth=torch.tensor(torch.nan).expand(self._dense.size),
            confidence=torch.tensor(0.0).expand(self._dense.size),
            flows=(),
            state=self._state(index, known),
            residual_px=self._on_dense_grid(known.tracked.residual_px),
            num_support=known.tracked.num_support,
            filled=torch.tensor(False).expand(self._dense.size),
            T_gauge_key=torch.eye(4, dtype=torch.float64),
            is_dense=False,
        )

    def _window_prediction(self, window: Window, gauge: Gauge) -> WindowPrediction:
        known = [self._known[index] for index in window.indices]
        with gauge.odometry.lock:
            poses = {} if gauge.odometry.is_refuted else dict(gauge.odometry.poses)
        here = [
            index in poses and entry.gauge is gauge
            for index, entry in zip(window.indices, known, strict=True)
        ]
        key = window.indices[here.index(True)] if any(here) else window.indices[-1]
        T_key = poses.get(key, np.eye(4))
        limit = self._config.depth.max_relative_sigma
        has_depth = [ok and entry.is_dense for ok, entry in zip(here, known, strict=True)]
        T = [
            T_key @ rigid.inverse(poses[index]) if ok else np.full((4, 4), np.nan)
            for index, ok in zip(window.indices, here, strict=True)
        ]
        T_key_cam = torch.from_numpy(np.stack(T))
        points, confidence = dense_maps(known, has_depth, T_key_cam, self._rays, limit)
        ids, positions = gauge.odometry.landmarks()
        positions = positions @ T_key[:3, :3].T + T_key[:3, 3]
        return WindowPrediction(
            indices=window.indices,
            stamps_ns=tuple(entry.stamp_ns for entry in known),
            gauge=gauge.number,
            key_index=key,
            intrinsics=self._dense,
            intrinsics_source=self._source,
            points_key=points,
            confidence=confidence,
            filled=torch.tensor(False).expand(confidence.shape),
            T_key_cam=T_key_cam,
            pose_residual_px=torch.tensor(
                [self._on_dense_grid(entry.tracked.residual_px) for entry in known]
            ),
            pose_support=torch.tensor([entry.tracked.num_support for entry in known]),
            states=tuple(
                entry.tracked.state if ok else TrackingState.LOST
                for entry, ok in zip(known, here, strict=True)
            ),
            flows=flows_inside(window, known),
            landmark_ids=torch.from_numpy(ids),
            landmarks_key=torch.from_numpy(positions),
            tracks=own_tracks(gauge.odometry, window, self._tracking_size),
            T_gauge_key=torch.from_numpy(rigid.inverse(T_key)),
        )

    def _on_dense_grid(self, px: float) -> float:
        return px * self._dense.width / self._tracking_size[1]

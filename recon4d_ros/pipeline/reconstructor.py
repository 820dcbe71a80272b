"""The order of the rooms: a frame in, its provisional result and earlier final ones out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from recon4d_ros.alignment.aligner import Aligner
from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    AlignedWindow,
    DynamicMask,
    EventKind,
    Frame,
    FramePrediction,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackedFrame,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.mapping.static_map import StaticMap
from recon4d_ros.motion.segmentation import Segmenter
from recon4d_ros.pipeline import frame_results
from recon4d_ros.pipeline.timing import Stopwatch
from recon4d_ros.pipeline.window import SlidingWindow
from recon4d_ros.predictors.interface import Corrigible, Described, PointmapPredictor, PointTracker
from recon4d_ros.refinement.refiner import Refiner

OnPose = Callable[[TrackedFrame], None]
OnProvisional = Callable[[Reconstruction], None]
OnWindow = Callable[[tuple[Reconstruction, ...], tuple[MapEvent, ...]], None]


class Reconstructor:
    """Live reconstruction of one stream. Everything it keeps is bounded by parameters."""

    def __init__(
        self, config: Config, predictor: PointmapPredictor, tracker: PointTracker | None = None
    ) -> None:
        """Join the rooms; `factory.build_reconstructor` chooses predictor and tracker.

        Without a tracker, points are those that the predictor tracks itself.
        """
        self._config = config
        self._predictor = predictor
        self._tracker = tracker
        self._window = SlidingWindow(config.window)
        self._segmenter = Segmenter(config.motion)
        self._aligner = Aligner(config.alignment)
        self._refiner = Refiner(config.refinement)
        self._map = StaticMap(config.map)
        self._masks: dict[int, DynamicMask] = {}
        self._is_dense: dict[int, bool] = {}
        self._num_final = 0
        self._num_refuted = 0
        self._last_stamp_ns = 0

    def step(
        self, frame: Frame, on_provisional: OnProvisional | None = None, *, dense: bool = True
    ) -> StepOutput:
        """Advance by one frame.

        Args:
            frame: the next one; indices run on from 0 after a reset.
            on_provisional: called as soon as the frame's own result exists, before the window's
                heavier work.
            dense: False when the next frame is already waiting: a pose, but neither depth nor
                mask for this frame.

        Returns:
            The frame's provisional result, the frames that became final, and discontinuities.

        Raises:
            Recon4DError: the frame cannot be used.
        """
        tracked = self.track(frame, dense=dense)
        output = self.map(tracked, on_provisional)
        return replace(output, events=(*tracked.events, *output.events))

    def track(
        self,
        frame: Frame,
        on_pose: OnPose | None = None,
        *,
        dense: bool = True,
        exclusive: AbstractContextManager[object] | None = None,
    ) -> TrackedFrame:
        """The first half of a step: the pose of a frame.

        Args:
            frame: the next one.
            on_pose: called with what is returned.
            dense: as of `step`.
            exclusive: held while the frame is placed in the map and until `on_pose` has returned;
                see `map`.

        Raises:
            Recon4DError: the frame cannot be used.
        """
        watch, num_refuted = Stopwatch(), self._num_refuted
        with watch.stage("track"):
            prediction = self._predictor.track(frame, dense)
        with exclusive or nullcontext():
            if self._num_refuted > num_refuted:  # meanwhile, and this pose with the others
                prediction = replace(prediction, T_key_cam=None, state=TrackingState.LOST)
            tracked = self._located(frame, prediction, dense, watch)
            if on_pose is not None:
                on_pose(tracked)
        return tracked

    def map(
        self,
        tracked: TrackedFrame,
        on_provisional: OnProvisional | None = None,
        on_window: OnWindow | None = None,
        exclusive: AbstractContextManager[object] | None = None,
    ) -> StepOutput:
        """The second half: depth and mask of a tracked frame, and the window that it completes.

        It is called once for every frame, in their order. Where `maps_aside` says so, another
        thread may track the next frames meanwhile.

        Args:
            tracked: what `track` gave.
            on_provisional: as of `step`.
            on_window: called with the final results and the discontinuities of a window.
            exclusive: held while the map may move and until `on_window` has returned. Whoever
                tracks meanwhile gives the same to `track`.

        Raises:
            Recon4DError: a room could not do its work.
        """
        watch = Stopwatch(tracked.stage_seconds)
        provisional = self._developed(tracked, watch)
        if on_provisional is not None:
            on_provisional(provisional)
        if tracked.window is None:
            return StepOutput(provisional, (), (), watch.seconds)
        aligned, final = self._refined_window(tracked.window, watch)
        with watch.stage("align"), exclusive or nullcontext():
            final, events = self._committed(aligned, tracked.window, final)
            if on_window is not None:
                on_window(final, events)
        self._take_into_map(final, events, watch)
        self._num_final = tracked.window.settled_before
        return StepOutput(provisional, final, events, watch.seconds)

    def finish(self) -> tuple[tuple[Reconstruction, ...], tuple[MapEvent, ...]]:
        """At the end of a finite stream: the frames still not final, and discontinuities."""
        frames = self._window.frames
        if not frames or self._num_final > frames[-1].index:
            return (), ()
        window = Window(frames, frames[-1].index + 1)
        watch = Stopwatch()
        aligned, final = self._refined_window(window, watch)
        # Nobody would hear of a correction any more.
        final, events = self._committed(aligned, window, final, close_loops=False)
        self._take_into_map(final, events, watch)
        self._num_final = window.settled_before
        return final, events

    def static_map(self) -> PointCloud:
        """The static points of the present submap."""
        return self._map.cloud(self._config.map.min_observations)

    def reset(self) -> MapEvent:
        """Forget everything; the next frame has index 0."""
        self._predictor.reset()
        if self._tracker is not None:
            self._tracker.reset()
        self._window.reset()
        self._segmenter.reset()
        self._aligner.reset()
        self._refiner.reset()
        self._map.reset()
        self._masks, self._is_dense = {}, {}
        self._num_final = 0
        return MapEvent(EventKind.RESET, self._last_stamp_ns, 0, "started anew")

    @property
    def num_keyframes(self) -> int:
        """Keyframes stored."""
        return self._aligner.num_keyframes

    @property
    def description(self) -> Mapping[str, str]:
        """What works inside, for the diagnostics."""
        predictor = self._predictor
        facts = predictor.description if isinstance(predictor, Described) else {}
        tracker = "the predictor's" if self._tracker is None else self._tracker.name
        return {"predictor": predictor.name, "device": "cpu", "tracker": tracker, **facts}

    @property
    def maps_aside(self) -> bool:
        """Whether `map` may run while the next frames are tracked."""
        return self._predictor.maps_aside

    def _located(
        self, frame: Frame, prediction: FramePrediction, dense: bool, watch: Stopwatch
    ) -> TrackedFrame:
        """A frame that the predictor has tracked, in the map."""
        with watch.stage("locate"):
            located = self._aligner.locate(frame, prediction)
        self._last_stamp_ns = frame.stamp_ns
        return TrackedFrame(
            pose=frame_results.posed(frame, prediction, located),
            prediction=prediction,
            scale=located.scale,
            dense=dense,
            window=self._window.push(frame),
            events=located.events,
            stage_seconds=watch.seconds,
        )

    def _developed(self, tracked: TrackedFrame, watch: Stopwatch) -> Reconstruction:
        """The provisional result of a frame, with depth and mask if they are wanted."""
        self._keep_mask(frame_results.undecided(tracked.prediction), False)
        if not tracked.dense:
            return tracked.pose
        with watch.stage("densify"):
            prediction = self._predictor.densify(tracked.prediction)
        with watch.stage("segment"):
            dynamic = self._segmenter.segment_frame(prediction, tracked.pose.frame)
        self._keep_mask(dynamic, True)
        return frame_results.provisional(tracked, prediction, dynamic)

    def _refined(
        self, window: Window, aligned: AlignedWindow, settled: list[int]
    ) -> tuple[Reconstruction, ...]:
        """Final frames, smoothed with those before and after them."""
        later = [index for index in window.indices if settled and index > settled[-1]]
        later = later[: self._config.refinement.radius]
        if not any(self._is_dense[index] for index in later):
            later = []  # without depth they say nothing
        parts = [
            [
                (
                    frame_results.final(window, aligned, index, self._is_dense[index]),
                    frame_results.tracks(aligned.prediction, index),
                )
                for index in indices
            ]
            for indices in (settled, later)
        ]
        return self._refiner.refine(*parts)

    def _window_mask(
        self, window: Window, prediction: WindowPrediction, settled: list[int]
    ) -> DynamicMask:
        """Masks of a window: final ones of what it settles, of the others the newest known."""
        settled = [index for index in settled if self._is_dense[index]]
        if settled:
            self._keep_mask(self._segmenter.segment(prediction, settled, window.frames), True)
        parts = [self._masks[index] for index in prediction.indices]
        return DynamicMask(
            prediction.indices,
            torch.cat([part.mask for part in parts]),
            torch.cat([part.evidence for part in parts]),
            torch.cat([part.decided for part in parts]),
        )

    def _keep_mask(self, dynamic: DynamicMask, dense: bool) -> None:
        for row, index in enumerate(dynamic.indices):
            here = slice(row, row + 1)
            self._is_dense[index] = dense
            self._masks[index] = DynamicMask(
                (index,), dynamic.mask[here], dynamic.evidence[here], dynamic.decided[here]
            )
        while len(self._masks) > self._config.window.size:
            oldest = min(self._masks)
            del self._masks[oldest], self._is_dense[oldest]

    def _refined_window(
        self, window: Window, watch: Stopwatch
    ) -> tuple[AlignedWindow, tuple[Reconstruction, ...]]:
        """Predict, segment, align and refine a window; its settled frames."""
        settled = [i for i in window.indices if self._num_final <= i < window.settled_before]
        with watch.stage("predict"):
            prediction = self._predictor.predict(window)
        if self._tracker is not None:
            with watch.stage("points"):
                prediction = replace(prediction, tracks=self._tracker.track(window))
        with watch.stage("segment"):
            dynamic = self._window_mask(window, prediction, settled)
        with watch.stage("align"):
            aligned = self._aligner.align(window, prediction, dynamic)
        with watch.stage("refine"):
            return aligned, self._refined(window, aligned, settled)

    def _committed(
        self,
        aligned: AlignedWindow,
        window: Window,
        final: tuple[Reconstruction, ...],
        close_loops: bool = True,
    ) -> tuple[tuple[Reconstruction, ...], tuple[MapEvent, ...]]:
        """Final frames and discontinuities of a window, unless its poses rest on what moves."""
        if not self._is_refuted(final):
            return final, self._aligner.commit(aligned, window, close_loops=close_loops)
        self._map.reset()
        self._num_refuted += 1
        event = self._aligner.abandon(window.frames[-1])
        return tuple(frame_results.refuted(result) for result in final), (event,)

    def _is_refuted(self, final: tuple[Reconstruction, ...]) -> bool:
        """Tell the predictor what moves in the newest frame of which that is settled."""
        dense = [result for result in final if result.is_dense]
        if not dense or not isinstance(self._predictor, Corrigible):
            return False
        newest = dense[-1]
        moving = newest.dynamic_mask if self._segmenter.overrules_majority else None
        return self._predictor.tell_moving(newest.frame.index, moving)

    def _take_into_map(
        self,
        final: tuple[Reconstruction, ...],
        events: tuple[MapEvent, ...],
        watch: Stopwatch,
    ) -> None:
        with watch.stage("map"):
            for reconstruction in final:
                self._map.insert(reconstruction)
            for event in events:
                if event.correction is not None:
                    self._map.correct(event.correction)

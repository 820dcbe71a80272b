"""The aligner: places frames and windows of a predictor in one map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.alignment import evidence, placement, selection, succession
from recon4d_ros.alignment.evidence import Pairs
from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore
from recon4d_ros.alignment.map_correction import Closure, LoopMemory, close_loop
from recon4d_ros.alignment.placement import Placement, scaled
from recon4d_ros.alignment.relocalisation import Relocation, depth_scale, relocalise
from recon4d_ros.alignment.state import Landmarks, MapState
from recon4d_ros.alignment.window_poses import window_poses
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import (
    AlignedWindow,
    DynamicMask,
    EventKind,
    Frame,
    FramePrediction,
    MapEvent,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3

# Relocalised frames a new gauge must rest on before its own poses are trusted.
_MIN_RELOCATIONS = 3
# Relocalised frames that are remembered; the largest overlap of two windows needs no more.
_MAX_RELOCATIONS = 16


@dataclass(frozen=True, eq=False)
class Located:
    """Where a frame lies in the map, on its arrival.

    Attributes:
        T_map_cam: (4, 4) float64, None when there is no pose to trust.
        scale: map units per predictor unit of this frame's depth; NaN when not known.
        submap: the pose lies in.
        state: what the pose rests on.
        events: discontinuities this frame brings.
    """

    T_map_cam: Tensor | None
    scale: float
    submap: int
    state: TrackingState
    events: tuple[MapEvent, ...] = ()


@dataclass(frozen=True, eq=False)
class _Search:
    """The small memory of `locate`: is the camera lost, and where was it found meanwhile.

    Attributes:
        lost: the last frame had no pose.
        failures: frames since the last one with a pose.
        relocations: frames found by keyframes, the latest few.
        first: T_ref_cam of the first frame while the map is still empty, and its reference.
    """

    lost: bool = False
    failures: int = 0
    relocations: tuple[Relocation, ...] = ()
    first: tuple[Tensor, tuple[int, int]] | None = None


class Aligner:
    """Joins what a predictor says, window by window, to one map.

    `align` changes nothing; `commit` takes an aligned window into the map. Within one gauge of
    the predictor the join is one similarity that is held until the shared points clearly speak
    against it, so alignment adds no drift of its own. See docs/adr/0002-alignment.md.
    """

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self.reset()

    def reset(self, first_submap: int = 0) -> None:
        """Forget everything, as if newly made; the map begins with this submap."""
        self._first_submap = first_submap
        self._state: MapState | None = None
        self._store = KeyframeStore.empty(self._config.max_keyframes)
        self._loops = LoopMemory()
        self._search = _Search()

    @property
    def num_keyframes(self) -> int:
        """Stored keyframes, over all submaps."""
        return len(self._store.keyframes)

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """The stored keyframes, oldest first."""
        return self._store.keyframes

    @property
    def submap(self) -> int:
        """Number of the present submap."""
        return self._first_submap if self._state is None else self._state.submap

    @property
    def memory_bytes(self) -> int:
        """Memory of everything that is kept from window to window."""
        stored = self._store.num_bytes + self._loops.num_bytes
        if self._state is None:
            return stored
        marks, sample = self._state.landmarks, self._state.sample
        tensors = [marks.ids, marks.positions, marks.num_windows, marks.last_window]
        tensors += [sample.points_map, sample.weight, *self._state.poses.values()]
        return stored + sum(t.numel() * t.element_size() for t in tensors)

    # ---------------------------------------------------------------- a frame on its arrival
    def locate(self, frame: Frame, prediction: FramePrediction) -> Located:
        """Provisional pose of one frame.

        In a gauge that is joined to the map the predictor's pose is moved there. Otherwise the
        frame is sought by the keyframes, and without success it has no pose.

        Raises:
            AlignmentError: the prediction is of another frame.
        """
        if prediction.index != frame.index:
            raise AlignmentError(
                f"the prediction is of frame {prediction.index}, the image of {frame.index}; "
                "give the prediction of this very frame"
            )
        T_map_cam = self._tracked_pose(prediction)
        if T_map_cam is not None:
            scale = 1.0 if self._state is None else self._state.join.scale
            found = Located(T_map_cam, scale, self.submap, prediction.state)
        else:
            found = self._sought(frame, prediction)
        return self._with_events(found, frame)

    def _tracked_pose(self, prediction: FramePrediction) -> Tensor | None:
        T_key_cam = prediction.T_key_cam
        if T_key_cam is None or prediction.state is TrackingState.LOST:
            return None
        if self._state is None:
            return self._pose_from_first(prediction, T_key_cam)
        join = self._state.join
        if prediction.gauge != join.gauge:
            return None
        if join.T_map_gauge is not None and prediction.T_gauge_key is not None:
            return join.T_map_gauge @ scaled(prediction.T_gauge_key @ T_key_cam, join.scale)
        T_map_key = self._state.poses.get(prediction.key_index)
        return None if T_map_key is None else T_map_key @ scaled(T_key_cam, join.scale)

    def _pose_from_first(self, prediction: FramePrediction, T_key_cam: Tensor) -> Tensor | None:
        """Before the first window the first posed frame is the origin of the map."""
        reference = (prediction.gauge, prediction.key_index)
        if prediction.T_gauge_key is not None:
            T_key_cam, reference = prediction.T_gauge_key @ T_key_cam, (prediction.gauge, -1)
        if self._search.first is None:
            self._search = replace(self._search, first=(T_key_cam, reference))
        assert self._search.first is not None
        T_first, first_reference = self._search.first
        return se3.inverse(T_first) @ T_key_cam if reference == first_reference else None

    def _sought(self, frame: Frame, prediction: FramePrediction) -> Located:
        found = relocalise(frame, prediction.intrinsics, self._store, self._config)
        if found is None:
            return Located(None, torch.nan, self.submap, TrackingState.LOST)
        kept = (*self._search.relocations, found)[-_MAX_RELOCATIONS:]
        self._search = replace(self._search, relocations=kept)
        scale = depth_scale(prediction.depth, found)
        return Located(found.T_map_cam, scale, found.submap, TrackingState.TRACKING)

    def _with_events(self, found: Located, frame: Frame) -> Located:
        was_lost, is_lost = self._search.lost, found.T_map_cam is None
        failures = self._search.failures + 1 if is_lost else 0
        self._search = replace(self._search, lost=is_lost, failures=failures)
        if was_lost == is_lost or (was_lost and self._state is None):
            return found  # what begins anew was not found again
        kind = EventKind.LOST if is_lost else EventKind.RELOCALISED
        text = "no pose can be trusted" if is_lost else "the camera was found in the map again"
        event = MapEvent(kind, frame.stamp_ns, found.submap, f"frame {frame.index}: {text}")
        return replace(found, events=(event,))

    # ---------------------------------------------------------------- a window
    def align(
        self, window: Window, prediction: WindowPrediction, dynamic: DynamicMask
    ) -> AlignedWindow:
        """Place a window in the map by one similarity; nothing of the aligner changes.

        Raises:
            AlignmentError: the prediction is of another window.
        """
        if prediction.indices != window.indices:
            raise AlignmentError(
                f"the prediction is of frames {prediction.indices}, the window holds "
                f"{window.indices}; give the prediction of this very window"
            )
        step = evidence.sample_step(prediction.intrinsics.size)
        samples = evidence.static_samples(prediction, dynamic, step)
        T_key_cam = window_poses(prediction, samples, step)
        submap, placed = self._place(prediction, T_key_cam, samples)
        if placed is None:
            return self._unplaced(prediction, dynamic)
        aligned = AlignedWindow(
            prediction=prediction,
            dynamic=dynamic,
            T_map_cam=self._with_earlier_poses(
                placed.T_map_key @ scaled(T_key_cam, placed.scale), prediction.indices, submap
            ),
            scale=placed.scale,
            submap=submap,
            is_keyframe=torch.zeros(len(window.frames), dtype=torch.bool),
            residual=placed.residual,
            num_shared=placed.num_shared,
        )
        newest = -1 if self._state is None else self._state.last_index
        last = self._store.last(submap)
        is_keyframe = selection.worth_keeping(window, aligned, last, newest, self._config)
        return replace(aligned, is_keyframe=is_keyframe)

    def _place(
        self, prediction: WindowPrediction, T_key_cam: Tensor, samples: tuple[Tensor, Tensor]
    ) -> tuple[int, Placement | None]:
        """Submap and place of a window; no place while nothing joins it to the map."""
        state = self._state
        if not bool(T_key_cam[:, 0, 0].isfinite().any()):
            return self.submap, None
        if state is None:
            return self.submap, placement.opening(T_key_cam)
        placed: Placement | None = None
        submap = state.submap
        if prediction.gauge == state.join.gauge:
            placed = self._continued(state, prediction, T_key_cam, samples)
        if placed is None:
            submap, placed = self._rejoined(state, prediction, T_key_cam, samples)
        if placed is None and self._is_given_up(state, prediction.gauge):
            submap, placed = self._next_submap(), placement.opening(T_key_cam)
        return submap, placed

    def _is_given_up(self, state: MapState, gauge: int) -> bool:
        """Sought long enough, or with no keyframe to find it by: lost before depth was known."""
        hopeless = gauge != state.join.gauge and not self._store.keyframes
        return hopeless or self._search.failures >= self._config.relocalisation_frames

    def _continued(
        self,
        state: MapState,
        prediction: WindowPrediction,
        T_key_cam: Tensor,
        samples: tuple[Tensor, Tensor],
    ) -> Placement | None:
        pairs = evidence.gather(
            prediction, T_key_cam, samples, state.sample, state.poses, state.landmarks
        )
        held = placement.held(state, prediction, T_key_cam)
        if held is None:
            return placement.fitted(pairs)
        named = state.join.T_map_gauge is not None and prediction.T_gauge_key is not None
        return placement.measured(held, pairs) if named else placement.hold(held, pairs)

    def _rejoined(
        self,
        state: MapState,
        prediction: WindowPrediction,
        T_key_cam: Tensor,
        samples: tuple[Tensor, Tensor],
    ) -> tuple[int, Placement | None]:
        """Join a new gauge by relocalised frames of the window and by frames posed before."""
        known = T_key_cam[:, 0, 0].isfinite().tolist()
        posed = {i for i, has_pose in zip(prediction.indices, known, strict=True) if has_pose}
        found = tuple(entry for entry in self._search.relocations if entry.index in posed)
        submap = found[-1].submap if found else state.submap
        found = tuple(entry for entry in found if entry.submap == submap)
        parts: list[Pairs] = []
        if len(found) >= _MIN_RELOCATIONS:
            parts.append(evidence.relocated_pairs(prediction, found))
        if submap == state.submap:
            before = {i: T for i, T in state.poses.items() if i in posed}
            # Landmark ids of two gauges have nothing in common.
            parts.append(
                evidence.gather(prediction, T_key_cam, samples, state.sample, before, Landmarks())
            )
        return submap, placement.fitted(evidence.joined(parts)) if parts else None

    def _with_earlier_poses(
        self, T_map_cam: Tensor, indices: tuple[int, ...], submap: int
    ) -> Tensor:
        """Frames that this window does not pose keep the pose that an earlier one gave them."""
        if self._state is None or self._state.submap != submap:
            return T_map_cam
        poses = [
            T if bool(T.isfinite().all()) else self._state.poses.get(index, T)
            for index, T in zip(indices, T_map_cam, strict=True)
        ]
        return torch.stack(poses)

    def _next_submap(self) -> int:
        return self._highest_submap() + 1

    def _highest_submap(self) -> int:
        return max([self.submap, *(keyframe.submap for keyframe in self._store.keyframes)])

    def _unplaced(self, prediction: WindowPrediction, dynamic: DynamicMask) -> AlignedWindow:
        """A window outside the map: only frames posed or found before have a pose, no scale."""
        unknown = torch.full((len(prediction.indices), 4, 4), torch.nan, dtype=torch.float64)
        T_map_cam = self._with_earlier_poses(unknown, prediction.indices, self.submap)
        for found in self._search.relocations:
            if found.index in prediction.indices and found.submap == self.submap:
                T_map_cam[prediction.indices.index(found.index)] = found.T_map_cam
        return AlignedWindow(
            prediction=prediction,
            dynamic=dynamic,
            T_map_cam=T_map_cam,
            scale=torch.nan,
            submap=self.submap,
            is_keyframe=torch.zeros(len(prediction.indices), dtype=torch.bool),
            residual=torch.nan,
            num_shared=0,
        )

    def abandon(self, frame: Frame) -> MapEvent:
        """Forget a map whose poses turned out wrong; what comes begins another submap."""
        submap = self.submap
        self.reset(self._highest_submap() + 1)
        text = "the poses of this submap rested on something that moves; another one begins"
        message = f"frame {frame.index}: {text}"
        return MapEvent(EventKind.REFUTED, frame.stamp_ns, submap, message)

    # ---------------------------------------------------------------- taking it into the map
    def commit(
        self, aligned: AlignedWindow, window: Window, *, close_loops: bool = True
    ) -> tuple[MapEvent, ...]:
        """Take an aligned window into the map; the discontinuities this brings.

        A map correction comes last and moves what was handed out before, this window included.

        Args:
            aligned: the window in the map.
            window: its frames.
            close_loops: False where nobody is left to hear of a correction.

        Raises:
            AlignmentError: the aligned window is of other frames.
        """
        if aligned.prediction.indices != window.indices:
            raise AlignmentError(
                f"the aligned window is of frames {aligned.prediction.indices}, the window holds "
                f"{window.indices}; commit each window with its own alignment"
            )
        if not aligned.scale > 0:  # not joined to the map: there is nothing to take in
            return ()
        before = self._state
        state = succession.successor(before, aligned, self._config.max_landmarks)
        store = self._store
        made = selection.new_keyframes(aligned, window, self._config.keyframe_features)
        for keyframe in made:
            store = store.added(keyframe)
        events = succession.events(before, state, aligned, window)
        closed = Closure(self._loops, state, store)
        if made and close_loops and self._config.loop_closure:
            closed = close_loop(self._loops, state, store, window, self._config)
        opened = before is not None and state.submap > self._highest_submap()
        rejoined = before is None or before.join.gauge != state.join.gauge
        self._state, self._store, self._loops = closed.state, closed.store, closed.memory
        if opened or rejoined:
            # A new submap is no place that was found again, so it ends the search silently.
            self._search = _Search(lost=self._search.lost and not opened)
        if closed.event is None:
            return events
        # What was found before lies where the map was; the next frames are found where it is.
        self._search = replace(self._search, relocations=())
        return (*events, closed.event)

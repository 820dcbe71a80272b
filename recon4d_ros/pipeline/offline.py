"""A whole clip at once, as C4D has it: all pairs of a window, aligned together, then smoothed.

Source: C4D (ICCV 2025), sections 4 and 5; long clips window by window as in MonST3R (arXiv
2410.03825): windows overlap, the frames of the overlap keep their poses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from recon4d_ros.alignment import PairAlignment
from recon4d_ros.alignment.pair_store import Graph, PairStore
from recon4d_ros.alignment.window_join import ClipWindow, joined
from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    Frame,
    Intrinsics,
    IntrinsicsSource,
    MapEvent,
    PairPointmaps,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackingState,
    Tracks,
)
from recon4d_ros.errors import FrameError, Recon4DError
from recon4d_ros.geometry.image_grid import resize_intrinsics
from recon4d_ros.mapping.static_map import StaticMap
from recon4d_ros.pipeline.timing import Stopwatch
from recon4d_ros.pipeline.track_log import TrackLog
from recon4d_ros.predictors.interface import PointTracker
from recon4d_ros.refinement.refiner import Refiner


class PairNetwork(Protocol):
    """Says how two frames lie to each other; knows nothing of clips or alignment."""

    def pair(self, first: Frame, second: Frame) -> PairPointmaps:
        """Pointmaps of two frames, which may be the same, in the camera of the first."""
        ...

    def reset(self) -> None:
        """Forget all frames; their numbers may begin anew."""
        ...


class OfflineReconstructor:
    """Reconstructs a clip window by window; the pairs of one window are all it holds.

    Frames are paired with earlier ones as they come, so that the network's time is spread. A full
    window is aligned, joined to the one before it, and hands out the frames up to the middle of
    what it shares with the next one.

    Attributes:
        notes: what a user must know of the alignments, in order.
    """

    def __init__(self, config: Config, network: PairNetwork, tracker: PointTracker) -> None:
        """Join the parts; `factory.build_offline_reconstructor` chooses them."""
        self._config = config
        self._network = network
        self._graph = Graph(config.offline.frame_offsets, config.offline.window)
        self._store = PairStore(max(1, self._graph.num_pairs))
        self._tracks = TrackLog(config.window, tracker)
        self._refiner = Refiner(config.refinement)
        self._map = StaticMap(config.map)
        self._frames: deque[Frame] = deque(maxlen=config.offline.window)
        self._before: ClipWindow | None = None
        self._num_final = 0
        self._submap = 0
        self.notes: list[str] = []

    @property
    def num_pairs(self) -> int:
        """Pairs held."""
        return len(self._store)

    def step(
        self, frame: Frame, on_provisional: Callable[[Reconstruction], None] | None = None
    ) -> StepOutput:
        """Pair one frame with those before it, and align a window when it is full.

        Args:
            frame: the next one; indices run on from 0.
            on_provisional: never called: nothing is known of a frame before its window is full.

        Returns:
            A provisional result without pose and depth, and the frames that became final.

        Raises:
            FrameError: the frame has another size or camera than those before.
            AlignmentError: the window cannot be aligned or joined. Its frames that are not final
                are then given up, and the next frame begins another submap.
        """
        self._check(frame)
        watch = Stopwatch()
        with watch.stage("predict"):
            self._take(frame)
        with watch.stage("track"):
            self._tracks.push(frame)
        final: tuple[Reconstruction, ...] = ()
        if self._is_due():
            until = frame.index + 1 - self._config.offline.num_overlapped // 2
            final = self._completed(until, watch)
        return StepOutput(_pending(frame, self._submap), final, (), watch.seconds)

    def finish(self) -> tuple[tuple[Reconstruction, ...], tuple[MapEvent, ...]]:
        """At the end of the clip: the frames that are not final yet, and no discontinuity.

        Raises:
            AlignmentError: as `step`.
        """
        if not self._frames or self._num_final > self._frames[-1].index:
            return (), ()
        if not len(self._store):  # a single frame
            self._store.put(self._network.pair(self._frames[-1], self._frames[-1]))
        return self._completed(self._frames[-1].index + 1, Stopwatch()), ()

    def static_map(self) -> PointCloud:
        """The static points of the present submap."""
        return self._map.cloud(self._config.map.min_observations)

    # ------------------------------------------------------------------ one frame
    def _check(self, frame: Frame) -> None:
        if not self._frames:
            return
        last = self._frames[-1]
        if (frame.size, frame.intrinsics) != (last.size, last.intrinsics):
            raise FrameError(
                f"frame {frame.index} is {frame.size} (height, width) with {frame.intrinsics}, "
                f"those before {last.size} with {last.intrinsics}; a clip has one camera"
            )

    def _take(self, frame: Frame) -> None:
        """Hold a frame and its pairs, and let go of the oldest one's."""
        self._frames.append(frame)
        first = self._frames[0].index
        self._store.forget_before(first)
        for index in self._graph.earlier(frame.index, first):
            other = self._frames[index - first]
            self._store.put(self._network.pair(other, frame))
            self._store.put(self._network.pair(frame, other))

    def _is_due(self) -> bool:
        """Whether the frames held share no more with the window before than they have to."""
        settings = self._config.offline
        if len(self._frames) < settings.window:
            return False
        shared = 0 if self._before is None else self._before.end - self._frames[0].index
        return self._before is None or shared <= settings.num_overlapped

    # ------------------------------------------------------------------ one window
    def _completed(self, until: int, watch: Stopwatch) -> tuple[Reconstruction, ...]:
        """Align what is held, and hand out the frames before `until`."""
        try:
            with watch.stage("align"):
                window = self._aligned()
        except Recon4DError:
            self._give_up()
            raise
        with watch.stage("refine"):
            final = self._refined(window, until)
        with watch.stage("map"):
            for reconstruction in final:
                self._map.insert(reconstruction)
        self._before = window
        self._num_final = until
        self._tracks.forget_before(until)
        return final

    def _aligned(self) -> ClipWindow:
        """The frames held in the map; as they are if nothing came since the last window."""
        before, first = self._before, self._frames[0].index
        if before is not None and before.end == self._frames[-1].index + 1:
            return before
        if before is not None:
            camera: Intrinsics | None = before.intrinsics
        else:
            camera = _camera(self._frames[0], self._store.size)
        found = self._store.aligned(first, camera, self._config)
        self._note(found)
        window = ClipWindow(
            first, found.T_world_cam, found.depth, found.dynamic_mask, found.intrinsics
        )
        return window if before is None else joined(before, window)

    def _note(self, found: PairAlignment) -> None:
        first, last = self._frames[0].index, self._frames[-1].index
        self.notes += [f"frames {first} to {last}: {note}" for note in found.report.notes]

    def _give_up(self) -> None:
        """Forget the window, so that one bad place does not spoil all that follows."""
        self._num_final = self._frames[-1].index + 1
        self._submap += 1
        self._before = None
        self._frames.clear()
        self._store.reset()
        self._network.reset()
        self._tracks.reset()

    def _refined(self, window: ClipWindow, until: int) -> tuple[Reconstruction, ...]:
        """Frames up to `until`, smoothed with those before and after them."""
        ahead = min(window.end, until + self._config.refinement.radius)
        settled, later = range(self._num_final, until), range(until, ahead)
        return self._refiner.refine(
            [self._tracked(window, index) for index in settled],
            [self._tracked(window, index) for index in later],
        )

    def _tracked(self, window: ClipWindow, index: int) -> tuple[Reconstruction, Tracks | None]:
        return self._final(window, index), self._tracks.of(index)

    def _final(self, window: ClipWindow, index: int) -> Reconstruction:
        row = index - window.first
        frame, depth = self._frames[row], window.depth[row]
        known, moving = depth.isfinite(), window.dynamic_mask[row]
        confidence = self._store.confidence(index)
        given = frame.intrinsics is not None
        return Reconstruction(
            frame=frame,
            is_final=True,
            T_map_cam=window.T_map_cam[row],
            depth=depth,
            confidence=torch.where(known & confidence.isfinite(), confidence, 0.0),
            dynamic_mask=moving,
            filled=torch.zeros_like(moving),
            intrinsics=window.intrinsics,
            intrinsics_source=IntrinsicsSource.GIVEN if given else IntrinsicsSource.ESTIMATED,
            state=TrackingState.TRACKING,
            submap=self._submap,
            scale_known=False,
            residual_px=torch.nan,
            num_support=min(self._config.offline.samples, int((known & ~moving).sum())),
        )


def _camera(frame: Frame, size: tuple[int, int]) -> Intrinsics | None:
    """The given camera on the network's grid; None when it must be estimated."""
    return None if frame.intrinsics is None else resize_intrinsics(frame.intrinsics, size)


def _pending(frame: Frame, submap: int) -> Reconstruction:
    """Nothing is known of a frame on its arrival."""
    unknown: Tensor = torch.full(frame.size, torch.nan)
    nowhere = torch.zeros(frame.size, dtype=torch.bool)
    height, width = frame.size
    camera = frame.intrinsics or Intrinsics(
        torch.nan, torch.nan, (width - 1) / 2, (height - 1) / 2, width, height
    )
    return Reconstruction(
        frame=frame,
        is_final=False,
        T_map_cam=None,
        depth=unknown,
        confidence=torch.zeros(frame.size),
        dynamic_mask=nowhere,
        filled=nowhere,
        intrinsics=camera,
        intrinsics_source=IntrinsicsSource.ESTIMATED,
        state=TrackingState.INITIALISING,
        submap=submap,
        scale_known=False,
        residual_px=torch.nan,
        num_support=0,
        is_dense=False,
    )

"""What the workers do with an image: admit, track, map, publish, report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from recon4d_ros.datatypes import (
    EventKind,
    Frame,
    Intrinsics,
    IntrinsicsSource,
    MapCorrection,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackedFrame,
    TrackingState,
)
from recon4d_ros.errors import FrameError, OutputError
from recon4d_ros.predictors.interface import Described
from recon4d_ros.ros.events import EventLog, NodeEvent
from recon4d_ros.ros.intake import Admitted, Intake
from recon4d_ros.ros.publishers import Outputs
from recon4d_ros.ros.statistics import Statistics
from recon4d_ros.storage.messages import stamp_ns
from recon4d_ros.storage.ply import write_ply


class Core(Protocol):
    """The reconstruction as the node sees it; see `Reconstructor`."""

    @property
    def maps_aside(self) -> bool:
        """Whether `map` may run while the next frames are tracked."""
        ...

    def track(
        self,
        frame: Frame,
        on_pose: Callable[[TrackedFrame], None] | None = None,
        *,
        dense: bool = True,
        exclusive: AbstractContextManager[object] | None = None,
    ) -> TrackedFrame:
        """The pose of a frame."""
        ...

    def map(
        self,
        tracked: TrackedFrame,
        on_provisional: Callable[[Reconstruction], None] | None = None,
        on_window: Callable[[tuple[Reconstruction, ...], tuple[MapEvent, ...]], None]
        | None = None,
        exclusive: AbstractContextManager[object] | None = None,
    ) -> StepOutput:
        """Depth and mask of a tracked frame, and the window that it completes."""
        ...

    def reset(self) -> MapEvent:
        """Forget everything."""
        ...

    def static_map(self) -> PointCloud:
        """The static points so far."""
        ...


@dataclass(frozen=True, eq=False)
class Arrival:
    """An image message and when it was received, monotonic seconds."""

    message: Any
    received_s: float


@dataclass(frozen=True, eq=False)
class Pending:
    """A frame whose pose was published and that is yet to be mapped.

    Attributes:
        tracked, admitted: the frame.
        epoch: number of restarts before it.
    """

    tracked: TrackedFrame
    admitted: Admitted
    epoch: int


@dataclass(frozen=True)
class Status:
    """What the reconstruction last said about itself; for the diagnostics."""

    state: TrackingState | None = None
    submap: int = 0
    scale_known: bool = False
    intrinsics: Intrinsics | None = None
    intrinsics_source: IntrinsicsSource | None = None
    num_support: int = 0
    residual_px: float = float("nan")
    frames_problem: str = ""
    last_stamp_ns: int = 0


class Perception:
    """Owns the reconstruction.

    `track` runs on one worker, `map` on the same or on another one (docs/adr/0009), the rest on
    any thread. Each of the two holds its lock for a whole image, and the pose's lock while poses
    are handed out; a lock is taken before those after it in map, track, pose.
    """

    def __init__(
        self,
        core: Core,
        intake: Intake,
        outputs: Outputs,
        statistics: Statistics,
        events: EventLog,
        now_ns: Callable[[], int],
    ) -> None:
        """Join the parts.

        Args:
            core: the reconstruction.
            intake: makes frames of messages.
            outputs: publishes results.
            statistics: counts and times.
            events: publishes discontinuities.
            now_ns: the clock the image stamps are compared with.
        """
        self._core = core
        self._intake = intake
        self._outputs = outputs
        self._statistics = statistics
        self._events = events
        self._now_ns = now_ns
        self._map_lock = threading.Lock()
        self._track_lock = threading.Lock()
        self._pose_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._epoch = 0
        self._num_pending = 0
        self._status = Status()
        self._map_is_new = False
        self._num_map_listeners = 0
        self._map_published_s = -float("inf")

    @property
    def description(self) -> Mapping[str, str]:
        """What works inside the reconstruction, as far as it says so."""
        return self._core.description if isinstance(self._core, Described) else {}

    @property
    def status(self) -> Status:
        """The newest status (immutable)."""
        return self._status

    @property
    def maps_aside(self) -> bool:
        """Whether `map` may run on another thread than `track`."""
        return self._core.maps_aside

    @property
    def has_mapped_all(self) -> bool:
        """Every tracked frame has been mapped."""
        return self._num_pending == 0

    def track(self, arrival: Arrival, *, dense: bool = True) -> Pending:
        """Find the pose of an image and publish it.

        Args:
            arrival: the image.
            dense: False when there is time for the pose only.

        Returns:
            What `map` is to be called with, in the same order.

        Raises:
            Recon4DError: the image was dropped; nothing else changed.
        """
        pending = self._tracked(arrival, dense)
        while isinstance(pending, str):
            self.reset(pending, stamp_ns(arrival.message.header.stamp))
            pending = self._tracked(arrival, dense)
        return pending

    def map(self, pending: Pending) -> None:
        """Depth, mask and map of a tracked frame; publish what comes of it.

        Raises:
            Recon4DError: a room could not do its work; the pose of the frame stays.
        """
        with self._map_lock:
            try:
                if pending.epoch == self._epoch:
                    self._map(pending)
            finally:
                self._count(-1)

    def reset(self, reason: str, at_ns: int | None = None) -> None:
        """Start anew at the next image.

        Args:
            reason: for whoever listens to the events.
            at_ns: stamp of the image that brought it; that of the newest one if None.
        """
        with self._map_lock, self._track_lock:
            event = self._core.reset()
            self._epoch += 1
            self._intake.restart()
            self._outputs.restart()
            self._map_is_new = True
            at_ns = self._status.last_stamp_ns if at_ns is None else at_ns
            self._status = Status(submap=event.submap, last_stamp_ns=at_ns)
        self._events.publish(NodeEvent(event.kind.value, at_ns, event.submap, reason))

    def save_map(self, folder: str) -> Path:
        """Write the static map as a new PLY file into `folder` (a leading ~ is the user's home).

        Raises:
            OutputError: there is no map yet, or it cannot be written.
        """
        with self._map_lock:
            cloud, status = self._core.static_map(), self._status
        if cloud.points.shape[0] == 0:
            raise OutputError(
                "the static map is empty; expected points; wait until the camera has moved"
            )
        path = _new_file(folder, f"map_{status.last_stamp_ns}_submap{status.submap}")
        write_ply(path, cloud)
        return path

    def publish_map_if_due(self, rate_hz: float) -> None:
        """Publish the static map if its time has come and somebody has not seen it yet."""
        now_s = time.monotonic()
        if now_s - self._map_published_s < 1.0 / rate_hz:
            return
        # A new listener need not be one that asks for the latched map.
        before = self._num_map_listeners
        self._num_map_listeners = self._outputs.num_map_listeners
        with self._map_lock:
            is_news = self._map_is_new or self._num_map_listeners > before
            has_begun = self._status.last_stamp_ns > 0
            if not (is_news and has_begun and self._num_map_listeners > 0):
                return
            self._map_is_new, self._map_published_s = False, now_s
            cloud, stamp_ns = self._core.static_map(), self._status.last_stamp_ns
        self._outputs.publish_map(cloud, stamp_ns)

    def _tracked(self, arrival: Arrival, dense: bool) -> Pending | str:
        """A tracked image, or why everything must start anew before it."""
        with self._track_lock:
            admitted = self._intake.admit(arrival.message)
            if admitted.restart is not None:
                return admitted.restart

            def publish(tracked: TrackedFrame) -> None:
                self._intake.commit(admitted)
                self._publish_pose(arrival, admitted, tracked)

            tracked = self._core.track(
                admitted.frame, publish, dense=dense, exclusive=self._pose_lock
            )
            self._count(1)
            return Pending(tracked, admitted, self._epoch)

    def _count(self, change: int) -> None:
        """Frames that wait to be mapped; tracking holds its lock for as long as a pose takes."""
        with self._count_lock:
            self._num_pending += change

    def _publish_pose(self, arrival: Arrival, admitted: Admitted, tracked: TrackedFrame) -> None:
        """Pose first; then what it means."""
        result = tracked.pose
        if result.submap != self._status.submap:
            self._open_submap(result)
        problem = ""
        if result.T_map_cam is None:
            self._statistics.lost()
        else:
            try:
                self._outputs.publish_pose(result, result.T_map_cam, admitted)
                self._time_pose(arrival, result)
            except FrameError as error:
                problem = str(error)
        self._report_frames(problem, result)
        self._tell(tracked.events)

    def _map(self, pending: Pending) -> None:
        tracked, admitted = pending.tracked, pending.admitted

        def publish_dense(result: Reconstruction) -> None:
            # A submap that has ended shares no coordinates with what is published now.
            if result.is_dense and result.submap == self._status.submap:
                self._outputs.publish_dense(result, admitted)

        publish_window = partial(self._publish_window, admitted=admitted)
        step = self._core.map(tracked, publish_dense, publish_window, self._pose_lock)
        self._map_is_new = self._map_is_new or bool(step.final or step.events)
        self._statistics.stages(step.stage_seconds)

    def _time_pose(self, arrival: Arrival, result: Reconstruction) -> None:
        now_s = time.monotonic()
        stamp_to_tf_s = (self._now_ns() - result.frame.stamp_ns) / 1e9
        self._statistics.posed(now_s, stamp_to_tf_s, now_s - arrival.received_s)

    def _open_submap(self, result: Reconstruction) -> None:
        """Announce a new submap before anything in its coordinates is published."""
        self._outputs.restart()
        self._events.publish(
            NodeEvent(
                EventKind.NEW_SUBMAP.value,
                result.frame.stamp_ns,
                result.submap,
                f"submap {result.submap} starts: its coordinates and scale share nothing with "
                f"submap {self._status.submap}",
            )
        )

    def _report_frames(self, problem: str, result: Reconstruction) -> None:
        """Keep the status; say once that TF cannot be published, and once that it can again."""
        before = self._status.frames_problem
        self._status = Status(
            result.state,
            result.submap,
            result.scale_known,
            result.intrinsics,
            result.intrinsics_source,
            result.num_support,
            result.residual_px,
            problem,
            result.frame.stamp_ns,
        )
        if problem == before:
            return
        kind = "frames_missing" if problem else "frames_found"
        text = problem or "poses are published"
        self._events.publish(NodeEvent(kind, result.frame.stamp_ns, result.submap, text))

    def _tell(self, events: Iterable[MapEvent]) -> None:
        for event in events:
            # A new submap was announced with its first pose.
            if event.kind is not EventKind.NEW_SUBMAP:
                self._events.publish(NodeEvent.of(event))

    def _publish_window(
        self,
        finals: tuple[Reconstruction, ...],
        events: tuple[MapEvent, ...],
        admitted: Admitted,
    ) -> None:
        """Final results and discontinuities of a window."""
        self._tell(events)
        if not self._status.frames_problem:
            for final in finals:
                if final.submap == self._status.submap:
                    self._outputs.revise_path(final, admitted.header.frame_id)
                    self._outputs.publish_tracks(final)
        for event in events:
            if event.correction is not None:
                self._correct(event.correction, admitted)

    def _correct(self, correction: MapCorrection, admitted: Admitted) -> None:
        """Say how the map has moved, after everything that lies where it was."""
        self._outputs.publish_correction(correction, admitted.header)
        if correction.submap == self._status.submap and not self._status.frames_problem:
            self._outputs.correct_path(correction, admitted.header)


def _new_file(folder_text: str, stem: str) -> Path:
    """A path in a folder (made if need be) that does not exist yet.

    Raises:
        OutputError: no folder is configured, or it cannot be made.
    """
    if not folder_text:
        raise OutputError("output.save_folder is empty; set it to the folder for maps")
    try:
        folder = Path(folder_text).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OutputError(
            f"cannot make the folder '{folder_text}': {error}; set output.save_folder to a "
            "folder that can be written"
        ) from error
    names = (f"{stem}{suffix}.ply" for suffix in ("", *(f"_{n}" for n in range(1, 10_000))))
    return next(folder / name for name in names if not (folder / name).exists())

"""One offline run: frames through the reconstruction into a result folder, with its figures."""

from __future__ import annotations

import platform
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch

from recon4d_ros import __version__
from recon4d_ros.cli.summary import Summary
from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    Frame,
    IntrinsicsSource,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
)
from recon4d_ros.errors import Recon4DError
from recon4d_ros.geometry.image_grid import resize_intrinsics
from recon4d_ros.storage.recording import FrameSource
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.results import ResultFolder


class Reconstructor(Protocol):
    """What a run needs of the reconstruction."""

    def step(
        self, frame: Frame, on_provisional: Callable[[Reconstruction], None] | None = None
    ) -> StepOutput:
        """Advance by one frame."""
        ...

    def finish(self) -> tuple[tuple[Reconstruction, ...], tuple[MapEvent, ...]]:
        """Frames that had not become final at the end of the stream, and discontinuities."""
        ...

    def static_map(self) -> PointCloud:
        """The map."""
        ...


@runtime_checkable
class Noted(Protocol):
    """Has something to say of its result as a whole."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences, in order."""
        ...


class Session:
    """Runs a source through a reconstruction and keeps the figures of the report.

    Attributes:
        results: the folder written to.
        events: discontinuities, in order.
        best: the final frame that shows most, for the summary.
        last: the newest final frame, or None.
    """

    def __init__(
        self,
        source: FrameSource,
        reconstructor: Reconstructor,
        results: ResultFolder,
        *,
        skip_bad_frames: bool = False,
    ) -> None:
        self.results = results
        self.events: list[MapEvent] = []
        self.best: Reconstruction | None = None
        self.last: Reconstruction | None = None
        self._source = source
        self._reconstructor = reconstructor
        self._skip_bad_frames = skip_bad_frames
        self._refused: list[str] = []
        self._states: Counter[str] = Counter()
        self._submaps: set[int] = set()
        self._num_stepped = 0
        self._latency_s: list[float] = []
        self._step_s: list[float] = []
        self._stages_s: dict[str, list[float]] = {}

    def advance(self, max_frames: int | None) -> Iterator[tuple[MapEvent, ...]]:
        """Do the work frame by frame; iterate over it.

        Yields:
            The events of each frame.

        Raises:
            Recon4DError: a frame cannot be used (unless such frames are skipped), the source
                breaks off, or a result cannot be written.
        """
        for frame in islice(iter(self._source), max_frames):
            try:
                output = self._step(frame)
            except Recon4DError as error:
                if not self._skip_bad_frames:
                    raise
                self._refused.append(f"frame {frame.index}: {error}")
                continue
            self.results.add_provisional(output.provisional)
            self._keep(output.final)
            for event in output.events:
                if event.correction is not None:
                    self.results.correct(event.correction)
            self.events.extend(output.events)
            yield output.events

    def finish(self) -> tuple[MapEvent, ...]:
        """Take over the frames that were not final yet; the events that come with them.

        Raises:
            OutputError: a result cannot be written.
        """
        final, events = self._reconstructor.finish()
        self._keep(final)
        self.events.extend(events)
        return events

    def close(self, config: Config, stopped_by: str | None) -> dict[str, Any]:
        """Write what is known at the end.

        Args:
            config: what the run used.
            stopped_by: why it ended early; None when it did not.

        Returns:
            The report.

        Raises:
            OutputError: a result cannot be written.
        """
        report = self._report(config, stopped_by)
        cloud = self._reconstructor.static_map()
        self.results.close(cloud, self._camera(), self._source.rectifier.size, report)
        return report

    def summary(self, report: Mapping[str, Any]) -> Summary | None:
        """What to draw of the newest submap; None when no frame became final."""
        if self.best is None or self.last is None:
            return None
        frames = report["frames"]
        return Summary(
            title=self._source.name,
            subtitle=f"{frames['posed']} of {frames['in']} frames posed, "
            f"{report['rate_hz']:.1f} Hz, latency p95 {report['latency_ms']['p95']:.0f} ms",
            rgb=self.best.frame.rgb,
            depth=self.best.depth,
            mask=self.best.dynamic_mask,
            cloud=self._reconstructor.static_map(),
            T_map_cam=self.results.final_poses(self.last.submap),
            unit="m" if self.last.scale_known else "map units",
        )

    def _step(self, frame: Frame) -> StepOutput:
        arrivals: list[float] = []
        start = time.perf_counter()
        output = self._reconstructor.step(frame, lambda _: arrivals.append(time.perf_counter()))
        end = time.perf_counter()
        self._num_stepped += 1
        self._step_s.append(end - start)
        self._latency_s.append((arrivals[0] if arrivals else end) - start)
        for stage, seconds in output.stage_seconds.items():
            self._stages_s.setdefault(stage, []).append(seconds)
        return output

    def _keep(self, finals: Iterable[Reconstruction]) -> None:
        for result in finals:
            self.results.add_final(result, self._source.rectifier)
            self._states[result.state.value] += 1
            self._submaps.add(result.submap)
            self.last = result
            if self.best is None or _shown(result) > _shown(self.best):
                self.best = result

    def _camera(self) -> CameraModel | None:
        """The camera that was used, for the pixels of the input."""
        if self.last is None or self.last.intrinsics_source is IntrinsicsSource.GIVEN:
            return self._source.recording.camera
        size = self._source.rectifier.size
        return CameraModel(resize_intrinsics(self.last.intrinsics, size))

    def _report(self, config: Config, stopped_by: str | None) -> dict[str, Any]:
        drops, core = [*self._source.drops, *self._refused], self._reconstructor
        return {
            "source": self._source.name,
            "complete": stopped_by is None,
            "stopped_by": stopped_by,
            "frames": {
                "in": self._num_stepped + len(drops),
                "posed": self.results.num_posed,
                "dropped": len(drops),
                "lost": self._num_stepped - self.results.num_posed,
            },
            "states": dict(self._states),
            "dropped_because": drops,
            "submaps": len(self._submaps),
            "events": [
                {"kind": event.kind.value, "stamp_ns": event.stamp_ns, "submap": event.submap}
                | {"message": event.message}
                for event in self.events
            ],
            "notes": list(core.notes) if isinstance(core, Noted) else [],
            "rate_hz": self._num_stepped / sum(self._step_s) if self._step_s else 0.0,
            "latency_ms": _percentiles_ms(self._latency_s),
            "step_ms": _percentiles_ms(self._step_s),
            "stages_ms": {
                stage: {"total": 1e3 * sum(seconds)} | _percentiles_ms(seconds)
                for stage, seconds in self._stages_s.items()
            },
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "intrinsics": self._describe_intrinsics(),
            "scale_known": self.last is not None and self.last.scale_known,
            "config": config.nested(),
            "versions": versions(),
        }

    def _describe_intrinsics(self) -> dict[str, Any]:
        camera = self._camera()
        if camera is None or self.last is None:
            return {"source": None}
        pinhole = camera.intrinsics
        return {
            "source": self.last.intrinsics_source.value,
            "fx": pinhole.fx,
            "fy": pinhole.fy,
            "cx": pinhole.cx,
            "cy": pinhole.cy,
            "width": pinhole.width,
            "height": pinhole.height,
        }


def versions() -> dict[str, str]:
    """Versions of what decides over the result."""
    return {
        "recon4d_ros": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def _percentiles_ms(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, (50, 95, 99)) * 1e3 if seconds else np.zeros(3)
    return {name: float(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def _shown(result: Reconstruction) -> float:
    """How much of depth and of motion a frame shows; a posed frame before any other."""
    valid = float(result.depth.isfinite().float().mean())
    moving = min(float(result.dynamic_mask.float().mean()), 0.2)
    return (1.0 if result.T_map_cam is not None else 0.0) + valid + 2.0 * moving

"""The node's /diagnostics: three statuses (input, tracking, process) with their figures.

Key names are part of the interface: recorders read them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from recon4d_ros.datatypes import TrackingState
from recon4d_ros.ros.events import NodeEvent
from recon4d_ros.ros.perception import Status
from recon4d_ros.ros.statistics import Snapshot


@dataclass(frozen=True)
class Report:
    """Everything one diagnostics message is made of.

    Attributes:
        node: fully qualified node name.
        lifecycle: label of the lifecycle state.
        config_error: why the last configuration failed, or empty.
        last_error: text of the last dropped image, or empty.
        image_topic: what the node listens to; empty while it does not.
        stale_after_s: silence after which the stream is stale.
        num_refused_camera_infos: CameraInfo messages that could not be used.
        figures: counts and times; None before the node is configured.
        status: of the reconstruction.
        newest_event: or None.
        labels: facts that stay, such as predictor and device.
    """

    node: str
    lifecycle: str
    config_error: str
    last_error: str
    image_topic: str
    stale_after_s: float
    num_refused_camera_infos: int
    figures: Snapshot | None
    status: Status
    newest_event: NodeEvent | None
    labels: Mapping[str, str]

    @property
    def is_stale(self) -> bool:
        """The node listens and hears nothing."""
        listens = bool(self.image_topic) and self.figures is not None
        return listens and self.silence_s > self.stale_after_s

    @property
    def silence_s(self) -> float:
        """Time since the last image."""
        return self.figures.since_image_s if self.figures is not None else math.inf


def diagnostics_message(report: Report, stamp: Time) -> DiagnosticArray:
    """The message of one moment."""
    statuses = [_process(report)]
    if report.figures is not None:
        statuses = [_input(report, report.figures), _tracking(report, report.figures), *statuses]
    return DiagnosticArray(header=Header(stamp=stamp), status=statuses)


def _input(report: Report, figures: Snapshot) -> DiagnosticStatus:
    num_dropped = sum(figures.dropped.values())
    level, message = DiagnosticStatus.OK, "receiving images"
    if not report.image_topic:
        message = "not listening"
    elif report.is_stale:
        level, message = DiagnosticStatus.STALE, _silence(report)
    elif report.num_refused_camera_infos or set(figures.dropped) - {"newer_image"}:
        level, message = DiagnosticStatus.WARN, "some input was refused"
    values = {
        "image_topic": report.image_topic,
        "received": str(figures.num_received),
        "input_rate_hz": f"{figures.input_rate_hz:.2f}",
        "since_last_image_s": f"{figures.since_image_s:.2f}",
        "dropped": str(num_dropped),
        **{f"dropped.{cause}": str(n) for cause, n in sorted(figures.dropped.items())},
        "camera_info_refused": str(report.num_refused_camera_infos),
        "last_error": report.last_error,
    }
    return _status(report, "input", level, message, values)


def _silence(report: Report) -> str:
    if math.isinf(report.silence_s):
        return f"no image yet on {report.image_topic}; start the camera or remap 'image'"
    return f"no image on {report.image_topic} for {report.silence_s:.1f} s"


def _tracking(report: Report, figures: Snapshot) -> DiagnosticStatus:
    status = report.status
    level, message = _tracking_level(status)
    source = status.intrinsics_source
    values = {
        "state": status.state.value if status.state else "waiting",
        "submap": str(status.submap),
        "scale_known": str(status.scale_known).lower(),
        "K_source": source.value if source else "unknown",
        "K": _camera_text(status),
        "posed": str(figures.num_posed),
        "lost": str(figures.num_lost),
        "output_rate_hz": f"{figures.output_rate_hz:.2f}",
        "support": str(status.num_support),
        "residual_px": f"{status.residual_px:.3f}",
        **_latency(figures),
        **_newest_event(report.newest_event),
    }
    return _status(report, "tracking", level, message, values)


def _tracking_level(status: Status) -> tuple[bytes, str]:
    if status.frames_problem:
        return DiagnosticStatus.ERROR, f"no pose is published: {status.frames_problem}"
    if status.state is None:
        return DiagnosticStatus.OK, "waiting for images"
    if status.state is TrackingState.LOST:
        return DiagnosticStatus.ERROR, "lost: no pose is published until it is found again"
    text = status.state.value
    if status.state is TrackingState.INITIALISING:
        text += ": no depth before the camera has moved past things at rest"
    if status.submap > 0:
        return DiagnosticStatus.WARN, f"{text}, in submap {status.submap}"
    return DiagnosticStatus.OK, text


def _camera_text(status: Status) -> str:
    camera = status.intrinsics
    if camera is None:
        return ""
    return (
        f"fx={camera.fx:.2f} fy={camera.fy:.2f} cx={camera.cx:.2f} cy={camera.cy:.2f} "
        f"at {camera.width}x{camera.height}"
    )


def _latency(figures: Snapshot) -> dict[str, str]:
    return {
        "stamp_to_tf_p50_ms": f"{figures.stamp_to_tf_ms[0]:.1f}",
        "stamp_to_tf_p95_ms": f"{figures.stamp_to_tf_ms[1]:.1f}",
        "receive_to_tf_p50_ms": f"{figures.receive_to_tf_ms[0]:.1f}",
        "receive_to_tf_p95_ms": f"{figures.receive_to_tf_ms[1]:.1f}",
        **{f"stage.{name}_ms": f"{mean:.1f}" for name, mean in figures.stage_ms.items()},
    }


def _newest_event(event: NodeEvent | None) -> dict[str, str]:
    return {} if event is None else {"last_event": f"{event.kind}: {event.message}"}


def _process(report: Report) -> DiagnosticStatus:
    level, message = DiagnosticStatus.OK, report.lifecycle
    if report.config_error:
        level, message = DiagnosticStatus.ERROR, f"not configured: {report.config_error}"
    values = {
        "lifecycle": report.lifecycle,
        "rss_mb": f"{resident_bytes() / 1e6:.1f}",
        "pid": str(os.getpid()),
        **report.labels,
    }
    return _status(report, "process", level, message, values)


def resident_bytes() -> int:
    """Resident memory of this process; 0 on a system without /proc."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _status(
    report: Report, part: str, level: bytes, message: str, values: Mapping[str, str]
) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    name = f"{report.node.lstrip('/')}: {part}"
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id=report.node, values=pairs
    )

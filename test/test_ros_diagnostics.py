"""What the tracking status of the node's diagnostics says."""

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from recon4d_ros.datatypes import TrackingState
from recon4d_ros.ros.diagnostics import Report, diagnostics_message
from recon4d_ros.ros.perception import Status
from recon4d_ros.ros.statistics import Statistics


def tracking(status: Status) -> tuple[bytes, str]:
    figures = Statistics().snapshot(0.0)
    report = Report("/r", "active", "", "", "/image", 2.0, 0, figures, status, None, {})
    (found,) = (
        entry
        for entry in diagnostics_message(report, Time()).status
        if entry.name.endswith("tracking")
    )
    return found.level, found.message


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (Status(), DiagnosticStatus.OK, "waiting for images"),
        (Status(TrackingState.TRACKING), DiagnosticStatus.OK, "tracking"),
        (Status(TrackingState.INITIALISING), DiagnosticStatus.OK, "moved past things at rest"),
        (Status(TrackingState.INITIALISING, 2), DiagnosticStatus.WARN, "in submap 2"),
        (Status(TrackingState.LOST), DiagnosticStatus.ERROR, "lost"),
        (Status(frames_problem="no base"), DiagnosticStatus.ERROR, "no base"),
    ],
)
def test_the_tracking_status_says_what_to_do(status, level, words):
    found = tracking(status)
    assert found[0] == level
    assert words in found[1]

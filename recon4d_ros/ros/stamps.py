"""Times as messages; apart from the conversions, so that a player needs no torch."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from std_msgs.msg import Header


def time_message(stamp_ns: int) -> Time:
    """A stamp in nanoseconds as a message."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=seconds, nanosec=nanoseconds)


def header_message(stamp_ns: int, frame_id: str) -> Header:
    """Stamp and frame."""
    return Header(stamp=time_message(stamp_ns), frame_id=frame_id)

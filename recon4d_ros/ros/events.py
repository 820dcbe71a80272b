"""Discontinuities and their causes, published so that nothing jumps silently.

`~/events` is latched (the newest 50): one JSON object per event with `kind`, `stamp_ns`, `submap`
and `message`. The kinds are those of `EventKind` (initialised, lost, relocalised, refuted,
new_submap, map_correction, reset) and those of the node: camera_info_missing, camera_info_refused,
camera_info_uncalibrated, stream_gap, stream_resumed, frames_missing, frames_found.

The map frame keeps its name when a new submap starts, but its coordinates share nothing with those
before. `new_submap` goes out before the first pose of the new submap does, and the path starts
anew.

`refuted` takes back every pose of its submap, which rested on something that moves: masks found
that after they were published. A new submap follows.

`map_correction` moves the map under the pose: a place was seen again and the drift since is taken
back. Poses up to its stamp lie in the map as it was, later ones in the map as it is.
`~/map_correction` says how to move what was noted in map coordinates: a PointCloud2 with one row
per anchor (x y z qx qy qz qw scale float64; sec nanosec, the time it belongs to), p to
scale R(q) p + (x, y, z); in between by the rows on either side, from the last row on by the last
one. No standard message carries a scale. The corrected path follows at once, the static map with
its next publication.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import asdict, dataclass

from rclpy.node import Node
from std_msgs.msg import String

from recon4d_ros.datatypes import MapEvent
from recon4d_ros.ros import qos

_CALM = {"initialised", "relocalised", "stream_resumed", "frames_found"}


@dataclass(frozen=True)
class NodeEvent:
    """One event as it is published; `stamp_ns` of the image it concerns, 0 where there is none."""

    kind: str
    stamp_ns: int
    submap: int
    message: str

    @classmethod
    def of(cls, event: MapEvent) -> NodeEvent:
        """An event of the reconstruction."""
        return cls(event.kind.value, event.stamp_ns, event.submap, event.message)


class EventLog:
    """Publishes events and writes them to the log."""

    def __init__(self, node: Node) -> None:
        """Make the publisher of `~/events`."""
        self._node = node
        self._publisher = node.create_publisher(String, "~/events", qos.EVENTS)
        self._lock = threading.Lock()
        self._newest: deque[NodeEvent] = deque(maxlen=1)

    @property
    def newest(self) -> NodeEvent | None:
        """The newest event."""
        with self._lock:
            return self._newest[0] if self._newest else None

    def publish(self, event: NodeEvent) -> None:
        """Say it; from any thread."""
        with self._lock:
            self._newest.append(event)
        self._publisher.publish(String(data=json.dumps(asdict(event))))
        text = f"{event.kind}: {event.message}"
        if event.kind in _CALM:
            self._node.get_logger().info(text)
        else:
            self._node.get_logger().warning(text)

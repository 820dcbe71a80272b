"""A correction of the map as the node tells it: event, table, path, map."""

import numpy as np
import pytest
import torch
from exact_core import ExactCore
from ros_support import OUTPUTS, RVIZ, session, stamp_ns
from sensor_msgs.msg import PointCloud2

from recon4d_ros.datatypes import EventKind, MapCorrection, MapEvent
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.ros import conversions
from recon4d_ros.ros.publishers import PathHistory
from recon4d_ros.ros.stamps import header_message

pytestmark = pytest.mark.ros

VALUES = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.2, -0.1, 0.2], dtype=torch.float64)
AT = 4  # frame whose step brings the correction
LEVER = se3.exp(torch.tensor([0.2, 0.1, -0.3, 0.5, -0.4, 0.3], dtype=torch.float64))


def correction(stamps=(0, 10**9)) -> MapCorrection:
    steps = torch.stack([torch.zeros(7, dtype=torch.float64), VALUES])
    return MapCorrection(
        0, torch.tensor([0, AT]), torch.tensor(stamps), sim3.from_coordinates(steps)
    )


class CorrectingCore(ExactCore):
    """The exact core, whose map moves once."""

    def _window_events(self, frame):
        if frame.index != AT:
            return ()
        moved = correction((self.frames[0].stamp_ns, frame.stamp_ns))
        return (MapEvent(EventKind.MAP_CORRECTION, frame.stamp_ns, 0, "the drift is gone", moved),)


def read(message: PointCloud2) -> np.ndarray:
    """The table as anybody would read it, by the fields that the message names."""
    kinds = {7: "<f4", 8: "<f8", 5: "<i4", 6: "<u4"}
    record = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [kinds[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(message.data, record)


def similarities(table: np.ndarray) -> torch.Tensor:
    columns = [torch.from_numpy(table[name].copy()) for name in table.dtype.names[:8]]
    x, y, z, qx, qy, qz, qw, scale = columns
    R = se3.quat_xyzw_to_matrix(torch.stack([qx, qy, qz, qw], -1))
    return sim3.make(scale, se3.make(R, torch.stack([x, y, z], -1)))


def test_the_table_holds_the_similarities_and_their_times() -> None:
    given = correction((1_700_000_000_123_456_789, 1_700_000_003_000_000_001))
    table = read(conversions.correction_table(given, header_message(5, "map")))
    torch.testing.assert_close(similarities(table), given.S_new_old)
    stamps = table["sec"].astype(np.int64) * 10**9 + table["nanosec"]
    assert stamps.tolist() == given.stamps_ns.tolist()


def test_the_path_moves_with_the_camera_not_with_the_lever() -> None:
    """The mount of the camera is no length of the map and does not grow with it."""
    history, T_cam = PathHistory(10), se3.exp(torch.randn(6, 6, dtype=torch.float64))
    headers = [header_message(k, "map") for k in range(6)]
    history.correct(correction(), LEVER)  # nothing there yet
    messages = conversions.pose_messages(T_cam @ LEVER, headers)
    for index, message in enumerate(messages):
        history.append(index, message)
    history.correct(correction(), LEVER)
    S = sim3.interpolate(correction().indices, correction().S_new_old, torch.arange(6))
    moved = conversions.matrices_of_poses(history.poses())
    torch.testing.assert_close(moved, sim3.transform_pose(S, T_cam) @ LEVER)
    assert [stamp_ns(pose) for pose in history.poses()] == list(range(6))


def test_event_table_and_path_come_before_the_next_pose() -> None:
    OUTPUTS["map_correction"] = (PointCloud2, RVIZ)
    topics = ("pose", "path", "events", "static_map", "map_correction")
    try:
        with session(CorrectingCore, topics=topics) as (probe, _, _):
            probe.connected()
            before = [probe.send_and_wait("pose") for _ in range(AT + 1)]
            probe.until(lambda: probe.heard["map_correction"], "the correction")
            event = probe.event("map_correction")
            (message,) = probe.heard["map_correction"]
            probe.until(lambda: len(probe.heard["path"]) == AT + 2, "the path once more")
            probe.until(lambda: probe.answer("static_map", stamp_ns(message)), "the map")
            paths = probe.heard["path"]
            after = probe.send_and_wait("pose")
    finally:
        del OUTPUTS["map_correction"]
    assert message.header.frame_id == "map"
    assert stamp_ns(message) == event["stamp_ns"] == stamp_ns(before[-1])
    assert event["message"] == "the drift is gone"
    torch.testing.assert_close(similarities(read(message)), correction().S_new_old)
    old, new = (conversions.matrices_of_poses(path.poses) for path in paths[AT : AT + 2])
    S = sim3.interpolate(correction().indices, correction().S_new_old, torch.arange(AT + 1))
    torch.testing.assert_close(new, sim3.transform_pose(S, old))
    assert [stamp_ns(pose) for pose in paths[AT + 1].poses] == [stamp_ns(m) for m in before]
    assert stamp_ns(after) > stamp_ns(message)

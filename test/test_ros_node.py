"""What the node publishes, under which names, types, frames and stamps; its lifecycle."""

import threading

import numpy as np
import pytest
import rclpy
from exact_core import ExactCore
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_support import (
    OUTPUTS,
    SIZE,
    camera_info_message,
    image_message,
    session,
    stamp_ns,
)
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_srvs.srv import Trigger

from recon4d_ros.datatypes import TrackingState

pytestmark = pytest.mark.ros

PER_FRAME = [topic for topic in OUTPUTS if topic not in ("/diagnostics", "events", "static_map")]
POSES = ("pose", "odometry", "path")
DENSE = ("points", "dynamic_points", "dynamic_mask", "depth/image", "depth/camera_info")


@pytest.fixture(scope="module")
def played():
    """A node after four images, with everything it said to RViz-like subscribers."""
    with session(topics=tuple(OUTPUTS)) as (probe, node, _):
        probe.connected()
        sent = [probe.send_and_wait("dynamic_points") and probe._stamp_ns for _ in range(4)]
        probe.until(lambda: all(probe.heard[t] for t in OUTPUTS), "every topic")
        # Topics overtake each other: the points may be here before the mask sent first.
        of_each = ("/tf", *POSES, *DENSE)
        probe.until(lambda: all(len(probe.heard[t]) == 4 for t in of_each), "all of each image")
        probe.until(lambda: probe.value("tracking", "posed") == "4", "diagnostics of it")
        probe.sent = sent
        yield probe, node


def call(probe, service, kind=Trigger, request=None):
    client = probe.node.create_client(kind, service)
    probe.until(client.service_is_ready, f"service {service}")
    future = client.call_async(request or kind.Request())
    probe.until(future.done, f"answer of {service}")
    return future.result()


def test_every_output_carries_the_stamp_of_its_image(played):
    probe, _ = played
    for topic in (*POSES, *DENSE):
        assert [stamp_ns(message) for message in probe.heard[topic]] == probe.sent, topic
    transforms = [message.transforms[0] for message in probe.heard["/tf"]]
    assert [stamp_ns(transform) for transform in transforms] == probe.sent


def test_poses_are_in_the_map_and_dense_outputs_in_the_camera(played):
    probe, _ = played
    for topic in (*POSES, "static_map"):
        assert {m.header.frame_id for m in probe.heard[topic]} == {"map"}, topic
    for topic in DENSE:
        assert {m.header.frame_id for m in probe.heard[topic]} == {"camera_optical"}, topic
    for message in probe.heard["/tf"]:
        (transform,) = message.transforms
        assert transform.header.frame_id == "map"
        assert transform.child_frame_id == "camera_optical"
    assert probe.heard["odometry"][0].child_frame_id == "camera_optical"


def test_tf_pose_odometry_and_path_tell_the_same(played):
    probe, _ = played
    for n in range(4):
        assert probe.heard["/tf"][n].transforms[0].transform.translation.x == pytest.approx(
            0.1 * n
        )
        pose = probe.heard["pose"][n].pose
        assert pose.position.x == pytest.approx(0.1 * n)
        assert probe.heard["odometry"][n].pose.pose == pose
        path = probe.heard["path"][n].poses
        assert [p.pose.position.x for p in path] == pytest.approx([0.1 * k for k in range(n + 1)])


def test_the_mask_has_the_size_of_the_input(played):
    probe, _ = played
    mask = probe.heard["dynamic_mask"][0]
    assert (mask.height, mask.width, mask.encoding) == (*SIZE, "mono8")
    pixels = np.frombuffer(mask.data, np.uint8).reshape(SIZE)
    # The square of the exact core, at twice its size.
    assert (pixels[9:23, 13:31] == 255).all()
    assert pixels.astype(bool).sum() == pytest.approx(16 * 20, rel=0.15)


def test_depth_and_its_camera_info_belong_together(played):
    probe, _ = played
    depth, info = probe.heard["depth/image"][0], probe.heard["depth/camera_info"][0]
    assert (depth.encoding, depth.height, depth.width) == ("32FC1", info.height, info.width)
    assert depth.header == info.header
    values = np.frombuffer(depth.data, np.float32).reshape(depth.height, depth.width)
    assert np.isnan(values[0]).all()
    assert values[5, 16] == pytest.approx(2.5)


def test_diagnostics_say_what_matters(played):
    probe, _ = played
    values = {}
    for part in ("input", "tracking", "process"):
        level, _, of_part = probe.diagnostics(part)
        assert level == b"\x00", part
        values.update(of_part)
    assert values["state"] == "tracking"
    assert (values["received"], values["posed"], values["dropped"]) == ("4", "4", "0")
    assert (values["K_source"], values["scale_known"], values["submap"]) == ("given", "false", "0")
    assert float(values["receive_to_tf_p95_ms"]) < 5000.0
    assert float(values["stamp_to_tf_p50_ms"]) > 0.0
    assert float(values["input_rate_hz"]) > 0.0
    assert float(values["rss_mb"]) > 10.0
    assert {"predictor", "device", "lifecycle"} <= set(values)


def test_names_and_types_of_all_topics(played):
    _, node = played
    offered = dict(node.get_publisher_names_and_types_by_node("recon4d_node", "/"))
    kinds = {topic: kind for topic, (kind, _) in OUTPUTS.items()}
    for topic, kind in kinds.items():
        name = topic if topic.startswith("/") else f"/recon4d_node/{topic}"
        package = kind.__module__.split(".")[0]
        assert offered[name] == [f"{package}/msg/{kind.__name__}"], topic


def test_the_map_is_latched_and_everything_is_reliable(played):
    _, node = played
    for topic in OUTPUTS:
        name = topic if topic.startswith("/") else f"/recon4d_node/{topic}"
        for info in node.get_publishers_info_by_topic(name):
            assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE, topic
            is_latched = info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
            assert is_latched == (topic in ("static_map", "events")), topic


@pytest.mark.parametrize("durability", ["TRANSIENT_LOCAL", "VOLATILE"])
def test_a_late_subscriber_gets_the_map_without_a_new_image(played, durability):
    probe, _ = played
    late = []
    profile = QoSProfile(depth=1, durability=DurabilityPolicy[durability])
    probe.node.create_subscription(PointCloud2, "recon4d_node/static_map", late.append, profile)
    probe.until(lambda: late, "the map")
    assert late[0].width > 0


def test_nothing_dense_is_made_while_nobody_listens():
    with session(topics=("pose",)) as (probe, _, cores):
        probe.connected()
        probe.send_and_wait("pose")
        probe.until(lambda: cores[0].mapped, "the frame to be mapped")
        # The subscriber comes later and sees later images only.
        probe.listen("points")
        probe.connected()
        sent = stamp_ns(probe.send_and_wait("points"))
        assert [stamp_ns(m) for m in probe.heard["points"]] == [sent]


def test_a_compressed_topic_follows_the_remapping_of_image():
    args = ["-r", "image:=/eye/image_raw"]
    options = {"kind": CompressedImage, "image": "/eye/image_raw/compressed"}
    with session(topics=("pose",), args=args, input__transport="compressed", **options) as (
        probe,
        _,
        _,
    ):
        probe.connected()
        import cv2

        content = cv2.imencode(".jpg", np.full((*SIZE, 3), 90, np.uint8))[1].tobytes()
        message = CompressedImage(format="jpeg", data=content)
        message.header = image_message(probe.next_stamp()).header
        assert probe.send_and_wait("pose", message=message)


def test_a_base_frame_is_published_once_its_mount_is_known():
    from ros_support import TFMessage
    from test_ros_transforms import MAST, matrix, transform

    topics = ("/tf", "depth/image", "events", "/diagnostics")
    with session(topics=topics, frames__base="base", frames__map="world") as (probe, _, _):
        probe.connected()
        probe.send_and_wait("depth/image")
        assert "base" in probe.event("frames_missing")["message"]
        probe.until(lambda: probe.diagnostics("tracking")[0] == b"\x02", "an error status")
        assert not probe.heard["/tf"]
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        mount = probe.node.create_publisher(TFMessage, "/tf_static", latched)
        mount.publish(TFMessage(transforms=[transform("base", "camera_optical", *MAST)]))

        def found():
            probe.send_and_wait("depth/image")
            return probe.heard["/tf"]

        probe.until(found, "a transform")
        published = probe.heard["/tf"][0].transforms[0]
        assert (published.header.frame_id, published.child_frame_id) == ("world", "base")
        expected = np.linalg.inv(matrix(*MAST).numpy())[:3, 3]
        assert published.transform.translation.y == pytest.approx(expected[1])
        assert probe.event("frames_found")


def test_the_map_is_saved_into_the_configured_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "maps"
    with session(topics=("pose",), output__save_folder="~/maps") as (probe, _, _):
        probe.connected()
        answer = call(probe, "recon4d_node/save_map")
        assert not answer.success
        assert "empty" in answer.message
        probe.send_and_wait()
        answers = [call(probe, "recon4d_node/save_map") for _ in range(2)]
        assert all(answer.success for answer in answers), answers
        files = sorted(folder.iterdir())
        assert sorted(answer.message for answer in answers) == [str(file) for file in files]
        assert all(file.read_bytes().startswith(b"ply\nformat binary") for file in files)


@pytest.mark.parametrize("name", ["file/maps", ""])
def test_a_folder_that_cannot_be_made_is_an_answer_not_a_crash(tmp_path, name):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / name) if name else ""
    with session(topics=("pose",), output__save_folder=folder) as (probe, _, _):
        probe.connected()
        probe.send_and_wait()
        answer = call(probe, "recon4d_node/save_map")
        assert not answer.success
        assert "output.save_folder" in answer.message
        assert probe.send_and_wait()


def test_reset_starts_anew_and_says_so():
    with session(topics=("pose", "path", "events")) as (probe, _, cores):
        probe.connected()
        for _ in range(3):
            probe.send_and_wait()
        assert call(probe, "recon4d_node/reset").success
        assert "~/reset" in probe.event("reset")["message"]
        assert cores[0].num_resets == 1
        path = probe.send_and_wait("path")
        assert [p.pose.position.x for p in path.poses] == [0.0]


def test_a_lost_frame_has_no_pose_anywhere():
    class Losing(ExactCore):
        def __init__(self, config):
            super().__init__(config, states={1: TrackingState.LOST})

    with session(Losing, topics=("/tf", "pose", "odometry", "dynamic_mask", "/diagnostics")) as (
        probe,
        _,
        _,
    ):
        probe.connected()
        stamps = [stamp_ns(probe.send_and_wait("dynamic_mask")) for _ in range(2)]
        probe.until(lambda: probe.diagnostics("tracking")[0] == b"\x02", "an error status")
        assert "lost" in probe.diagnostics("tracking")[1]
        stamps.append(stamp_ns(probe.send_and_wait("pose")))
        expected = [stamps[0], stamps[2]]
        probe.until(lambda: len(probe.heard["odometry"]) == 2, "odometry of the others")
        probe.until(lambda: len(probe.heard["/tf"]) == 2, "transforms of the others")
        assert [stamp_ns(m.transforms[0]) for m in probe.heard["/tf"]] == expected
        assert [stamp_ns(m) for m in probe.heard["odometry"]] == expected


def test_a_new_submap_is_announced_and_the_path_starts_anew():
    class Splitting(ExactCore):
        def __init__(self, config):
            super().__init__(config, submaps={2: 1, 3: 1})

    with session(Splitting, topics=("pose", "path", "events", "/diagnostics")) as (probe, _, _):
        probe.connected()
        paths = [probe.send_and_wait("path") for _ in range(4)]
        assert [len(path.poses) for path in paths] == [1, 2, 1, 2]
        event = probe.event("new_submap")
        assert (event["submap"], event["stamp_ns"]) == (1, stamp_ns(paths[2]))
        probe.until(lambda: probe.value("tracking", "submap") == "1", "the submap in diagnostics")


def test_the_path_is_bounded():
    with session(topics=("path",), output__path_length=3) as (probe, _, _):
        probe.connected()
        paths = [probe.send_and_wait("path") for _ in range(5)]
    assert [len(path.poses) for path in paths] == [1, 2, 3, 3, 3]


def test_a_slow_subscriber_does_not_slow_the_node():
    with session(topics=("pose",)) as (probe, node, _):
        slow = rclpy.create_node("slow", context=node.context)
        # It never takes a message, like a process that hangs.
        for topic, kind in (("points", PointCloud2), ("path", PathMessage)):
            slow.create_subscription(kind, f"recon4d_node/{topic}", print, 1)
        probe.connected()
        probe.until(lambda: node.count_subscribers("recon4d_node/points") == 1, "the slow one")
        size = (240, 320)
        for _ in range(40):
            message = image_message(probe.next_stamp(), size=size)
            probe.send_and_wait(message=message, info=camera_info_message(size), topic="pose")
        assert len(probe.heard["pose"]) == 40
        slow.destroy_node()


def transition(probe, number):
    request = ChangeState.Request(transition=Transition(id=number))
    return call(probe, "recon4d_node/change_state", ChangeState, request).success


def workers():
    return {thread for thread in threading.enumerate() if thread.name == "recon4d"}


def test_all_lifecycle_transitions():
    before = workers()
    with session(topics=("pose",), autostart=False) as (probe, node, cores):
        assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED
        for _ in range(2):
            assert transition(probe, Transition.TRANSITION_CONFIGURE)
            assert transition(probe, Transition.TRANSITION_ACTIVATE)
            probe.connected()
            assert probe.send_and_wait()
            assert transition(probe, Transition.TRANSITION_DEACTIVATE)
            probe.until(lambda: probe.image.get_subscription_count() == 0, "no subscriber")
            assert transition(probe, Transition.TRANSITION_ACTIVATE)
            probe.connected()
            assert probe.send_and_wait()
            assert transition(probe, Transition.TRANSITION_DEACTIVATE)
            assert transition(probe, Transition.TRANSITION_CLEANUP)
        # The map outlives deactivation, but not a cleanup.
        assert [len(core.frames) for core in cores] == [2, 2]
        assert transition(probe, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        assert node.state_id == State.PRIMARY_STATE_FINALIZED
    assert workers() <= before


def test_bad_parameters_fail_the_transition_and_good_ones_mend_it():
    with session(topics=("/diagnostics",), autostart=False, window__size=1000) as (probe, node, _):
        assert not transition(probe, Transition.TRANSITION_CONFIGURE)
        assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED
        probe.until(lambda: probe.diagnostics("process")[0] == b"\x02", "an error status")
        assert "window.size" in probe.diagnostics("process")[1]
        node.set_parameters([Parameter("window.size", value=8)])
        assert transition(probe, Transition.TRANSITION_CONFIGURE)
        assert transition(probe, Transition.TRANSITION_ACTIVATE)
        probe.until(lambda: probe.diagnostics("process")[0] == b"\x00", "an ok status")


def test_an_unexpected_failure_of_the_core_leaves_a_living_node():
    class Broken:
        def __init__(self, config):
            raise RuntimeError("no such device")

    with session(Broken, autostart=False) as (probe, node, _):
        assert not transition(probe, Transition.TRANSITION_CONFIGURE)
        assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED

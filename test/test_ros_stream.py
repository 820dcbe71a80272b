"""What a camera can do to the node: broken images, other images, no images, jumping clocks."""

import math
import threading
from array import array

import pytest
import rclpy
from exact_core import ExactCore
from ros_support import (
    PERIOD_NS,
    SIZE,
    START_NS,
    camera_info_message,
    image_message,
    new_domain,
    probe_in,
    session,
    stamp_ns,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from recon4d_ros.errors import PredictorError

pytestmark = pytest.mark.ros

LISTEN = ("pose", "events", "/diagnostics")


def counted(probe, cause, number=1):
    """Wait until the diagnostics count `number` images of a cause."""
    probe.until(
        lambda: probe.value("input", f"dropped.{cause}") == str(number),
        f"{number} dropped as {cause}",
    )


BROKEN = {
    "truncated": {"data": array("B", bytes(100))},
    "empty": {"data": array("B")},
    "oversized": {"data": array("B", bytes(SIZE[0] * SIZE[1] * 3 + 500))},
    "step too small": {"step": 5},
    "step too large": {"step": 10**6},
    "unknown encoding": {"encoding": "rainbow"},
    "no encoding": {"encoding": ""},
    "zero height": {"height": 0},
    "zero width": {"width": 0},
    "absurd size": {"height": 2**31, "width": 2**31, "step": 2**31},
}


def test_every_broken_image_is_counted_and_the_next_good_one_is_posed():
    with session(topics=LISTEN) as (probe, _, cores):
        probe.connected()
        probe.send_and_wait()
        for number, (name, changes) in enumerate(BROKEN.items(), start=1):
            probe.send(image_message(probe.next_stamp(), **changes))
            counted(probe, "undecodable", number)
            assert probe.value("input", "last_error").startswith("undecodable"), name
            assert probe.send_and_wait(), name
        assert len(cores[0].frames) == len(BROKEN) + 1
        assert probe.diagnostics("input")[0] == b"\x01"


def test_every_broken_compressed_image_is_counted():
    import cv2
    import numpy as np

    jpeg = cv2.imencode(".jpg", np.full((*SIZE, 3), 90, np.uint8))[1].tobytes()
    options = {"kind": CompressedImage, "image": "image/compressed"}
    with session(topics=LISTEN, input__transport="compressed", **options) as (probe, _, _):
        probe.connected()

        def message(content):
            compressed = CompressedImage(format="jpeg", data=content)
            compressed.header = image_message(probe.next_stamp()).header
            return compressed

        contents = [b"", b"not an image", jpeg[:40], jpeg[: len(jpeg) // 2]]
        for number, content in enumerate(contents, start=1):
            probe.send(message(content))
            counted(probe, "undecodable", number)
        assert probe.send_and_wait(message=message(jpeg))


def test_duplicate_and_late_stamps_are_counted():
    with session(topics=LISTEN) as (probe, _, _):
        probe.connected()
        probe.send_and_wait()
        sent = stamp_ns(probe.send_and_wait())
        probe.send(image_message(sent))
        counted(probe, "duplicate_stamp")
        probe.send(image_message(sent - PERIOD_NS // 2))
        counted(probe, "out_of_order")
        pose = probe.send_and_wait()
        assert pose.pose.position.x == pytest.approx(0.2)


def test_a_looping_bag_starts_anew_each_time():
    with session(topics=(*LISTEN, "path")) as (probe, _, cores):
        probe.connected()
        for loop in range(3):
            probe._stamp_ns = START_NS
            probe.heard["path"].clear()
            # Longer than the jump that is told from a late image.
            for step in (0, 10, 20):
                probe._stamp_ns = START_NS + step * PERIOD_NS
                path = probe.send_and_wait("path")
            assert [p.pose.position.x for p in path.poses] == pytest.approx([0.0, 0.1, 0.2])
            assert cores[0].num_resets == loop
        assert "time jumped back" in probe.event("reset")["message"]


def test_another_size_is_dropped_first_and_then_taken():
    with session(topics=LISTEN, input__change_after=3) as (probe, _, cores):
        probe.connected()
        probe.send_and_wait()

        def other():
            return image_message(probe.next_stamp(), size=(96, 128))

        info = camera_info_message(size=(96, 128))
        probe.send(other(), info=info)
        counted(probe, "changed_camera", 1)
        assert probe.send_and_wait().pose.position.x == pytest.approx(0.1)
        for number in (2, 3):
            probe.send(other(), info=info)
            counted(probe, "changed_camera", number)
        pose = probe.send_and_wait(message=other(), info=info)
        assert pose.pose.position.x == 0.0
        assert "64x48" in probe.event("reset")["message"]
        assert cores[0].num_resets == 1


def test_a_silent_camera_is_reported_and_its_return_too():
    with session(topics=LISTEN, input__stale_after=0.3) as (probe, _, _):
        probe.connected()
        probe.send_and_wait()
        gap = probe.event("stream_gap")
        assert "/image" in gap["message"]
        probe.until(lambda: probe.diagnostics("input")[0] == b"\x03", "a stale status")
        assert "no image on /image" in probe.diagnostics("input")[1]
        pose = probe.send_and_wait()
        assert pose.pose.position.x == pytest.approx(0.1)
        assert probe.event("stream_resumed")


def test_a_camera_that_never_came_is_no_gap_but_stale():
    with session(topics=LISTEN, input__stale_after=0.1) as (probe, _, _):
        probe.until(lambda: probe.diagnostics("input")[0] == b"\x03", "a stale status")
        assert "no image yet on /image" in probe.diagnostics("input")[1]
        probe.connected()
        assert probe.send_and_wait()
        assert probe.event("stream_gap")
        assert probe.events()[0]["kind"] == "initialised"


def test_without_camera_info_the_intrinsics_are_estimated():
    with session(topics=LISTEN, input__camera_info_timeout=0.2) as (probe, _, _):
        probe.connected()
        assert probe.send_and_wait(info=None)
        assert "camera_info" in probe.event("camera_info_missing")["message"]
        probe.until(lambda: probe.value("tracking", "K_source") == "estimated", "K_source")


def test_nan_camera_info_is_counted_and_the_good_one_stays():
    with session(topics=LISTEN) as (probe, _, cores):
        probe.connected()
        probe.send_and_wait()
        assert probe.send_and_wait(info=camera_info_message(k=[math.nan] * 9))
        assert "not finite" in probe.event("camera_info_refused")["message"]
        probe.until(lambda: probe.value("input", "camera_info_refused") == "1", "its count")
        assert cores[0].frames[-1].intrinsics.fx == 60.0
        assert cores[0].num_resets == 0


def test_a_new_calibration_in_mid_stream_starts_anew():
    with session(topics=LISTEN) as (probe, _, cores):
        probe.connected()
        probe.send_and_wait()

        def with_new_camera():
            probe.send_and_wait(info=camera_info_message(focal=80.0))
            return cores[0].frames[-1].intrinsics.fx == 80.0

        probe.until(with_new_camera, "the new calibration")
        assert "camera_info changed" in probe.event("reset")["message"]
        assert cores[0].num_resets == 1


def test_a_refused_frame_and_an_internal_error_are_counted_and_survived():
    class Failing(ExactCore):
        def __init__(self, config):
            super().__init__(config, fail={1: PredictorError("no"), 2: ZeroDivisionError("oops")})

    with session(Failing, topics=LISTEN) as (probe, _, _):
        probe.connected()
        probe.send_and_wait()
        probe.send()
        counted(probe, "refused")
        assert probe.send_and_wait().pose.position.x == pytest.approx(0.1)
        probe.send()
        counted(probe, "internal_error")
        assert "oops" in probe.value("input", "last_error")
        assert probe.send_and_wait().pose.position.x == pytest.approx(0.2)


def burst(probe, gate, number):
    """Images that all arrive while the worker is held at the first."""
    for sent in range(1, number + 1):
        probe.send()
        probe.until(lambda n=sent: probe.value("input", "received") == str(n), f"image {sent}")
    gate.set()


def gated(gate):
    return lambda config: ExactCore(config, gate=gate)


def test_live_the_newest_image_wins_and_drops_are_counted():
    gate = threading.Event()
    with session(gated(gate), topics=LISTEN) as (probe, _, cores):
        probe.connected()
        burst(probe, gate, 5)
        counted(probe, "newer_image", 3)
        probe.until(lambda: len(cores[0].frames) == 2, "two frames")
        assert cores[0].frames[1].stamp_ns == probe._stamp_ns


def test_replay_loses_nothing():
    gate = threading.Event()
    settings = {"input__mode": "replay", "input__reliability": "reliable"}
    with session(gated(gate), topics=LISTEN, **settings) as (probe, _, cores):
        probe.connected()
        burst(probe, gate, 5)
        probe.until(lambda: len(cores[0].frames) == 5, "five frames")
        probe.until(lambda: probe.value("tracking", "posed") == "5", "five poses")
        assert probe.value("input", "dropped") == "0"


def test_two_nodes_in_two_namespaces_do_not_meet():
    domain = new_domain()
    remaps = ("-r", "__ns:=/left"), ("-r", "__ns:=/right")
    with (
        session(topics=(), args=remaps[0], domain=domain) as (_, left, left_cores),
        session(topics=(), args=remaps[1], domain=domain) as (_, right, right_cores),
        probe_in(
            domain,
            name="/left/recon4d_node",
            image="/left/image",
            info="/left/camera_info",
            beside=[left, right],
        ) as probe,
    ):
        assert left.get_fully_qualified_name() == "/left/recon4d_node"
        assert right.get_fully_qualified_name() == "/right/recon4d_node"
        probe.listen("pose", "/diagnostics").connected()
        assert probe.send_and_wait()
        assert (len(left_cores[0].frames), len(right_cores[0].frames)) == (1, 0)
        names = lambda: {s.name for m in probe.heard["/diagnostics"] for s in m.status}  # noqa: E731
        probe.until(
            lambda: {"left/recon4d_node: input", "right/recon4d_node: input"} <= names(),
            "diagnostics of both",
        )


def test_sim_time_measures_latency_by_the_clock_topic():
    with session(topics=LISTEN, use_sim_time=True) as (probe, node, _):
        clock = probe.node.create_publisher(Clock, "/clock", 10)
        probe.connected()
        probe.until(lambda: clock.get_subscription_count() > 0, "a subscriber of /clock")
        message = image_message(probe.next_stamp())
        seconds, nanoseconds = divmod(stamp_ns(message) + 250_000_000, 10**9)
        now = Clock()
        now.clock.sec, now.clock.nanosec = seconds, nanoseconds
        clock.publish(now)
        expected = seconds * 10**9 + nanoseconds
        probe.until(lambda: node.get_clock().now().nanoseconds == expected, "the time")
        assert probe.send_and_wait(message=message)
        probe.until(lambda: probe.value("tracking", "stamp_to_tf_p50_ms") == "250.0", "latency")


def test_images_without_a_frame_are_said_to_be_so():
    with session(topics=("dynamic_mask", *LISTEN)) as (probe, _, _):
        probe.connected()
        probe.send_and_wait("dynamic_mask", message=image_message(probe.next_stamp(), frame_id=""))
        assert "frame_id" in probe.event("frames_missing")["message"]
        assert not probe.heard["pose"]
    with session(topics=LISTEN, frames__camera="eye") as (probe, _, _):
        probe.connected()
        assert probe.send_and_wait(message=image_message(probe.next_stamp(), frame_id=""))


@pytest.mark.parametrize("reliability", ["best_effort", "reliable"])
def test_every_driver_is_heard_that_can_be(reliability):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    with session(topics=LISTEN, input__reliability=reliability) as (probe, node, _):
        profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        driver = rclpy.create_node("driver", context=node.context)
        sensor = driver.create_publisher(Image, "image", profile)
        probe.connected()
        if reliability == "best_effort":
            probe.until(lambda: sensor.get_subscription_count() == 1, "a match")
        else:
            probe.until(lambda: node.count_publishers("image") == 2, "both publishers")
            assert sensor.get_subscription_count() == 0
        driver.destroy_node()

"""Live: the node as a process of its own, a camera at 30 Hz, what arrives on /tf and when."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from benchmarks.endless import endless_frames
from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder
from recon4d_ros.datatypes import Frame
from recon4d_ros.ros.conversions import camera_info_message, image_message
from recon4d_ros.ros.profile import ensure_transport_profile
from recon4d_ros.ros.stamps import header_message

SEQUENCES = ("tum_fr3_walking_halfsphere_clip", "icl_livingroom1")
RATE_HZ = 30.0
SECONDS = 30.0
POSED_HZ = Target(15.0, better="higher")
LATENCY_MS = Target(150.0)
START_S = 60.0
DOMAIN = "86"


class Camera:
    """Publishes frames with the stamp of their sending and notes when their poses arrive.

    Attributes:
        latencies_s: stamp to arrival of /tf, one per posed frame.
        num_sent: images published.
    """

    def __init__(self, frames: Iterator[Frame]) -> None:
        self.node = Node("benchmark_camera")
        self.latencies_s: dict[int, float] = {}
        self.num_sent = 0
        self._frames = frames
        self._image = self.node.create_publisher(Image, "image", 5)
        self._info = self.node.create_publisher(CameraInfo, "camera_info", 5)
        self.node.create_subscription(TFMessage, "/tf", self._receive, QoSProfile(depth=100))

    @property
    def is_watched(self) -> bool:
        """True when the node listens."""
        return self._image.get_subscription_count() > 0 and self._info.get_subscription_count() > 0

    def start(self) -> None:
        """Send from now on at the camera's rate."""
        self.node.create_timer(1 / RATE_HZ, self._send)

    def _send(self) -> None:
        frame = next(self._frames)
        header = header_message(time.time_ns(), "camera_optical_frame")
        if frame.intrinsics is not None:
            self._info.publish(camera_info_message(frame.intrinsics, header))
        self._image.publish(image_message(frame.rgb, header))
        self.num_sent += 1

    def _receive(self, message: TFMessage) -> None:
        now_ns = time.time_ns()
        for transform in message.transforms:
            stamp = transform.header.stamp
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            self.latencies_s.setdefault(stamp_ns, (now_ns - stamp_ns) * 1e-9)


def benchmark(_: Workbench) -> Iterator[Row]:
    """Rate of posed frames and latency per sequence."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = DOMAIN
    ensure_transport_profile()
    for name in SEQUENCES:
        yield from _live_rows(name, sequence_folder(name))


def _live_rows(name: str, sequence: Path) -> Iterator[Row]:
    frames = endless_frames(sequence)
    frames = itertools.chain([next(frames)], frames)  # decode before the clock runs
    node = _node_process()
    rclpy.init()
    camera = Camera(frames)
    try:
        seconds = _stream(camera)
    except RunFailedError as error:
        yield Row("live", name, "posed Hz", math.nan, POSED_HZ, note=str(error))
        return
    finally:
        camera.node.destroy_node()
        rclpy.try_shutdown()
        node.send_signal(signal.SIGINT)
        node.wait(30)
    yield from _figures(name, camera, seconds)


def _figures(name: str, camera: Camera, seconds: float) -> Iterator[Row]:
    posed_hz = len(camera.latencies_s) / seconds
    note = f"{camera.num_sent} images sent in {seconds:.0f} s"
    yield Row("live", name, "posed Hz", posed_hz, POSED_HZ, note=note)
    latencies_ms = np.array(list(camera.latencies_s.values()) or [np.nan]) * 1e3
    for percent, target in ((50, None), (95, LATENCY_MS)):
        value = float(np.percentile(latencies_ms, percent))
        yield Row("live", name, f"stamp to TF p{percent} ms", value, target)


def _node_process() -> subprocess.Popen[bytes]:
    dropped = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    return subprocess.Popen([Path(sys.executable).parent / "recon4d_node"], env=environment)


def _stream(camera: Camera) -> float:
    """Send for a while; how long it was, s.

    Raises:
        RunFailedError: the node does not listen.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(camera.node)
    try:
        _spin(executor, START_S, lambda: camera.is_watched)
        if not camera.is_watched:
            raise RunFailedError(f"recon4d_node did not subscribe within {START_S:.0f} s")
        begin = time.monotonic()
        camera.start()
        _spin(executor, SECONDS, lambda: False)
        return time.monotonic() - begin
    finally:
        executor.shutdown()


def _spin(executor: SingleThreadedExecutor, seconds: float, is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_done():
        executor.spin_once(timeout_sec=0.01)

"""A camera and a listener for tests of the node; no test in here."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from array import array
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from exact_core import ExactCore
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from recon4d_ros.ros.node import Recon4DNode
from recon4d_ros.ros.profile import ensure_transport_profile

# Before the first rclpy.init: nothing leaves this machine, and images fit through.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
ensure_transport_profile()

REPOSITORY = Path(__file__).resolve().parents[1]
# Each session has a ROS domain of its own, below those of `private_graph`; test processes that run
# side by side share none.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_DOMAINS_EACH = 20
_DOMAINS = itertools.count(os.getpid())
# Long, for machines with other work: a process imports torch before it speaks.
WAIT_S = 60.0
SIZE = (48, 64)
PERIOD_NS = 33_000_000
START_NS = 1_700_000_000_000_000_000

LATCHED = QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# What RViz subscribes with unless told otherwise: reliable, volatile, depth 5.
RVIZ = QoSProfile(depth=5)
OUTPUTS = {
    "/tf": (TFMessage, QoSProfile(depth=100)),
    "pose": (PoseStamped, RVIZ),
    "odometry": (Odometry, RVIZ),
    "path": (PathMessage, RVIZ),
    "points": (PointCloud2, RVIZ),
    "static_map": (PointCloud2, RVIZ),
    "dynamic_points": (PointCloud2, RVIZ),
    "dynamic_mask": (Image, RVIZ),
    "depth/image": (Image, RVIZ),
    "depth/camera_info": (CameraInfo, RVIZ),
    "/diagnostics": (DiagnosticArray, RVIZ),
    "events": (String, LATCHED),
}


def new_domain():
    return 1 + _DOMAINS_EACH * (_WORKER % 4) + next(_DOMAINS) % _DOMAINS_EACH


def image_message(stamp_ns, size=SIZE, frame_id="camera_optical", **changes):
    """An rgb8 image; `changes` overwrite fields, so that broken ones can be made."""
    message = Image(height=size[0], width=size[1], encoding="rgb8", step=3 * size[1])
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    message.data = array("B", bytes(range(256)) * (size[0] * size[1] * 3 // 256))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def camera_info_message(size=SIZE, focal=60.0, **changes):
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    message = CameraInfo(height=size[0], width=size[1], distortion_model="plumb_bob")
    message.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
    message.d = [0.0] * 5
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


class Probe:
    """A camera and a listener in one, outside the node."""

    def __init__(
        self,
        context,
        name="recon4d_node",
        image="image",
        info="camera_info",
        kind=Image,
        beside=(),
    ):
        """`beside` are nodes of this process: `connected` waits until they see the listener."""
        self._beside = tuple(beside)
        self.node = rclpy.create_node(f"probe_{time.monotonic_ns()}", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self.heard = defaultdict(list)
        self.image = self.node.create_publisher(kind, image, 10)
        self.camera_info = self.node.create_publisher(CameraInfo, info, 10)
        self._name = name
        self._stamp_ns = START_NS

    def listen(self, *topics):
        for topic in topics:
            kind, profile = OUTPUTS[topic]
            name = topic if topic.startswith("/") else f"{self._name}/{topic}"
            self.node.create_subscription(kind, name, self.heard[topic].append, profile)
        return self

    def until(self, condition, what, timeout_s=WAIT_S):
        """Spin until `condition()`; fail with `what` when it does not come true in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} within {timeout_s} s"
            self._executor.spin_once(timeout_sec=0.05)

    def connected(self):
        """Wait for the node to hear the camera and for the camera to hear the node."""
        self.until(lambda: self.image.get_subscription_count() > 0, "an image subscriber")
        self.until(lambda: self.camera_info.get_subscription_count() > 0, "a camera_info one")
        for subscription in list(self.node.subscriptions):
            topic = subscription.topic_name
            self.until(
                lambda t=topic: self.node.count_publishers(t) > 0, f"a publisher of {topic}"
            )
            # Either end may know of the other one first, and what is sent before both do is lost.
            for publisher in self._publishers_beside(topic):
                self.until(
                    lambda p=publisher: p.get_subscription_count() > 0,
                    f"{topic} to be listened to",
                )
        return self

    def _publishers_beside(self, topic):
        return [p for node in self._beside for p in node.publishers if p.topic_name == topic]

    def next_stamp(self):
        self._stamp_ns += PERIOD_NS
        return self._stamp_ns

    def send(self, message=None, info=True):
        """One image (with a good camera_info before it); its stamp in ns."""
        message = message or image_message(self.next_stamp())
        if info:
            self.camera_info.publish(
                info if isinstance(info, CameraInfo) else camera_info_message()
            )
        self.image.publish(message)
        return stamp_ns(message)

    def send_and_wait(self, topic="pose", **options):
        """One image, and the answer to it on `topic`."""
        sent = self.send(**options)
        self.until(lambda: self.answer(topic, sent) is not None, f"{topic} of the image")
        return self.answer(topic, sent)

    def answer(self, topic, sent):
        return next((m for m in reversed(self.heard[topic]) if stamp_ns(m) == sent), None)

    def events(self):
        return [json.loads(message.data) for message in self.heard["events"]]

    def event(self, kind, timeout_s=WAIT_S):
        """The newest event of a kind, waited for."""
        self.until(lambda: any(e["kind"] == kind for e in self.events()), f"event {kind}")
        return [e for e in self.events() if e["kind"] == kind][-1]

    def diagnostics(self, part):
        """The newest status of a part: (level, message, values)."""
        for message in reversed(self.heard["/diagnostics"]):
            for status in message.status:
                if status.name == f"{self._name.lstrip('/')}: {part}":
                    values = {pair.key: pair.value for pair in status.values}
                    return status.level, status.message, values
        return b"\xff", "", {}

    def value(self, part, key):
        return self.diagnostics(part)[2].get(key)

    def close(self):
        self._executor.shutdown()
        self.node.destroy_node()


def parameters(**values):
    """Overrides; `__` in a name is a dot. Diagnostics come fast enough for a test."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    named.setdefault("output.diagnostics_rate", 10.0)
    # A best-effort subscriber may miss what is sent while it is still being connected.
    named.setdefault("input.reliability", "reliable")
    return [Parameter(name, value=value) for name, value in named.items()]


@contextmanager
def context_in(domain, args=()):
    """A ROS context whose participant is gone before the next one starts.

    Nodes are in reference cycles: until those are found their participant keeps its port, eleven
    threads and its place in the domain, where only the first few are looked for.
    """
    context = rclpy.Context()
    rclpy.init(
        args=["--ros-args", *args] if args else None,
        context=context,
        domain_id=domain,
        signal_handler_options=SignalHandlerOptions.NO,
    )
    try:
        yield context
    finally:
        rclpy.try_shutdown(context=context)
        gc.collect()


@contextmanager
def session(core=ExactCore, topics=(), args=(), domain=None, kind=Image, image="image", **values):
    """A node that spins in a thread, and a probe beside it: (probe, node, cores)."""
    cores = []

    def build(config):
        cores.append(core(config))
        return cores[-1]

    with context_in(domain or new_domain(), args) as context:
        options = {"context": context, "parameter_overrides": parameters(**values)}
        node = Recon4DNode(build_core=build, **options)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin)
        thread.start()
        probe = Probe(context, kind=kind, image=image, beside=[node]).listen(*topics)
        try:
            yield probe, node, cores
        finally:
            executor.shutdown()
            thread.join(WAIT_S)
            node.close()
            probe.close()
            node.destroy_node()


def process_environment(domain):
    keep = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    keep.pop("LD_LIBRARY_PATH", None)
    return {**keep, "ROS_DOMAIN_ID": str(domain)}


@contextmanager
def python_process(domain, *command):
    """A Python process in a ROS domain; killed at the end if a test left it alive."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=process_environment(domain),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def probe_in(domain, **options):
    """A probe alone in a domain, beside processes."""
    with context_in(domain) as context:
        probe = Probe(context, **options)
        try:
            yield probe
        finally:
            probe.close()

"""A camera, a listener and an exact reconstruction for tests of the node; no test in here."""

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
from dataclasses import replace
from pathlib import Path

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
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

from recon4d_ros.datatypes import (
    EventKind,
    Intrinsics,
    IntrinsicsSource,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackedFrame,
    TrackingState,
)
from recon4d_ros.errors import PredictorError
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


class ExactCore:
    """A camera that moves 0.1 along x per frame before a slanted wall, with one moving square.

    Frames become final after two more. `states` and `submaps` set what a frame number shows;
    `fail` raises at a frame number; `gate` and `map_gate` hold tracking and mapping up.
    """

    def __init__(self, config, states=None, submaps=None, fail=None, gate=None, map_gate=None):
        self.config = config
        self._states, self._submaps, self._fail = states or {}, submaps or {}, fail or {}
        self._gate, self._map_gate = gate, map_gate
        self.num_begun = 0
        self.frames = []
        self.mapped = []
        self._waiting = []
        self.num_resets = 0

    maps_aside = True

    def track(self, frame, on_pose=None, *, dense=True, exclusive=None):
        self.num_begun += 1
        if self._gate is not None:
            self._gate.wait(WAIT_S)
        if frame.index in self._fail:
            raise self._fail.pop(frame.index)
        if self.frames and frame.size != self.frames[-1].size:
            raise PredictorError("size changed")
        self.frames.append(frame)
        events = ()
        if frame.index == 0:
            events = (MapEvent(EventKind.INITIALISED, frame.stamp_ns, 0, "started"),)
        pose = self._reconstruct(frame)
        tracked = TrackedFrame(pose, None, 1.0, dense, None, events, {"track": 0.001})
        if on_pose is not None:
            with exclusive:
                on_pose(tracked)
        return tracked

    def map(self, tracked, on_provisional=None, on_window=None, exclusive=None):
        if self._map_gate is not None:
            self._map_gate.wait(WAIT_S)
        result = tracked.pose
        if on_provisional is not None:
            on_provisional(result)
        self._waiting.append(result)
        final = ()
        if len(self._waiting) > 2:
            final = (replace(self._waiting.pop(0), is_final=True),)
        events = self._window_events(result.frame)
        if on_window is not None:
            with exclusive:
                on_window(final, events)
        self.mapped.append(result.frame)
        return StepOutput(result, final, events, tracked.stage_seconds)

    def _window_events(self, frame):
        return ()

    def _reconstruct(self, frame):
        height, width = frame.size[0] // 2, frame.size[1] // 2
        state = self._states.get(frame.index, TrackingState.TRACKING)
        T_map_cam = torch.eye(4, dtype=torch.float64)
        T_map_cam[0, 3] = 0.1 * frame.index
        depth = (2.0 + torch.arange(width) / width).expand(height, width).clone()
        depth[0] = torch.nan
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[4:12, 6:16] = True
        known = frame.intrinsics is not None
        return Reconstruction(
            frame=frame,
            is_final=False,
            T_map_cam=None if state is TrackingState.LOST else T_map_cam,
            depth=depth.float(),
            confidence=torch.isfinite(depth).float(),
            dynamic_mask=mask,
            filled=mask,
            intrinsics=Intrinsics(30.0, 30.0, (width - 1) / 2, (height - 1) / 2, width, height),
            intrinsics_source=IntrinsicsSource.GIVEN if known else IntrinsicsSource.ESTIMATED,
            state=state,
            submap=self._submaps.get(frame.index, 0),
            scale_known=False,
            residual_px=0.2,
            num_support=100,
        )

    def static_map(self):
        num = len(self.frames)
        points = torch.arange(3 * num).reshape(num, 3).float()
        rgb = torch.tensor([[10, 20, 30]], dtype=torch.uint8).expand(num, 3).contiguous()
        return PointCloud(points, rgb, torch.ones(num), torch.full((num,), 2, dtype=torch.int32))

    def reset(self):
        self.num_resets += 1
        self.frames.clear()
        self._waiting.clear()
        return MapEvent(EventKind.RESET, 0, 0, "reset")


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


def leave(context):
    """Shut a context down, and its participant with it, before the next one starts.

    Nodes are in reference cycles: until those are found their participant keeps its port, eleven
    threads and its place in the domain, where only the first few are looked for.
    """
    rclpy.try_shutdown(context=context)
    gc.collect()


@contextmanager
def session(core=ExactCore, topics=(), args=(), domain=None, kind=Image, image="image", **values):
    """A node that spins in a thread, and a probe beside it: (probe, node, cores)."""
    context = rclpy.Context()
    rclpy.init(
        args=["--ros-args", *args] if args else None,
        context=context,
        domain_id=domain or new_domain(),
        signal_handler_options=SignalHandlerOptions.NO,
    )
    cores = []

    def build(config):
        cores.append(core(config))
        return cores[-1]

    node = Recon4DNode(build_core=build, context=context, parameter_overrides=parameters(**values))
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
        leave(context)


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
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    probe = Probe(context, **options)
    try:
        yield probe
    finally:
        probe.close()
        leave(context)

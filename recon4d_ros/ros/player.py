"""Plays a rosbag2: the recorded bytes at their recorded pace, with /clock.

Subscribers are waited for, since the first images would be lost otherwise. With `loop` the clock
jumps back to the start of the bag, as `ros2 bag play --loop` does.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from recon4d_ros.errors import MissingPrerequisiteError, SourceError
from recon4d_ros.ros.profile import ensure_transport_profile
from recon4d_ros.ros.signals import StopRequest
from recon4d_ros.ros.stamps import time_message
from recon4d_ros.storage.bag_damage import DAMAGE

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# Between two messages the clock goes on in these steps, and signals are looked at.
_TICK_S = 0.02
# A best-effort subscriber that we have found hears nothing before it has found us in turn.
_SETTLE_S = 0.5
# How long the last messages may be on their way.
_LAST_S = 1.0
# Images are large, and a subscriber that lags ten behind will not catch up.
_IMAGE_DEPTH, _DEPTH = 10, 100


@dataclass(frozen=True)
class PlayOptions:
    """How to play.

    Attributes:
        bag: folder of a rosbag2, or one .mcap or .db3 file.
        rate: playing speed over recording speed.
        loop: start again at the end, until stopped.
        topics: what to play; empty plays everything.
        wait_for: topics that need a subscriber before the start; empty means the image topics.
        subscribers: how many each of them needs.
        wait_s: longest wait for them; 0 starts at once.
        remap: `old:=new` topic names.
    """

    bag: Path
    rate: float = 1.0
    loop: bool = False
    topics: tuple[str, ...] = ()
    wait_for: tuple[str, ...] = ()
    subscribers: int = 1
    wait_s: float = 60.0
    remap: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `recon4d play`."""
    parser.add_argument("bag", type=Path, help="folder of a rosbag2, or one .mcap or .db3 file")
    parser.add_argument("--rate", type=float, default=1.0, help="playing speed (default 1)")
    parser.add_argument("--loop", action="store_true", help="start again at the end")
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="play these topics only"
    )
    parser.add_argument(
        "--wait-for",
        nargs="+",
        default=[],
        metavar="TOPIC",
        help="topics that need a subscriber before the start (default: the image topics)",
    )
    parser.add_argument(
        "--subscribers", type=int, default=1, metavar="N", help="how many each needs (default 1)"
    )
    parser.add_argument(
        "--wait", type=float, default=60.0, help="longest wait for them in s; 0: start at once"
    )
    parser.add_argument(
        "--remap", nargs="+", default=[], metavar="OLD:=NEW", help="other names for topics"
    )


def run(arguments: argparse.Namespace) -> int:
    """Play as the parsed arguments say; the exit code.

    Raises:
        SourceError: the bag cannot be played.
        MissingPrerequisiteError: nobody subscribed in time.
    """
    play(
        PlayOptions(
            bag=arguments.bag,
            rate=arguments.rate,
            loop=arguments.loop,
            topics=tuple(arguments.topics),
            wait_for=tuple(arguments.wait_for),
            subscribers=arguments.subscribers,
            wait_s=arguments.wait,
            remap=tuple(arguments.remap),
        )
    )
    return 0


def play(options: PlayOptions) -> None:
    """Play a bag in this process until it ends or SIGINT or SIGTERM comes.

    Raises:
        SourceError: the bag cannot be read, or holds nothing that can be played.
        MissingPrerequisiteError: a topic had no subscriber within the wait.
    """
    if not 0.0 < options.rate < float("inf"):
        raise SourceError(f"rate={options.rate} cannot be played; expected a number above 0")
    ensure_transport_profile()
    stop = StopRequest()
    with _ros_node(options.remap) as node, _open(options.bag) as reader:
        player = _Player(node, reader, options, stop)
        player.wait_for_subscribers()
        player.play_once()
        while options.loop and not stop.is_set:
            player.play_once()
        player.wait_until_received()
        stop.ignore_more()


class _Player:
    """Publishers for the topics of one open bag."""

    def __init__(
        self, node: Node, reader: Reader, options: PlayOptions, stop: StopRequest
    ) -> None:
        self._reader = reader
        self._options = options
        self._stop = stop
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._told_ns: int | None = None
        self._connections = _chosen(reader, options)
        self._publishers = {
            item.topic: _publisher(node, item, _message_type(item.msgtype))
            for item in self._connections
        }

    def wait_for_subscribers(self) -> None:
        """Wait until every topic of `wait_for` is heard.

        Raises:
            SourceError: a topic to wait for is not played.
            MissingPrerequisiteError: the time is over.
        """
        missing = self._topics_to_wait_for() if self._options.wait_s > 0.0 else []
        deadline_s = time.monotonic() + self._options.wait_s
        settle_s = _SETTLE_S if missing else 0.0
        text = f"waiting for subscribers of {', '.join(missing) or 'nothing'}"
        with tqdm(desc=text, bar_format="{desc}"):
            while missing and not self._stop.is_set:
                if time.monotonic() > deadline_s:
                    raise MissingPrerequisiteError(
                        f"{', '.join(missing)} had {self._too_few} within {self._options.wait_s} "
                        f"s; expected {self._options.subscribers}; start the node (remap its "
                        "'image'), or give --wait 0"
                    )
                time.sleep(_TICK_S)
                missing = [topic for topic in missing if not self._is_heard(topic)]
            time.sleep(settle_s)

    def play_once(self) -> None:
        """Publish every message at its time."""
        start_ns, start_s = self._reader.start_time, time.monotonic()
        duration_s = self._reader.duration / 1e9
        with tqdm(total=duration_s, unit="s", desc="playing", bar_format=_BAR) as progress:
            for connection, stamp_ns, content in self._messages():
                since_s = (stamp_ns - start_ns) / 1e9
                self._wait_until(start_s + since_s / self._options.rate, stamp_ns)
                if self._stop.is_set:
                    return
                self._tell_time(stamp_ns)
                self._publishers[connection.topic].publish(bytes(content))
                progress.update(since_s - progress.n)

    def _messages(self) -> Iterator[tuple[Connection, int, bytes]]:
        return _messages(self._options.bag, self._reader, self._connections)

    def wait_until_received(self) -> None:
        """Give reliable subscribers a moment, for all topics together, to receive the last."""
        deadline_s = time.monotonic() + _LAST_S
        for publisher in self._publishers.values():
            left_s = max(0.0, deadline_s - time.monotonic())
            publisher.wait_for_all_acked(Duration(nanoseconds=int(1e9 * left_s)))

    @property
    def _too_few(self) -> str:
        wanted = self._options.subscribers
        return "no subscriber" if wanted == 1 else f"fewer than {wanted} subscribers"

    def _topics_to_wait_for(self) -> list[str]:
        images = [item.topic for item in self._connections if item.msgtype in _IMAGES]
        wanted = list(self._options.wait_for) or images
        unknown = [topic for topic in wanted if topic not in self._publishers]
        if unknown:
            raise SourceError(
                f"{', '.join(unknown)} is not played, so nobody can be waited for on it; the "
                f"topics are {', '.join(self._publishers)}"
            )
        return wanted

    def _is_heard(self, topic: str) -> bool:
        return bool(self._publishers[topic].get_subscription_count() >= self._options.subscribers)

    def _wait_until(self, due_s: float, stamp_ns: int) -> None:
        """Wait for the time of the message at `stamp_ns`; meanwhile the clock goes on."""
        remaining_s = due_s - time.monotonic()
        while remaining_s > 0.0 and not self._stop.is_set:
            if remaining_s > _TICK_S:
                self._tell_time(stamp_ns - int(1e9 * remaining_s * self._options.rate))
            time.sleep(min(remaining_s, _TICK_S))
            remaining_s = due_s - time.monotonic()

    def _tell_time(self, stamp_ns: int) -> None:
        """Publish the time unless it was told: image and camera_info have the same."""
        if stamp_ns != self._told_ns:
            self._told_ns = stamp_ns
            self._clock.publish(Clock(clock=time_message(stamp_ns)))


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s"


@contextmanager
def _ros_node(remap: tuple[str, ...]) -> Iterator[Node]:
    rules = [part for rule in remap for part in ("-r", rule)]
    rclpy.init(
        args=["--ros-args", *rules] if rules else None,
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node = rclpy.create_node("recon4d_player")
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


@contextmanager
def _open(path: Path) -> Iterator[Reader]:
    with _reading(path):
        reader = Reader(path)
        reader.open()
    try:
        yield reader
    finally:
        reader.close()


def _messages(
    path: Path, reader: Reader, connections: list[Connection]
) -> Iterator[tuple[Connection, int, bytes]]:
    """Topic, time of recording in ns and content of every message, in order."""
    with _reading(path):
        yield from reader.messages(connections)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"cannot play the bag {path}: {reason}; expected a complete rosbag2 (mcap or "
            "sqlite3); record it again, or 'ros2 bag reindex' may mend it"
        ) from error


def _chosen(reader: Reader, options: PlayOptions) -> list[Connection]:
    """The connections to play: those asked for, of types that this machine knows."""
    present: Mapping[str, Connection] = {item.topic: item for item in reader.connections}
    unknown = [topic for topic in options.topics if topic not in present]
    if unknown:
        raise SourceError(
            f"{options.bag} has no topic {', '.join(unknown)}; it has {', '.join(present)}"
        )
    chosen = [item for item in reader.connections if item.topic != "/clock"]
    if options.topics:
        chosen = [item for item in chosen if item.topic in options.topics]
    playable = [item for item in chosen if _message_type(item.msgtype) is not None]
    for item in chosen:
        if item not in playable:
            tqdm.write(f"not played: {item.topic}, whose type {item.msgtype} is not installed")
    if not playable:
        raise SourceError(f"{options.bag} has nothing to play; expected messages of known types")
    return playable


def _message_type(name: str) -> Any:
    """The class of 'package/msg/Name', or None if that package is not installed."""
    package, _, kind = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind, None)
    except ImportError:
        return None


def _publisher(node: Node, connection: Connection, kind: Any) -> Publisher:
    """Reliable, which serves every subscriber; latched where the recorded publisher was."""
    offered = getattr(connection.ext, "offered_qos_profiles", ())
    is_latched = connection.topic.endswith("/tf_static") or any(
        profile.durability.name == "TRANSIENT_LOCAL" for profile in offered
    )
    durability = DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE
    depth = _IMAGE_DEPTH if connection.msgtype in _IMAGES else _DEPTH
    profile = QoSProfile(depth=depth, durability=durability)
    return node.create_publisher(kind, connection.topic, profile)

"""Records topics into a rosbag2 as raw bytes, each with the wall clock of its arrival.

`python -m recon4d_ros.ros.recorder BAG TOPIC[=TYPE] ...` waits for a publisher of every topic
whose type is not given, then makes the bag, so the bag's folder says that recording has begun.
SIGINT or SIGTERM completes it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from recon4d_ros.errors import MissingPrerequisiteError, OutputError, Recon4DError
from recon4d_ros.ros.executor import new_executor
from recon4d_ros.ros.profile import ensure_transport_profile
from recon4d_ros.ros.signals import StopRequest

# How long one wait lasts before signals and deadlines are looked at.
_TICK_S = 0.05
_DEPTH = 100


@dataclass(frozen=True)
class RecordOptions:
    """What to record.

    Attributes:
        bag: folder to make.
        topics: names, with the type ('package/msg/Name') where it is known before a publisher is
            there, else with an empty one.
        wait_s: longest wait for the publishers of the others.
    """

    bag: Path
    topics: Mapping[str, str]
    wait_s: float = 60.0


def record(options: RecordOptions) -> int:
    """Record until SIGINT or SIGTERM; the number of messages.

    Raises:
        MissingPrerequisiteError: a topic has no publisher in time.
        OutputError: the bag exists or cannot be written.
    """
    if options.bag.exists():
        raise OutputError(f"{options.bag} exists; expected a new folder; choose another name")
    ensure_transport_profile()
    stop = StopRequest()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("recon4d_recorder")
    try:
        topics = _wait_for_types(node, options, stop)
        return 0 if stop.is_set else _record_until(stop, node, options.bag, topics)
    finally:
        stop.ignore_more()
        node.destroy_node()
        rclpy.try_shutdown()


def _wait_for_types(node: Node, options: RecordOptions, stop: StopRequest) -> dict[str, str]:
    """Types of all topics, once those without one are published."""
    types = {topic: kind for topic, kind in options.topics.items() if kind}
    deadline_s = time.monotonic() + options.wait_s
    while not stop.is_set:
        published = {name: kinds[0] for name, kinds in node.get_topic_names_and_types()}
        missing = [name for name in options.topics if name not in types]
        types |= {name: published[name] for name in missing if name in published}
        missing = [name for name in missing if name not in types]
        if not missing:
            break
        if time.monotonic() > deadline_s:
            raise MissingPrerequisiteError(
                f"{', '.join(missing)} had no publisher within {options.wait_s} s; expected the "
                "node to run; start it first, in the same ROS domain"
            )
        time.sleep(_TICK_S)
    return types


def _record_until(stop: StopRequest, node: Node, bag: Path, topics: Mapping[str, str]) -> int:
    executor = new_executor()
    executor.add_node(node)
    try:
        with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            recording = _Recording(node, writer, topics)
            print(f"recording {', '.join(topics)}", flush=True)
            while not stop.is_set:
                executor.spin_once(timeout_sec=_TICK_S)
            recording.close()
    except (WriterError, OSError) as error:
        raise OutputError(
            f"cannot write the bag {bag}: {error}; free the disk or choose another place"
        ) from error
    finally:
        executor.shutdown()
    print(f"{recording.num_messages} messages in {bag}", flush=True)
    return recording.num_messages


class _Recording:
    """Subscriptions that write what they receive."""

    def __init__(self, node: Node, writer: Writer, topics: Mapping[str, str]) -> None:
        self.num_messages = 0
        self._node = node
        self._writer = writer
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._subscriptions = [self._subscribe(name, kind) for name, kind in topics.items()]

    def close(self) -> None:
        """Take the subscriptions away, so that nothing is written any more."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(self, topic: str, kind: str) -> Subscription:
        connection = self._writer.add_connection(topic, kind, typestore=self._types)
        return self._node.create_subscription(
            _message_class(kind),
            topic,
            partial(self._write, connection),
            _matching_qos(self._node, topic),
            raw=True,
        )

    def _write(self, connection: Connection, content: bytes) -> None:
        self._writer.write(connection, time.time_ns(), content)
        self.num_messages += 1


def _message_class(kind: str) -> type:
    """The class of 'package/msg/Name'.

    Raises:
        MissingPrerequisiteError: it is not installed.
    """
    package, _, name = kind.partition("/msg/")
    try:
        found: type = getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MissingPrerequisiteError(
            f"the message type {kind} is not installed; expected 'package/msg/Name'; install the "
            "package, or leave the topic out"
        ) from error
    return found


def _matching_qos(node: Node, topic: str) -> QoSProfile:
    """A profile that every present publisher of the topic satisfies; reliable if there is none."""
    offers = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
    profile = QoSProfile(depth=_DEPTH)
    if any(offer.reliability == ReliabilityPolicy.BEST_EFFORT for offer in offers):
        profile.reliability = ReliabilityPolicy.BEST_EFFORT
    latched = DurabilityPolicy.TRANSIENT_LOCAL
    if offers and all(offer.durability == latched for offer in offers):
        profile.durability = latched
    return profile


def main(arguments: Sequence[str] | None = None) -> int:
    """Record as the command line says; the exit code."""
    parser = argparse.ArgumentParser(description="Records topics into a new rosbag2 (mcap).")
    parser.add_argument("bag", type=Path, help="folder to make")
    parser.add_argument("topics", nargs="+", metavar="TOPIC[=TYPE]", help="what to record")
    parser.add_argument("--wait", type=float, default=60.0, help="for publishers, s (default 60)")
    given = parser.parse_args(arguments)
    topics = {name: kind for name, _, kind in (text.partition("=") for text in given.topics)}
    try:
        record(RecordOptions(given.bag, topics, given.wait))
    except Recon4DError as error:
        print(f"recorder: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

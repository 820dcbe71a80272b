"""TFMessage as built for environments without ROS: type, bytes, and the way between processes."""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from ros_support import WAIT_S, context_in, new_domain, python_process
from rosbags.typesys import Stores, get_typestore
from tf2_msgs.msg import TFMessage

NAME = "tf2_msgs/msg/TFMessage"
# As real robots print it (`ros2 topic info -v /tf`).
TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
STATIC = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def transform(number: int) -> TransformStamped:
    result = TransformStamped()
    result.header.frame_id, result.child_frame_id = "map", f"cam{number}"
    result.header.stamp.sec, result.header.stamp.nanosec = 100 + number, 5
    result.transform.translation.x = 0.5 * number
    result.transform.rotation.w = 1.0
    return result


def independent(store, number: int):
    """The same transform in the types of rosbags, which has its own encoder."""
    types = store.types
    header = types["std_msgs/msg/Header"](
        types["builtin_interfaces/msg/Time"](100 + number, 5), "map"
    )
    moved = types["geometry_msgs/msg/Vector3"](0.5 * number, 0.0, 0.0)
    turned = types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    pose = types["geometry_msgs/msg/Transform"](moved, turned)
    return types["geometry_msgs/msg/TransformStamped"](header, f"cam{number}", pose)


def test_bytes_agree_with_an_independent_encoder():
    store = get_typestore(Stores.ROS2_JAZZY)
    ours = TFMessage(transforms=[transform(1), transform(2)])
    theirs = store.types[NAME]([independent(store, 1), independent(store, 2)])
    assert store.hash_rihs01(NAME) == TYPE_HASH
    assert deserialize_message(bytes(store.serialize_cdr(theirs, NAME)), TFMessage) == ours
    # Bytes are not compared: Fast CDR leaves alignment padding unset.
    assert store.deserialize_cdr(serialize_message(ours), NAME) == theirs


@contextmanager
def listener(domain: int):
    """A node that spins in a thread of its own."""
    with context_in(domain) as context:
        node = rclpy.create_node("tf_listener", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin)
        thread.start()
        try:
            yield node
        finally:
            executor.shutdown()
            thread.join()
            node.destroy_node()


@pytest.mark.ros
def test_between_processes_with_the_type_of_real_robots():
    domain, got, got_static = new_domain(), [], []
    moving, static = threading.Event(), threading.Event()
    with listener(domain) as node, python_process(domain, Path(__file__)):
        node.create_subscription(TFMessage, "/tf", lambda m: (got.append(m), moving.set()), 100)
        assert moving.wait(WAIT_S)
        # A late joiner still gets the latched message.
        node.create_subscription(
            TFMessage, "/tf_static", lambda m: (got_static.append(m), static.set()), STATIC
        )
        assert static.wait(WAIT_S)
        (publisher,) = node.get_publishers_info_by_topic("/tf")
    assert publisher.topic_type == NAME
    assert str(publisher.topic_type_hash) == TYPE_HASH
    assert got[0] == TFMessage(transforms=[transform(1), transform(2)])
    assert got_static == [TFMessage(transforms=[transform(0)])]


def talk() -> None:
    """Publish until stopped."""
    rclpy.init()
    node = rclpy.create_node("tf_talker")
    static = node.create_publisher(TFMessage, "/tf_static", STATIC)
    static.publish(TFMessage(transforms=[transform(0)]))
    moving = node.create_publisher(TFMessage, "/tf", 100)
    both = TFMessage(transforms=[transform(1), transform(2)])
    node.create_timer(0.02, lambda: moving.publish(both))
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        sys.exit(0)


if __name__ == "__main__":
    talk()

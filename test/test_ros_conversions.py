"""Messages against the layouts that RViz, sensor_msgs_py and cv_bridge expect."""

import struct

import numpy as np
import pytest
import torch
from exact_core import ExactCore
from ros_support import stamp_ns
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointField
from std_msgs.msg import Header

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Intrinsics, PointCloud
from recon4d_ros.ros import conversions
from recon4d_ros.ros.stamps import header_message

STAMP_NS = 1_700_000_001_234_567_890
SIZES = {PointField.FLOAT32: "f", PointField.UINT32: "I", PointField.UINT8: "B"}


@pytest.fixture
def header():
    return header_message(STAMP_NS, "optical")


@pytest.fixture
def result():
    v, u = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    rgb = torch.stack([2 * u, 3 * v, torch.full_like(u, 100)], dim=-1).to(torch.uint8)
    tracked = ExactCore(Config()).track(Frame(0, STAMP_NS, rgb))
    return tracked.pose


def read_point(cloud, row, column):
    """One point by the message's own description, byte by byte."""
    start = row * cloud.row_step + column * cloud.point_step
    values = {}
    for field in cloud.fields:
        at = start + field.offset
        kind = "<" + SIZES[field.datatype]
        (values[field.name],) = struct.unpack_from(kind, bytes(cloud.data), at)
        if field.name == "rgb":
            # RViz reinterprets the four bytes of the float: blue, green, red, nothing.
            values["rgb"] = tuple(bytes(cloud.data)[at : at + 3][::-1])
    return values


def test_a_stamp_survives(header):
    assert header.stamp.sec * 10**9 + header.stamp.nanosec == STAMP_NS


def test_the_frame_cloud_is_organised_and_complete(header, result):
    cloud = conversions.frame_cloud(result, header)
    height, width = result.depth.shape
    assert (cloud.height, cloud.width) == (height, width) == (24, 32)
    assert cloud.row_step == cloud.point_step * width
    assert len(cloud.data) == cloud.row_step * height
    assert not cloud.is_dense
    names = ["x", "y", "z", "rgb", "confidence", "dynamic"]
    assert [field.name for field in cloud.fields] == names
    assert stamp_ns(cloud) == STAMP_NS


def test_a_point_lies_on_its_ray_with_its_colour(header, result):
    cloud = conversions.frame_cloud(result, header)
    camera = result.intrinsics
    row, column = 7, 20
    point = read_point(cloud, row, column)
    depth = float(result.depth[row, column])
    expected = ((column - camera.cx) / camera.fx * depth, (row - camera.cy) / camera.fy * depth)
    assert (point["x"], point["y"], point["z"]) == pytest.approx((*expected, depth), rel=1e-6)
    # The dense grid is half the image; its pixel (20, 7) lies at (40.5, 14.5).
    assert np.allclose(point["rgb"], (2 * 40.5, 3 * 14.5, 100), atol=1.0)
    assert (point["confidence"], point["dynamic"]) == (1.0, 0)
    assert read_point(cloud, 5, 7)["dynamic"] == 1


def test_unknown_depth_is_nan(header, result):
    point = read_point(conversions.frame_cloud(result, header), 0, 3)
    assert all(np.isnan(point[axis]) for axis in "xyz")


def test_the_dynamic_cloud_holds_the_moving_points_only(header, result):
    cloud = conversions.dynamic_cloud(result, header)
    assert (cloud.height, cloud.width) == (1, int(result.dynamic_mask.sum()))
    points = [read_point(cloud, 0, column) for column in range(cloud.width)]
    assert all(point["dynamic"] == 1 and np.isfinite(point["z"]) for point in points)


def test_the_map_cloud_and_an_empty_one(header):
    cloud = PointCloud(
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        torch.tensor([[255, 0, 7], [1, 2, 3]], dtype=torch.uint8),
        torch.tensor([0.5, 0.25]),
        torch.tensor([3, 9], dtype=torch.int32),
    )
    message = conversions.map_cloud(cloud, header)
    assert (message.height, message.width) == (1, 2)
    assert read_point(message, 0, 1) == {
        "x": 4.0,
        "y": 5.0,
        "z": 6.0,
        "rgb": (1, 2, 3),
        "confidence": 0.25,
        "observations": 9,
    }
    empty = PointCloud(cloud.points[:0], cloud.rgb[:0], cloud.confidence[:0], torch.zeros(0))
    assert len(conversions.map_cloud(empty, header).data) == 0


def test_images_carry_their_encoding_and_rows(header):
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 2] = True
    message = conversions.image_message(mask, header)
    assert (message.encoding, message.step, message.height, message.width) == ("mono8", 5, 3, 5)
    assert list(message.data) == [255 if n == 7 else 0 for n in range(15)]
    depth = torch.full((2, 3), 1.5)
    depth[0, 0] = torch.nan
    message = conversions.image_message(depth, header)
    assert (message.encoding, message.step) == ("32FC1", 12)
    assert np.frombuffer(message.data, "<f4")[1:].tolist() == [1.5] * 5


def test_camera_info_describes_a_rectified_pinhole(header):
    info = conversions.camera_info_message(Intrinsics(300.0, 310.0, 15.5, 11.5, 32, 24), header)
    assert (info.width, info.height, info.distortion_model) == (32, 24, "plumb_bob")
    assert list(info.k) == [300.0, 0.0, 15.5, 0.0, 310.0, 11.5, 0.0, 0.0, 1.0]
    assert list(info.p) == [300.0, 0, 15.5, 0, 0, 310.0, 11.5, 0, 0, 0, 1.0, 0]
    assert not any(info.d)


@pytest.mark.parametrize("seed", range(5))
def test_poses_agree_with_scipy_and_with_the_transform(header, seed):
    rotation = Rotation.random(random_state=seed)
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.from_numpy(rotation.as_matrix())
    T[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
    pose = conversions.pose_message(T, header)
    transform = conversions.transform_message(pose, "optical")
    assert transform.header == header and transform.child_frame_id == "optical"
    q = transform.transform.rotation
    assert abs(np.dot([q.x, q.y, q.z, q.w], rotation.as_quat())) == pytest.approx(1.0)
    assert torch.allclose(conversions.matrix_of_transform(transform.transform), T)
    assert pose.pose.orientation == q
    assert (pose.pose.position.x, pose.pose.position.z) == (1.0, 3.0)
    odometry = conversions.odometry_message(pose, "optical")
    assert odometry.pose.pose == pose.pose
    assert odometry.child_frame_id == "optical"


def test_clouds_agree_with_sensor_msgs_py(header, result):
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2", reason="sensor_msgs_py comes with a ROS 2 installation only"
    )
    cloud = conversions.frame_cloud(result, header)
    points = point_cloud2.read_points(cloud, ["x", "y", "z", "confidence", "dynamic"])
    points = points.reshape(cloud.height, cloud.width)
    for row, column in [(0, 0), (5, 7), (23, 31)]:
        mine = read_point(cloud, row, column)
        theirs = {name: points[row, column][name] for name in points.dtype.names}
        for name, value in theirs.items():
            np.testing.assert_equal(np.float32(mine[name]), np.float32(value))


def test_images_agree_with_cv_bridge(header, result):
    cv_bridge = pytest.importorskip(
        "cv_bridge", reason="cv_bridge comes with a ROS 2 installation only"
    )
    bridge = cv_bridge.CvBridge()
    for image in (result.dynamic_mask, result.depth, result.frame.rgb):
        message = conversions.image_message(image, header)
        theirs = bridge.imgmsg_to_cv2(message)
        scale = 255 if image.dtype == torch.bool else 1
        np.testing.assert_array_equal(theirs, image.numpy() * np.asarray(scale, theirs.dtype))


def test_quaternions_agree_with_tf_transformations(header):
    tf_transformations = pytest.importorskip(
        "tf_transformations", reason="tf_transformations comes with a ROS 2 installation only"
    )
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=3).as_matrix()
    q = conversions.pose_message(torch.from_numpy(T), Header()).pose.orientation
    theirs = tf_transformations.quaternion_from_matrix(T)
    assert abs(np.dot(theirs, [q.x, q.y, q.z, q.w])) == pytest.approx(1.0)

"""Static mounts and the frame that is published."""

import pytest
import torch
from geometry_msgs.msg import TransformStamped
from scipy.spatial.transform import Rotation

from recon4d_ros.config import FramesConfig
from recon4d_ros.errors import FrameError
from recon4d_ros.ros.transforms import PoseFrames, StaticTree


def transform(parent, child, rotation, translation):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    q, t = message.transform.rotation, message.transform.translation
    q.x, q.y, q.z, q.w = rotation.as_quat()
    t.x, t.y, t.z = translation
    return message


def matrix(rotation, translation):
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.from_numpy(rotation.as_matrix())
    T[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return T


MAST = Rotation.from_euler("xyz", [0.1, -0.2, 0.3]), (0.1, 0.0, 1.2)
OPTICAL = Rotation.from_euler("xyz", [-1.5708, 0.0, -1.5708]), (0.02, 0.01, 0.0)
LIDAR = Rotation.from_euler("xyz", [0.0, 0.0, 3.0]), (-0.3, 0.0, 0.8)


@pytest.fixture
def tree():
    tree = StaticTree()
    tree.add([transform("mast", "optical", *OPTICAL)])
    tree.add([transform("base", "mast", *MAST), transform("base", "lidar", *LIDAR)])
    return tree


def test_lookup_goes_down_and_up(tree):
    T_base_optical = matrix(*MAST) @ matrix(*OPTICAL)
    assert torch.allclose(tree.lookup("base", "optical"), T_base_optical)
    assert torch.allclose(tree.lookup("optical", "base"), torch.linalg.inv(T_base_optical))
    T_lidar_optical = torch.linalg.inv(matrix(*LIDAR)) @ T_base_optical
    assert torch.allclose(tree.lookup("lidar", "optical"), T_lidar_optical)


def test_unconnected_frames_are_named(tree):
    with pytest.raises(FrameError, match="'gripper' is missing") as error:
        tree.lookup("gripper", "optical")
    assert "'optical' is known" in str(error.value)


def test_a_loop_ends(tree):
    tree.add([transform("optical", "base", *MAST)])
    with pytest.raises(FrameError):
        tree.lookup("nowhere", "optical")


def test_a_transform_without_rotation_is_refused():
    message = transform("base", "optical", *MAST)
    message.transform.rotation.w = float("nan")
    tree = StaticTree()
    assert "optical" in tree.add([message])[0]
    with pytest.raises(FrameError):
        tree.lookup("base", "optical")


def test_without_a_base_the_camera_is_published(tree):
    T_map_cam = matrix(*LIDAR)
    child, T = PoseFrames(FramesConfig(), tree).published(T_map_cam, "/optical")
    assert child == "optical"
    assert torch.equal(T, T_map_cam)


def test_with_a_base_its_pose_is_published(tree):
    frames = PoseFrames(FramesConfig(base="base"), tree)
    T_map_cam = matrix(*LIDAR)
    child, T_map_base = frames.published(T_map_cam, "optical")
    assert child == "base"
    # The chain that a TF listener forms leads back to the camera's pose.
    assert torch.allclose(T_map_base @ matrix(*MAST) @ matrix(*OPTICAL), T_map_cam)


def test_an_unknown_mount_or_a_nameless_camera_publishes_nothing(tree):
    with pytest.raises(FrameError, match="base_link"):
        PoseFrames(FramesConfig(base="base_link"), tree).published(torch.eye(4), "optical")
    with pytest.raises(FrameError, match="set the parameter frames"):
        PoseFrames(FramesConfig(), tree).published(torch.eye(4), "")
    child, _ = PoseFrames(FramesConfig(camera="eye"), tree).published(torch.eye(4), "")
    assert child == "eye"

"""Everything a configured node publishes about its frames.

Dense messages are made only while somebody listens. Poses are published first: robots wait for
them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from torch import Tensor

from recon4d_ros.config import OutputConfig
from recon4d_ros.datatypes import MapCorrection, PointCloud, Reconstruction
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.ros import conversions, qos
from recon4d_ros.ros.intake import Admitted
from recon4d_ros.ros.stamps import header_message
from recon4d_ros.ros.transforms import PoseFrames


class PathHistory:
    """The newest poses of one submap, bounded; a frame's final pose replaces its first one.

    Not for two threads at once.
    """

    def __init__(self, max_length: int) -> None:
        """Hold at most `max_length` poses."""
        self._max_length = max_length
        self._poses: OrderedDict[int, PoseStamped] = OrderedDict()

    def append(self, index: int, pose: PoseStamped) -> None:
        """Add the pose of a new frame."""
        self._poses[index] = pose
        while len(self._poses) > self._max_length:
            self._poses.popitem(last=False)

    def replace(self, index: int, pose: PoseStamped) -> None:
        """Set the pose of a frame that is still held."""
        if index in self._poses:
            self._poses[index] = pose

    def correct(self, correction: MapCorrection, T_cam_child: Tensor) -> None:
        """Move the poses with the map; `T_cam_child` is how the published frame is mounted.

        Distances within the robot are no lengths of the map, so that its camera is moved.
        """
        if not self._poses:
            return
        at = torch.tensor(list(self._poses))
        S = sim3.interpolate(correction.indices, correction.S_new_old, at)
        T_map_child = conversions.matrices_of_poses(self._poses.values())
        T_map_cam = T_map_child @ se3.inverse(T_cam_child)
        moved = sim3.transform_pose(S, T_map_cam) @ T_cam_child
        headers = [pose.header for pose in self._poses.values()]
        messages = conversions.pose_messages(moved, headers)
        self._poses = OrderedDict(zip(self._poses, messages, strict=True))

    def clear(self) -> None:
        """Forget every pose."""
        self._poses.clear()

    def poses(self) -> list[PoseStamped]:
        """Oldest first."""
        return list(self._poses.values())


class Outputs:
    """The publishers of a configured node."""

    def __init__(self, node: Node, config: OutputConfig, frames: PoseFrames) -> None:
        """Make the publishers."""
        self._node = node
        self._config = config
        self._frames = frames
        self._path_history = PathHistory(config.path_length)
        self._publishers: list[Publisher] = []
        self._tf = self._make(TFMessage, "/tf", qos.TF)
        self._pose = self._make(PoseStamped, "~/pose")
        self._odometry = self._make(Odometry, "~/odometry")
        self._path = self._make(Path, "~/path")
        self._map_correction = self._make(PointCloud2, "~/map_correction")
        self._points = self._make(PointCloud2, "~/points")
        self._dynamic_points = self._make(PointCloud2, "~/dynamic_points")
        self._dynamic_mask = self._make(Image, "~/dynamic_mask")
        self._tracks = self._make(PointCloud2, "~/tracks")
        self._depth = self._make(Image, "~/depth/image")
        self._depth_info = self._make(CameraInfo, "~/depth/camera_info")
        self._static_map = self._make(PointCloud2, "~/static_map", qos.LATCHED)

    def _make(self, kind: type, topic: str, profile: QoSProfile = qos.OUTPUT) -> Publisher:
        publisher = self._node.create_publisher(kind, topic, profile)
        self._publishers.append(publisher)
        return publisher

    def destroy(self) -> None:
        """Take the publishers away."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._publishers.clear()

    def restart(self) -> None:
        """Forget the path: what follows shares no coordinates with it."""
        self._path_history.clear()

    def publish_pose(self, result: Reconstruction, T_map_cam: Tensor, admitted: Admitted) -> None:
        """TF, pose, odometry and path of a new frame.

        Raises:
            FrameError: the frame to publish is unknown (see `PoseFrames`); nothing is published.
        """
        child, T_map_child = self._frames.published(T_map_cam, admitted.header.frame_id)
        header = Header(stamp=admitted.header.stamp, frame_id=self._frames.map)
        pose = conversions.pose_message(T_map_child, header)
        if self._config.publish_tf:
            transform = conversions.transform_message(pose, child)
            self._tf.publish(TFMessage(transforms=[transform]))
        self._pose.publish(pose)
        self._odometry.publish(conversions.odometry_message(pose, child))
        self._path_history.append(result.frame.index, pose)
        self._publish_path(header)

    def _publish_path(self, header: Header) -> None:
        if _is_heard(self._path):
            path = conversions.path_message(self._path_history.poses(), header)
            self._path.publish(path)

    def publish_correction(self, correction: MapCorrection, header: Header) -> None:
        """How the map has moved, as of the frame with this stamp."""
        in_map = Header(stamp=header.stamp, frame_id=self._frames.map)
        self._map_correction.publish(conversions.correction_table(correction, in_map))

    def correct_path(self, correction: MapCorrection, header: Header) -> None:
        """Move the path with the map and publish it anew.

        Args:
            correction: of the submap that the path lies in.
            header: of the image that brought it.

        Raises:
            FrameError: as `publish_pose`.
        """
        eye = torch.eye(4, dtype=torch.float64)
        _, T_cam_child = self._frames.published(eye, header.frame_id)
        self._path_history.correct(correction, T_cam_child)
        self._publish_path(Header(stamp=header.stamp, frame_id=self._frames.map))

    def revise_path(self, final: Reconstruction, frame_id: str) -> None:
        """Put the final pose of an earlier frame into the path.

        Raises:
            FrameError: as `publish_pose`.
        """
        if final.T_map_cam is None:
            return
        _, T_map_child = self._frames.published(final.T_map_cam, frame_id)
        header = header_message(final.frame.stamp_ns, self._frames.map)
        pose = conversions.pose_message(T_map_child, header)
        self._path_history.replace(final.frame.index, pose)

    def publish_tracks(self, final: Reconstruction) -> None:
        """Smoothed tracks of an earlier frame, in the map, with the stamp of its image."""
        if final.tracks is not None and _is_heard(self._tracks):
            header = header_message(final.frame.stamp_ns, self._frames.map)
            self._tracks.publish(conversions.tracks_cloud(final.tracks, header))

    def publish_dense(self, result: Reconstruction, admitted: Admitted) -> None:
        """Depth, mask and clouds of a new frame, in the frame of its camera."""
        camera = self._frames.camera(admitted.header.frame_id)
        header = Header(stamp=admitted.header.stamp, frame_id=camera)
        self._publish_depth(result, header)
        if _is_heard(self._dynamic_mask):
            # The mask belongs to the input image and carries its very header.
            mask = admitted.rectifier.mask_to_input(result.dynamic_mask)
            self._dynamic_mask.publish(conversions.image_message(mask, admitted.header))
        if _is_heard(self._points):
            self._points.publish(conversions.frame_cloud(result, header))
        if _is_heard(self._dynamic_points):
            self._dynamic_points.publish(conversions.dynamic_cloud(result, header))

    def _publish_depth(self, result: Reconstruction, header: Header) -> None:
        if _is_heard(self._depth):
            depth = torch.where(torch.isfinite(result.depth), result.depth, torch.nan)
            self._depth.publish(conversions.image_message(depth, header))
        if _is_heard(self._depth_info):
            info = conversions.camera_info_message(result.intrinsics, header)
            self._depth_info.publish(info)

    @property
    def num_map_listeners(self) -> int:
        """How many listen to the static map."""
        return int(self._static_map.get_subscription_count())

    def publish_map(self, cloud: PointCloud, stamp_ns: int) -> None:
        """The static map as of the frame with this stamp."""
        header = header_message(stamp_ns, self._frames.map)
        self._static_map.publish(conversions.map_cloud(cloud, header))


def _is_heard(publisher: Publisher) -> bool:
    return bool(publisher.get_subscription_count() > 0)

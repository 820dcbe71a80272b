"""Results of the core as ROS messages.

Every message of one frame carries the header of its image: its stamp and, for dense outputs, its
frame. Bulk data goes through `array.array`, the only way into a message field without a copy per
element.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from geometry_msgs.msg import Pose, PoseStamped, Transform, TransformStamped
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header
from torch import Tensor

from recon4d_ros.datatypes import (
    Intrinsics,
    MapCorrection,
    PointCloud,
    Reconstruction,
    Tracks3D,
)
from recon4d_ros.geometry import image_grid, pointmap, se3, sim3
from recon4d_ros.storage.messages import encode_image

# Bytes 0-11 x y z, 12-15 colour as RViz expects it, then our own fields. 4-byte aligned.
_POINT = np.dtype(
    {
        "names": ["x", "y", "z", "rgb", "confidence", "dynamic"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "<f4", "u1"],
        "offsets": [0, 4, 8, 12, 16, 20],
        "itemsize": 24,
    }
)
_MAP_POINT = np.dtype(
    {
        "names": ["x", "y", "z", "rgb", "confidence", "observations"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "<f4", "<u4"],
    }
)
_TRACK = np.dtype(
    {
        "names": ["x", "y", "z", "id", "age", "mobility"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "<u4", "<f4"],
    }
)
# A similarity of the map; the stamp is that of the time it belongs to.
_ANCHOR = np.dtype(
    {
        "names": ["x", "y", "z", "qx", "qy", "qz", "qw", "scale", "sec", "nanosec"],
        "formats": ["<f8"] * 8 + ["<i4", "<u4"],
    }
)
_FIELD_TYPES = {
    "<f8": PointField.FLOAT64,
    "<f4": PointField.FLOAT32,
    "<i4": PointField.INT32,
    "<u4": PointField.UINT32,
    "|u1": PointField.UINT8,
}

Records = npt.NDArray[np.void]


def byte_array(values: npt.NDArray[np.uint8]) -> array[int]:
    """Bytes (P,), contiguous, for a `uint8[]` field."""
    data = array("B")
    data.frombytes(values.data)
    return data


def image_message(image: Tensor, header: Header) -> Image:
    """mono8 of (H, W) bool, 32FC1 of (H, W) float32, rgb8 of (H, W, 3) uint8.

    Raises:
        FrameError: another shape or type.
    """
    encoded = encode_image(image)
    return Image(
        header=header,
        height=encoded.height,
        width=encoded.width,
        encoding=encoded.encoding,
        is_bigendian=encoded.is_bigendian,
        step=encoded.step,
        data=byte_array(encoded.data),
    )


def camera_info_message(intrinsics: Intrinsics, header: Header) -> CameraInfo:
    """The pinhole of a rectified image: no distortion, P = [K | 0]."""
    K = intrinsics.K
    P = torch.cat([K, torch.zeros(3, 1, dtype=K.dtype)], dim=1)
    return CameraInfo(
        header=header,
        height=intrinsics.height,
        width=intrinsics.width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=K.flatten().tolist(),
        r=torch.eye(3, dtype=K.dtype).flatten().tolist(),
        p=P.flatten().tolist(),
    )


def frame_cloud(result: Reconstruction, header: Header) -> PointCloud2:
    """Every pixel of the dense grid, organised (width = W), in the frame of the camera.

    Fields x y z rgb confidence dynamic; x y z are NaN where the depth is unknown.
    """
    return _cloud_message(_frame_records(result), header, is_dense=False)


def dynamic_cloud(result: Reconstruction, header: Header) -> PointCloud2:
    """The pixels that move and have a depth, unorganised, in the frame of the camera."""
    keep = result.dynamic_mask & torch.isfinite(result.depth)
    records = _frame_records(result)[keep.numpy()]
    return _cloud_message(records[None], header, is_dense=True)


def map_cloud(cloud: PointCloud, header: Header) -> PointCloud2:
    """The static map, unorganised: x y z rgb confidence observations."""
    records = np.zeros(cloud.points.shape[0], _MAP_POINT)
    _set_xyz(records, cloud.points)
    records["rgb"] = _packed_rgb(cloud.rgb)
    records["confidence"] = cloud.confidence.numpy()
    records["observations"] = cloud.num_observations.numpy()
    return _cloud_message(records[None], header, is_dense=True)


def tracks_cloud(tracks: Tracks3D, header: Header) -> PointCloud2:
    """Smoothed tracks of one frame, unorganised, in the map: x y z id age mobility.

    The same id is the same physical point from frame to frame; age counts frames since it was
    first seen.
    """
    records = np.zeros(len(tracks.ids), _TRACK)
    _set_xyz(records, tracks.points)
    records["id"] = tracks.ids.numpy() % 2**32
    records["age"] = tracks.age.numpy()
    records["mobility"] = tracks.mobility.numpy()
    return _cloud_message(records[None], header, is_dense=True)


def correction_table(correction: MapCorrection, header: Header) -> PointCloud2:
    """A correction of the map, one row per anchor: x y z qx qy qz qw scale sec nanosec.

    What lay at p in the map lies at scale R(q) p + (x, y, z) now, between the rows' times by the
    rows on either side, from the last row's time on by the last row.
    """
    scale, T = sim3.split(correction.S_new_old)
    quat_xyzw = se3.matrix_to_quat_xyzw(T[:, :3, :3])
    values = torch.cat([T[:, :3, 3], quat_xyzw, scale[:, None]], dim=1).numpy()
    records = np.zeros(len(values), _ANCHOR)
    for column, name in enumerate(_ANCHOR.names or ()):
        if column < values.shape[1]:
            records[name] = values[:, column]
    records["sec"], records["nanosec"] = np.divmod(correction.stamps_ns.numpy(), 1_000_000_000)
    return _cloud_message(records[None], header, is_dense=True)


def _frame_records(result: Reconstruction) -> Records:
    """(H, W) records of `_POINT`."""
    records = np.zeros(result.depth.shape, _POINT)
    _set_xyz(records, pointmap.from_depth(result.depth, result.intrinsics))
    rgb = image_grid.resize_image(result.frame.rgb, result.intrinsics.size)
    records["rgb"] = _packed_rgb(rgb)
    records["confidence"] = result.confidence.numpy()
    records["dynamic"] = result.dynamic_mask.numpy()
    return records


def _set_xyz(records: Records, points: Tensor) -> None:
    for axis, name in enumerate("xyz"):
        records[name] = points[..., axis].numpy()


def _packed_rgb(rgb: Tensor) -> npt.NDArray[np.uint32]:
    """0x00RRGGBB of (..., 3) uint8; RViz reads its bytes behind a FLOAT32 field."""
    r, g, b = (rgb[..., axis].numpy().astype(np.uint32) for axis in range(3))
    packed: npt.NDArray[np.uint32] = np.bitwise_or.reduce([r << 16, g << 8, b])
    return packed


def _cloud_message(records: Records, header: Header, *, is_dense: bool) -> PointCloud2:
    """A cloud of (H, W) records; width = W, height = H."""
    height, width = records.shape
    step = records.dtype.itemsize
    return PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=_fields(records.dtype),
        is_bigendian=False,
        point_step=step,
        row_step=step * width,
        data=byte_array(np.ascontiguousarray(records).reshape(-1).view(np.uint8)),
        is_dense=is_dense,
    )


def _fields(record: np.dtype[np.void]) -> list[PointField]:
    layout: Mapping[str, Any] = record.fields or {}
    return [
        PointField(
            name=name,
            offset=layout[name][1],
            datatype=PointField.FLOAT32 if name == "rgb" else _FIELD_TYPES[layout[name][0].str],
            count=1,
        )
        for name in record.names or ()
    ]


def pose_message(T_target_source: Tensor, header: Header) -> PoseStamped:
    """A pose (4, 4) in the frame of the header."""
    quat_xyzw = se3.matrix_to_quat_xyzw(T_target_source[:3, :3])
    return _pose_stamped(T_target_source[:3, 3].tolist(), quat_xyzw.tolist(), header)


def pose_messages(T_target_source: Tensor, headers: Iterable[Header]) -> list[PoseStamped]:
    """Poses (N, 4, 4), each in the frame of its header."""
    quats_xyzw = se3.matrix_to_quat_xyzw(T_target_source[:, :3, :3])
    places = zip(T_target_source[:, :3, 3].tolist(), quats_xyzw.tolist(), headers, strict=True)
    return [_pose_stamped(*place) for place in places]


def _pose_stamped(xyz: list[float], quat_xyzw: list[float], header: Header) -> PoseStamped:
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = xyz
    _set_quaternion(pose.orientation, quat_xyzw)
    return PoseStamped(header=header, pose=pose)


def transform_message(pose: PoseStamped, child: str) -> TransformStamped:
    """The same pose as TF: its frame is the target, `child` the source."""
    transform, position = Transform(rotation=pose.pose.orientation), pose.pose.position
    at = transform.translation
    at.x, at.y, at.z = position.x, position.y, position.z
    return TransformStamped(header=pose.header, child_frame_id=child, transform=transform)


def odometry_message(pose: PoseStamped, child: str) -> Odometry:
    """The same pose as odometry; velocities are not estimated, so their covariance is -1."""
    odometry = Odometry(header=pose.header, child_frame_id=child)
    odometry.pose.pose = pose.pose
    odometry.twist.covariance[0] = -1.0
    return odometry


def path_message(poses: list[PoseStamped], header: Header) -> Path:
    """Poses, oldest first, in one frame."""
    return Path(header=header, poses=poses)


def matrix_of_transform(transform: Transform) -> Tensor:
    """T_target_source (4, 4) float64 of a TF.

    Raises:
        GeometryError: the quaternion has no length, or a number is not finite.
    """
    q, t = transform.rotation, transform.translation
    quat_xyzw = torch.tensor([q.x, q.y, q.z, q.w], dtype=torch.float64)
    translation = torch.tensor([t.x, t.y, t.z], dtype=torch.float64)
    return se3.make(se3.quat_xyzw_to_matrix(quat_xyzw), translation)


def matrices_of_poses(poses: Iterable[PoseStamped]) -> Tensor:
    """T_target_source (N, 4, 4) float64 of poses."""
    values = torch.tensor(
        [
            [p.x, p.y, p.z, q.x, q.y, q.z, q.w]
            for p, q in ((each.pose.position, each.pose.orientation) for each in poses)
        ],
        dtype=torch.float64,
    )
    return se3.make(se3.quat_xyzw_to_matrix(values[:, 3:]), values[:, :3])


def _set_quaternion(message: Any, quat_xyzw: list[float]) -> None:
    message.x, message.y, message.z, message.w = quat_xyzw


if sys.byteorder != "little":  # pragma: no cover - no such ROS 2 platform is known
    raise ImportError("recon4d_ros writes little-endian messages; this machine is big-endian")

"""Point clouds as binary little-endian PLY, readable by MeshLab, CloudCompare and Blender."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recon4d_ros.datatypes import PointCloud
from recon4d_ros.errors import OutputError, SourceError

_POINT = np.dtype(
    [
        ("xyz", "<f4", (3,)),
        ("rgb", "u1", (3,)),
        ("confidence", "<f4"),
        ("observations", "<i4"),
    ]
)
_PROPERTIES = (
    "property float x",
    "property float y",
    "property float z",
    "property uchar red",
    "property uchar green",
    "property uchar blue",
    "property float confidence",
    "property int observations",
)


def _header(num_points: int) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", "comment recon4d_ros, map frame"]
    lines += [f"element vertex {num_points}", *_PROPERTIES, "end_header"]
    return "".join(f"{line}\n" for line in lines).encode()


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write a cloud.

    Raises:
        OutputError: the file cannot be written.
    """
    points = np.zeros(len(cloud.points), _POINT)
    points["xyz"] = cloud.points.numpy()
    points["rgb"] = cloud.rgb.numpy()
    points["confidence"] = cloud.confidence.numpy()
    points["observations"] = cloud.num_observations.numpy()
    try:
        path.write_bytes(_header(len(points)) + points.tobytes())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; choose another place"
        ) from error


def read_ply(path: Path) -> PointCloud:
    """Read a cloud written by `write_ply`.

    Raises:
        SourceError: the file cannot be read, has other properties, or is truncated.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read the cloud {path}: {error.strerror}") from error
    head, end, body = content.partition(b"end_header\n")
    num_points = _num_vertices(head)
    if not end or head + end != _header(num_points):
        raise SourceError(
            f"{path} is no cloud of recon4d_ros; expected a binary PLY with "
            + ", ".join(_PROPERTIES)
        )
    if len(body) != num_points * _POINT.itemsize:
        raise SourceError(
            f"{path} holds {len(body)} bytes for {num_points} points; expected "
            f"{num_points * _POINT.itemsize}; it was cut off, write it again"
        )
    points = np.frombuffer(body, _POINT)
    return PointCloud(
        torch.from_numpy(points["xyz"].copy()),
        torch.from_numpy(points["rgb"].copy()),
        torch.from_numpy(points["confidence"].copy()),
        torch.from_numpy(points["observations"].copy()),
    )


def _num_vertices(head: bytes) -> int:
    for line in head.splitlines():
        words = line.split()
        if words[:2] == [b"element", b"vertex"] and len(words) == 3 and words[2].isdigit():
            return int(words[2])
    return 0

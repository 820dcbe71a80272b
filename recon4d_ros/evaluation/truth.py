"""The ground truth that lies beside the images of a sequence folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import SourceError

DEPTH_MAX_DIFFERENCE_NS = 20_000_000  # colour and depth of one RGB-D frame, TUM's own bound
MASK_THRESHOLD = 127


@dataclass(frozen=True)
class StampedFile:
    """One row of rgb.txt or depth.txt."""

    stamp_ns: int
    path: Path


@dataclass(frozen=True)
class SequenceTruth:
    """What is known of a sequence; what does not exist is None or empty.

    Attributes:
        images: the frames of rgb.txt.
        trajectory: true camera poses.
        depth: the true depth image of a frame's stamp.
        depth_scale: units of the depth images per metre.
        masks: the true mask of a frame's stamp.
    """

    images: tuple[StampedFile, ...]
    trajectory: Trajectory | None
    depth: dict[int, Path]
    depth_scale: float
    masks: dict[int, Path]


def read_truth(sequence: Path) -> SequenceTruth:
    """Find the ground truth of a sequence folder; images stay on the disk.

    Raises:
        SourceError: a file is missing or malformed.
    """
    images = read_listing(sequence / "rgb.txt")
    poses = [sequence / name for name in ("groundtruth.txt", "reference_rgbd.txt")]
    found = next((path for path in poses if path.is_file()), None)
    depth = _depth_of_images(sequence, images)
    return SequenceTruth(
        images=images,
        trajectory=read_tum(found) if found else None,
        depth=depth,
        depth_scale=read_depth_scale(sequence / "intrinsics.json") if depth else 1.0,
        masks=_masks_of_images(sequence, images),
    )


def read_listing(path: Path) -> tuple[StampedFile, ...]:
    """Rows `timestamp filename` of rgb.txt or depth.txt, in the order of the file.

    Raises:
        SourceError: the file cannot be read, or a row is malformed.
    """
    return tuple(
        StampedFile(_stamp_ns(fields[0], path, line), path.parent / fields[1])
        for line, fields in _rows(path, 2, "timestamp filename")
    )


def read_tum(path: Path) -> Trajectory:
    """A trajectory file, rows `timestamp tx ty tz qx qy qz qw`, camera to world.

    Motion capture repeats a stamp now and then: the first pose of it counts.

    Raises:
        SourceError: the file cannot be read, a row is malformed, or stamps decrease.
    """
    stamps: list[int] = []
    values = []
    for line, fields in _rows(path, 8, "timestamp tx ty tz qx qy qz qw"):
        stamp, pose = _stamp_ns(fields[0], path, line), _pose_numbers(fields[1:], path, line)
        if stamps and stamp < stamps[-1]:
            raise SourceError(f"{path}, line {line}: stamp {fields[0]} goes back; sort the file")
        if not stamps or stamp > stamps[-1]:
            stamps.append(stamp)
            values.append(pose)
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    if values:
        numbers = np.array(values)
        poses[:, :3, 3] = numbers[:, :3]
        poses[:, :3, :3] = Rotation.from_quat(numbers[:, 3:]).as_matrix()
    return Trajectory(torch.tensor(stamps, dtype=torch.int64), torch.from_numpy(poses))


def read_depth_scale(path: Path) -> float:
    """Units per metre (or map unit) of a folder's 16-bit depth images.

    Raises:
        SourceError: the file cannot be read or has no positive `depth_scale`.
    """
    try:
        content: Any = json.loads(path.read_text())
        scale = float(content["depth_scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: no usable depth_scale ({error!r})") from error
    if not (np.isfinite(scale) and scale > 0):
        raise SourceError(f"{path}: depth_scale={scale}; expected a positive number")
    return scale


def read_depth(path: Path, scale: float) -> NDArray[np.float32]:
    """Depth image (H, W) float32 in units of `scale`; 0 and 65535 (no value) become NaN.

    Raises:
        SourceError: not a readable 16-bit image of one channel.
    """
    raw = _read_image(path)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise SourceError(f"{path}: {raw.dtype} {raw.shape}; expected 16 bits and one channel")
    depth: NDArray[np.float32] = raw.astype(np.float32) / np.float32(scale)
    depth[(raw == 0) | (raw == 65535)] = np.nan
    return depth


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Mask image (H, W) bool, True above 127.

    Raises:
        SourceError: not a readable image.
    """
    raw = _read_image(path)
    moving: NDArray[np.bool_] = (raw if raw.ndim == 2 else raw.max(axis=2)) > MASK_THRESHOLD
    return moving


def _read_image(path: Path) -> NDArray[Any]:
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if raw is None:
        raise SourceError(f"cannot read the image {path}; is it missing or cut short?")
    return np.asarray(raw)


def _rows(path: Path, num_fields: int, layout: str) -> list[tuple[int, list[str]]]:
    """Line number and fields of each row that is neither empty nor a comment."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1)]
    rows = [(number, row) for number, row in rows if row and not row[0].startswith("#")]
    for number, row in rows:
        if len(row) != num_fields:
            raise SourceError(f"{path}, line {number}: {len(row)} fields; expected '{layout}'")
    return rows


def _stamp_ns(text: str, path: Path, line: int) -> int:
    try:
        return int((Decimal(text) * 1_000_000_000).to_integral_value())
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise SourceError(f"{path}, line {line}: '{text}' is no time in seconds") from error


def _pose_numbers(fields: list[str], path: Path, line: int) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise SourceError(f"{path}, line {line}: {error}") from error
    norm = float(np.linalg.norm(numbers[3:]))
    if not (np.isfinite(numbers).all() and abs(norm - 1) < 0.01):
        raise SourceError(
            f"{path}, line {line}: expected finite numbers and a unit quaternion (norm {norm:.3g})"
        )
    return numbers


def _depth_of_images(sequence: Path, images: tuple[StampedFile, ...]) -> dict[int, Path]:
    """Each frame's nearest depth image, where one is near enough."""
    if not (sequence / "depth.txt").is_file():
        return {}
    listed = sorted(read_listing(sequence / "depth.txt"), key=lambda row: row.stamp_ns)
    stamps = np.array([row.stamp_ns for row in listed], np.int64)
    result = {}
    for image in images:
        nearest = int(np.abs(stamps - image.stamp_ns).argmin()) if listed else 0
        if listed and abs(int(stamps[nearest]) - image.stamp_ns) <= DEPTH_MAX_DIFFERENCE_NS:
            result[image.stamp_ns] = listed[nearest].path
    return result


def _masks_of_images(sequence: Path, images: tuple[StampedFile, ...]) -> dict[int, Path]:
    """Each frame's mask: the file of the same stem."""
    named = {path.stem: path for path in sorted((sequence / "masks").glob("*.png"))}
    return {image.stamp_ns: named[image.path.stem] for image in images if image.path.stem in named}

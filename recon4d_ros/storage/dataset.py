"""Sequence folders: images with stamps and a camera, and ground truth where it exists.

Layout: `rgb.txt` (`timestamp filename`), `rgb/`, `intrinsics.json` (fx null = unknown), and
optionally `groundtruth.txt` or `reference_rgbd.txt` (TUM), `depth.txt` + `depth/` (16-bit PNG,
`depth_scale` units per metre), `masks/` (named like the images), `tracks.json` or `tracks.npz`.
"""

from __future__ import annotations

import bisect
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from recon4d_ros.datatypes import Frame, Intrinsics, Trajectory
from recon4d_ros.errors import FrameError, SourceError
from recon4d_ros.storage.images import read_depth, read_mask, read_rgb
from recon4d_ros.storage.index import IndexEntry, read_index
from recon4d_ros.storage.recording import FrameSource, StampedImage
from recon4d_ros.storage.rectification import CameraModel, DistortionModel
from recon4d_ros.storage.trajectory import read_trajectory

# Depth and colour cameras of one device fire within half a frame of each other.
_MAX_DEPTH_OFFSET_NS = 20_000_000
_END_MARKS = (b"\xff\xd9", b"IEND")


class SequenceFolder:
    """A sequence folder as a recording; iterating gives its frames, rectified.

    Attributes:
        path: the folder.
        name: its last part.
        entries: stamps and image files, in the order of rgb.txt.
        camera: calibration of the image files; None when unknown.
        truth: ground truth.
    """

    def __init__(self, path: Path) -> None:
        """Read the index and the camera, and see that every image is there and complete.

        Raises:
            SourceError: the folder is missing or half written.
        """
        self.path = path
        self.name = path.resolve().name
        if not (path / "rgb.txt").is_file():
            raise SourceError(
                f"{path} holds no rgb.txt; expected a sequence folder (rgb.txt, rgb/, "
                "intrinsics.json); check the path, or make the folder again if it is half written"
            )
        self.entries = read_index(path / "rgb.txt")
        _check_complete(self.entries)
        description = _read_description(path / "intrinsics.json")
        self.camera = _camera(description, path / "intrinsics.json")
        self.truth = SequenceTruth(path, self.entries, _depth_scale(description, path))
        self.size = self._first_size()

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.entries)

    def images(self) -> Iterator[StampedImage]:
        """The images as stored, decoded when asked for."""
        for entry in self.entries:
            yield StampedImage(entry.stamp_ns, partial(read_rgb, entry.path))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Frame]:
        """The frames, rectified; see `FrameSource`."""
        return iter(FrameSource(self))

    def _first_size(self) -> tuple[int, int]:
        try:
            rgb = read_rgb(self.entries[0].path)
        except FrameError as error:
            raise SourceError(str(error)) from error
        return rgb.shape[0], rgb.shape[1]


def _check_complete(entries: tuple[IndexEntry, ...]) -> None:
    """Refuse a folder whose images are missing or cut off, before any work is done."""
    for number, entry in enumerate(entries, start=1):
        try:
            with entry.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - 4096))
                tail = file.read()
        except OSError as error:
            raise SourceError(
                f"cannot read image {number} of {len(entries)}, {entry.path}: {error.strerror}; "
                "the folder is half written, make it again"
            ) from error
        if not any(mark in tail for mark in _END_MARKS):
            raise SourceError(
                f"image {number} of {len(entries)}, {entry.path} ({size} bytes), is cut off or no "
                "JPEG or PNG; the folder is half written, make it again"
            )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot read {path}: {error}; expected the camera (fx, fy, cx, cy or null)"
        ) from error
    if not isinstance(description, dict):
        raise SourceError(f"{path} holds no object; expected width, height, fx, fy, cx, cy")
    return description


def _camera(description: dict[str, Any], path: Path) -> CameraModel | None:
    if description.get("fx") is None:
        return None
    try:
        fx, fy, cx, cy = (float(description[key]) for key in ("fx", "fy", "cx", "cy"))
        width, height = int(description["width"]), int(description["height"])
        coefficients = tuple(float(value) for value in description.get("distortion") or ())
        pinhole = Intrinsics(fx, fy, cx, cy, width, height)
        return CameraModel(pinhole, _model(description, coefficients), coefficients)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SourceError(
            f"{path}: {type(error).__name__} {error}; expected numbers for fx, fy, cx, cy, width, "
            "height (fx null when unknown) and a list or null for distortion"
        ) from error
    except FrameError as error:
        raise SourceError(f"{path}: {error}") from error


def _model(description: dict[str, Any], coefficients: tuple[float, ...]) -> DistortionModel:
    """Model by its ROS name; without one OpenCV's, told by the number of coefficients."""
    known = {model.value: model for model in DistortionModel}
    if description.get("distortion_model") in known:
        return known[description["distortion_model"]]
    few = len(coefficients) <= 5
    return DistortionModel.PLUMB_BOB if few else DistortionModel.RATIONAL_POLYNOMIAL


def _depth_scale(description: dict[str, Any], folder: Path) -> float | None:
    scale = description.get("depth_scale")
    if scale is None:
        return None
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not is_number or not 0.0 < scale <= sys.float_info.max:
        raise SourceError(
            f"{folder / 'intrinsics.json'}: depth_scale={scale!r}; expected stored units per "
            "metre, a number above 0, or null"
        )
    return float(scale)


class SequenceTruth:
    """Ground truth of a sequence folder; whatever is absent is None.

    Attributes:
        trajectory_path: groundtruth.txt, or a derived reference_rgbd.txt, or None.
        tracks_path: tracks.npz or tracks.json, or None.
    """

    def __init__(
        self, path: Path, entries: tuple[IndexEntry, ...], depth_scale: float | None
    ) -> None:
        self._path = path
        self._stems = {entry.stamp_ns: entry.path.stem for entry in entries}
        self._depth_scale = depth_scale
        self.trajectory_path = _first_file(path, "groundtruth.txt", "reference_rgbd.txt")
        self.tracks_path = _first_file(path, "tracks.npz", "tracks.json")
        has_depth = (path / "depth.txt").is_file() and depth_scale is not None
        depth = read_index(path / "depth.txt") if has_depth else ()
        self._depth = tuple(sorted(depth, key=lambda entry: entry.stamp_ns))

    @property
    def has_depth(self) -> bool:
        """True when there are depth images."""
        return bool(self._depth)

    @property
    def has_masks(self) -> bool:
        """True when there are masks."""
        return (self._path / "masks").is_dir()

    def trajectory(self) -> Trajectory | None:
        """Camera poses, or None.

        Raises:
            SourceError: the file is damaged.
        """
        return read_trajectory(self.trajectory_path) if self.trajectory_path else None

    def depth(self, stamp_ns: int) -> Tensor | None:
        """Depth of the image with that stamp, or of the depth camera within 20 ms.

        Returns:
            (H, W) float32 metres in the pixels of the image file, NaN where unknown; or None.

        Raises:
            SourceError: the file is missing or damaged.
        """
        if self._depth_scale is None or not self._depth:
            return None
        nearest = _nearest(self._depth, stamp_ns)
        if abs(nearest.stamp_ns - stamp_ns) > _MAX_DEPTH_OFFSET_NS:
            return None
        return read_depth(nearest.path, self._depth_scale)

    def mask(self, stamp_ns: int) -> Tensor | None:
        """What moves in the image with exactly that stamp.

        Returns:
            (H, W) bool in the pixels of the image file, or None.

        Raises:
            SourceError: the file is damaged.
        """
        path = self._path / "masks" / f"{self._stems.get(stamp_ns)}.png"
        return read_mask(path) if path.is_file() else None


def _nearest(entries: tuple[IndexEntry, ...], stamp_ns: int) -> IndexEntry:
    position = bisect.bisect_left(entries, stamp_ns, key=lambda entry: entry.stamp_ns)
    around = entries[max(0, position - 1) : position + 1]
    return min(around, key=lambda entry: abs(entry.stamp_ns - stamp_ns))


def _first_file(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)

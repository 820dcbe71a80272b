"""Writes sequence folders in the layout that `SequenceFolder` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import OutputError
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.images import write_depth, write_mask, write_rgb
from recon4d_ros.storage.index import IndexEntry, make_empty_folder, write_index, write_text
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.trajectory import write_trajectory


@dataclass(frozen=True, eq=False)
class SequenceSample:
    """One image of a sequence to be written, with whatever truth there is.

    Attributes:
        stamp_ns: strictly increasing.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 z-depth, NaN where there is none; or None.
        mask: (H, W) bool, what moves; or None.
        T_world_cam: (4, 4) float64 camera pose; or None.
    """

    stamp_ns: int
    rgb: Tensor
    depth: Tensor | None = None
    mask: Tensor | None = None
    T_world_cam: Tensor | None = None


def write_sequence(
    path: Path,
    camera: CameraModel | None,
    samples: Iterable[SequenceSample],
    *,
    depth_scale: float = 5000.0,
    suffix: str = ".png",
) -> SequenceFolder:
    """Write a sequence folder and read it back; rgb.txt comes last, so a cut is noticed.

    Args:
        path: folder to make; must not exist or be empty.
        camera: calibration of the images; None when unknown.
        samples: the images, oldest first; they are written as they come.
        depth_scale: stored units per unit of depth.
        suffix: .png or .jpg for the images.

    Raises:
        OutputError: the folder is not empty or cannot be written, or there is no sample.
    """
    make_empty_folder(path)
    written = [
        _write_sample(path, f"{number:06d}", sample, suffix, depth_scale)
        for number, sample in enumerate(samples)
    ]
    if not written:
        raise OutputError(f"no sample for {path}; expected at least one image")
    _write_poses(path, written)
    depth = [sample.depth for sample in written if sample.depth is not None]
    if depth:
        write_index(path / "depth.txt", depth)
    description = describe_camera(camera, written[0].size) | {"depth_scale": depth_scale}
    write_text(path / "intrinsics.json", json.dumps(description, indent=1) + "\n")
    write_index(path / "rgb.txt", [sample.rgb for sample in written])
    return SequenceFolder(path)


@dataclass(frozen=True, eq=False)
class _Written:
    """What remains of a sample once its images lie on the disk."""

    rgb: IndexEntry
    size: tuple[int, int]
    depth: IndexEntry | None
    T_world_cam: Tensor | None


def _write_sample(
    folder: Path, name: str, sample: SequenceSample, suffix: str, depth_scale: float
) -> _Written:
    present = {"rgb": sample.rgb, "depth": sample.depth, "masks": sample.mask}
    for part in (part for part, image in present.items() if image is not None):
        (folder / part).mkdir(exist_ok=True)
    rgb = IndexEntry(sample.stamp_ns, folder / "rgb" / f"{name}{suffix}")
    write_rgb(rgb.path, sample.rgb)
    depth = None
    if sample.depth is not None:
        depth = IndexEntry(sample.stamp_ns, folder / "depth" / f"{name}.png")
        write_depth(depth.path, sample.depth, depth_scale)
    if sample.mask is not None:
        write_mask(folder / "masks" / f"{name}.png", sample.mask)
    size = (sample.rgb.shape[0], sample.rgb.shape[1])
    return _Written(rgb, size, depth, sample.T_world_cam)


def _write_poses(folder: Path, written: list[_Written]) -> None:
    posed = [(item.rgb.stamp_ns, item.T_world_cam) for item in written]
    stamps = [stamp for stamp, pose in posed if pose is not None]
    poses = [pose for _, pose in posed if pose is not None]
    if poses:
        trajectory = Trajectory(torch.tensor(stamps), torch.stack(poses))
        write_trajectory(folder / "groundtruth.txt", trajectory)


def describe_camera(camera: CameraModel | None, size: tuple[int, int]) -> dict[str, Any]:
    """The fields of intrinsics.json; fx is null when the camera is unknown.

    Args:
        camera: calibration or None.
        size: (height, width) of the images.
    """
    if camera is None:
        return {"width": size[1], "height": size[0], "fx": None, "fy": None}
    return dataclasses.asdict(camera.intrinsics) | {
        "distortion": list(camera.coefficients) or None,
        "distortion_model": camera.distortion_model.value,
    }

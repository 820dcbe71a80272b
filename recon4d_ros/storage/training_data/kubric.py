"""Kubric's MOVi-E, panning MOVi-E and MOVi-F as TensorFlow Datasets publishes them.

A folder of `*.tfrecord*` shards. Of an example these features are used (T frames, n bodies):
`video` T pictures; `segmentations` T pictures, 0 the background, i + 1 body i; `depth` T 16-bit
pictures of the distance to the camera's centre, from `metadata/depth_range`; `instances/positions`
and `instances/quaternions` (n, T, 3 and 4, w first); `camera/positions` and `camera/quaternions`
(T, 3 and 4), `camera/focal_length`, `camera/sensor_width`. A camera looks along -z, with y up.
Source: Greff et al., "Kubric: A scalable dataset generator", CVPR 2022, and the features.json of
the data sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import Clips
from recon4d_ros.errors import GeometryError, SourceError
from recon4d_ros.geometry import camera, se3
from recon4d_ros.storage.training_data.shape import ClipShape, SequenceReader, random_part
from recon4d_ros.storage.training_data.solids import MobilityRule, SolidScene, solid_clip
from recon4d_ros.storage.training_data.tfrecord import (
    Feature,
    parse_example,
    read_record,
    record_offsets,
)

_FEATURES = (
    "video",
    "segmentations",
    "depth",
    "metadata/depth_range",
    "instances/positions",
    "instances/quaternions",
    "camera/positions",
    "camera/quaternions",
    "camera/focal_length",
    "camera/sensor_width",
)
_LARGEST = 65535
# Blender's camera axes (x right, y up, z backwards) in the optical frame.
_T_BLENDER_CAM = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


class KubricReader(SequenceReader):
    """Clips of a folder of shards."""

    def __init__(
        self, folder: Path, shape: ClipShape, seed: int = 0, rule: MobilityRule | None = None
    ) -> None:
        """Find the shards; none is read yet.

        Args:
            folder: where they lie.
            shape: of the clips.
            seed: of the choice of examples, frames and points.
            rule: when a body moves; None takes the usual one.

        Raises:
            SourceError: there is no shard.
        """
        super().__init__(
            folder.glob("*.tfrecord*"),
            shape,
            seed,
            f"{folder} holds no *.tfrecord* file; expected the shards of a MOVi data set",
        )
        self._rule = rule or MobilityRule()
        self._offsets: dict[Path, list[tuple[int, int]]] = {}

    def _clip(self, sequence: Path, rng: np.random.Generator) -> Clips:
        """Of a random example of a shard."""
        if sequence not in self._offsets:
            self._offsets[sequence] = record_offsets(sequence)
        offsets = self._offsets[sequence]
        if not offsets:
            raise SourceError(f"{sequence} holds no record; fetch the file again")
        example = parse_example(
            read_record(sequence, *offsets[rng.integers(len(offsets))]), _FEATURES
        )
        try:
            num_frames = len(example["video"])
            rows = random_part(num_frames, self._shape.num_frames, rng, str(sequence))
            scene = _scene(example, rows, str(sequence))
        except (KeyError, ValueError, TypeError, GeometryError, cv2.error) as error:
            raise SourceError(
                f"{sequence}: {type(error).__name__} {error}; expected the features of a MOVi "
                f"data set, {', '.join(_FEATURES)}; fetch the file again"
            ) from error
        return solid_clip(scene, self._shape, self._rule, rng)


def _scene(example: dict[str, Feature], rows: slice, name: str) -> SolidScene:
    num_frames = len(example["video"])
    rgb = _pictures(example["video"][rows])[..., ::-1]
    low, high = np.asarray(example["metadata/depth_range"], np.float64)
    distance = low + _pictures(example["depth"][rows]) * ((high - low) / _LARGEST)
    bodies = torch.from_numpy(_pictures(example["segmentations"][rows]).astype(np.int64))
    T_body = _poses(example, "instances", (-1, num_frames)).transpose(0, 1)[rows]
    world = torch.eye(4, dtype=torch.float64).expand(len(T_body), 1, 4, 4)
    if int(bodies.max()) > T_body.shape[1]:
        raise ValueError(f"body {int(bodies.max())} of {T_body.shape[1]}")
    K = _camera_matrix(example, rgb.shape[1], rgb.shape[2])
    return SolidScene(
        name=name,
        rgb=torch.from_numpy(rgb.copy()),
        depth=_z_depth(torch.from_numpy(distance), K),
        bodies=bodies,
        K=K,
        T_world_cam=_poses(example, "camera", (num_frames,))[rows] @ _T_BLENDER_CAM,
        T_world_body=torch.cat([world, T_body], dim=1),
    )


def _pictures(encoded: Any) -> NDArray[Any]:
    """(T, H, W) or (T, H, W, 3) blue first, as stored."""
    found = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_UNCHANGED) for one in encoded]
    whole = [picture for picture in found if picture is not None]
    if len(whole) < len(found):
        raise ValueError(f"{len(found) - len(whole)} of {len(found)} pictures cannot be decoded")
    return np.stack(whole)


def _poses(example: dict[str, Feature], prefix: str, leading: tuple[int, ...]) -> Tensor:
    """(*leading, 4, 4) float64."""
    positions, quaternions = (
        torch.from_numpy(np.array(example[f"{prefix}/{name}"], np.float64)).reshape(*leading, size)
        for name, size in (("positions", 3), ("quaternions", 4))
    )
    R = se3.quat_xyzw_to_matrix(quaternions[..., [1, 2, 3, 0]])
    return se3.make(R, positions)


def _camera_matrix(example: dict[str, Feature], height: int, width: int) -> Tensor:
    """Focal length over sensor width, of the width of the image; principal point in the middle."""
    focal, sensor = (
        float(example[f"camera/{name}"][0]) for name in ("focal_length", "sensor_width")
    )
    f = focal / sensor * width
    rows = [[f, 0.0, (width - 1) / 2], [0.0, f, (height - 1) / 2], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64)


def _z_depth(distance: Tensor, K: Tensor) -> Tensor:
    """(T, H, W) float32 along the optical axis, of distances to the camera's centre."""
    uv = camera.pixel_grid((distance.shape[1], distance.shape[2]), torch.float64)
    along = torch.linalg.vector_norm(camera.directions(uv, K), dim=-1)
    depth: Tensor = (distance / along).float()
    return depth

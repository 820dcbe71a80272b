"""TartanAir: still scenes, flown through.

Folders anywhere below the given one with `pose_left.txt` (a line per frame: position, quaternion
x y z w, of the camera's body axes x forward, y right, z down, in the world),
`image_left/000000_left.png` and `depth_left/000000_left_depth.npy` (float32 m).
Source: Wang et al., "TartanAir: A Dataset to Push the Limits of Visual SLAM", IROS 2020, and the
format page of its tools.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import Clips
from recon4d_ros.errors import GeometryError, SourceError
from recon4d_ros.geometry import se3
from recon4d_ros.storage.images import read_rgb
from recon4d_ros.storage.training_data.shape import ClipShape, SequenceReader, random_part
from recon4d_ros.storage.training_data.solids import MobilityRule, SolidScene, solid_clip

_FOCAL_SHARE = 0.5  # of the width: a field of view of 90 degrees
# The optical axes (right, down, forward) in the body's (forward, right, down).
_R_BODY_CAM = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)


class TartanAirReader(SequenceReader):
    """Clips of the flights below a folder."""

    def __init__(self, folder: Path, shape: ClipShape, seed: int = 0) -> None:
        """Find the flights; none is read yet.

        Args:
            folder: above all flights.
            shape: of the clips.
            seed: of the choice of flights, frames and points.

        Raises:
            SourceError: there is no flight.
        """
        super().__init__(
            (path.parent for path in folder.rglob("pose_left.txt")),
            shape,
            seed,
            f"{folder} holds no pose_left.txt; expected TartanAir's folders, such as "
            "office/Easy/P000",
        )

    def _clip(self, sequence: Path, rng: np.random.Generator) -> Clips:
        poses = _poses(sequence / "pose_left.txt")
        rows = random_part(len(poses), self._shape.num_frames, rng, str(sequence))
        scene = _scene(sequence, poses, rows)
        return solid_clip(scene, self._shape, MobilityRule(), rng)


def _poses(path: Path) -> Tensor:
    """(frames, 4, 4) of the optical frame in the world."""
    try:
        lines = torch.from_numpy(np.loadtxt(path, dtype=np.float64, ndmin=2))
        R_world_body = se3.quat_xyzw_to_matrix(lines[:, 3:7])
        return se3.make(R_world_body @ _R_BODY_CAM, lines[:, :3])
    except (OSError, ValueError, IndexError, GeometryError) as error:
        raise SourceError(
            f"{path}: {error}; expected lines of x y z qx qy qz qw; fetch the file again"
        ) from error


def _scene(flight: Path, poses: Tensor, rows: slice) -> SolidScene:
    numbers = range(rows.start, rows.stop)
    images = [read_rgb(flight / "image_left" / f"{n:06d}_left.png") for n in numbers]
    depths = [_depth(flight / "depth_left" / f"{n:06d}_left_depth.npy") for n in numbers]
    sizes = {(*image.shape[:2],) for image in images} | {(*depth.shape,) for depth in depths}
    if len(sizes) != 1:
        raise SourceError(
            f"images and depth of frames {rows.start} to {rows.stop - 1} of {flight} have sizes "
            f"{sorted(sizes)}; expected one; fetch the folder again"
        )
    height, width = images[0].shape[:2]
    f = _FOCAL_SHARE * width
    K = [[f, 0.0, (width - 1) / 2], [0.0, f, (height - 1) / 2], [0.0, 0.0, 1.0]]
    return SolidScene(
        name=str(flight),
        rgb=torch.stack(images),
        depth=torch.stack(depths),
        bodies=torch.zeros((len(images), height, width), dtype=torch.int64),
        K=torch.tensor(K, dtype=torch.float64),
        T_world_cam=poses[rows],
        T_world_body=torch.eye(4, dtype=torch.float64).expand(len(images), 1, 4, 4),
    )


def _depth(path: Path) -> Tensor:
    """(H, W) float32 m, NaN where it is no positive number."""
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"cannot read {path}: {error}; expected an array of depth; fetch the file again"
        ) from error
    if stored.ndim != 2:
        raise SourceError(f"{path} has shape {stored.shape}; expected (H, W)")
    depth = torch.from_numpy(stored.astype(np.float32))
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.nan)

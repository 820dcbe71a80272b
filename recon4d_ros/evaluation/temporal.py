"""How steady depth and 3D tracks are over time, which errors of single frames do not tell.

C4D shows pictures only; the figures are the flicker of static depth, the acceleration of tracks,
and slices through a column of pixels over time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import EvaluationError
from recon4d_ros.geometry import camera, pointmap, se3

# A pixel whose depth in the next frame differs by more from its geometry is hidden there.
_VISIBLE_RATIO = 0.05


@dataclass(frozen=True, eq=False)
class FlickerFrame:
    """Depth of one frame, and what is needed to find its pixels in the next one.

    Attributes:
        depth: (H, W) z-depth to be judged, NaN where unknown.
        geometry: (H, W) z-depth that tells which pixels show the same point: the truth, or
            `depth` itself where there is none; pixels that flicker much then count as hidden.
        T_world_cam: (4, 4) pose in the unit of both depths.
        static: (H, W) bool, the surface stands still.
    """

    depth: Tensor
    geometry: Tensor
    T_world_cam: Tensor
    static: Tensor


@dataclass(frozen=True)
class FlickerReport:
    """Mean of |D - D'| / D over static pixels, D' being the depth that the next frame gives.

    Attributes:
        flicker: the mean, no unit.
        num_pixels: compared pixels.
    """

    flicker: float
    num_pixels: int


def depth_flicker(frames: Iterable[FlickerFrame], intrinsics: Intrinsics) -> FlickerReport:
    """Flicker of consecutive frames of one camera, two of which are held at a time.

    Raises:
        EvaluationError: no static pixel is seen in two frames.
    """
    total, count = 0.0, 0
    for now, following in pairwise(frames):
        change = _changes(now, following, intrinsics)
        total, count = total + float(change.sum()), count + len(change)
    if count == 0:
        raise EvaluationError(
            "no static pixel has a depth in two frames that follow each other; "
            "check poses, masks and the unit of the depths"
        )
    return FlickerReport(total / count, count)


def _changes(now: FlickerFrame, following: FlickerFrame, intrinsics: Intrinsics) -> Tensor:
    """Relative change (P,) of the static pixels seen in both frames."""
    known = now.static & now.geometry.isfinite() & now.depth.isfinite()
    T_next_now = se3.relative(following.T_world_cam, now.T_world_cam).double()
    uv = camera.pixel_grid(intrinsics.size, torch.float64)[known]
    points = camera.unproject(uv, now.geometry[known].double(), intrinsics)
    points = se3.transform(T_next_now, points)
    uv_next = camera.project(points, intrinsics)
    there = pointmap.sample_depth(following.geometry.double(), uv_next)
    depth_next = pointmap.sample_depth(following.depth.double(), uv_next)
    seen = (there - points[:, 2]).abs() <= _VISIBLE_RATIO * points[:, 2]
    seen = seen & depth_next.isfinite()
    back = camera.unproject(uv_next[seen], depth_next[seen], intrinsics)
    warped = se3.transform(se3.inverse(T_next_now), back)[:, 2]
    own = now.depth[known][seen].double()
    return (own - warped).abs() / own


def acceleration(points: Tensor, scene_depth: float) -> float:
    """RMS length of the second differences of 3D tracks over the scene's depth, per frame squared.

    Args:
        points: (T, N, 3) in a world frame, NaN where not seen.
        scene_depth: median depth, in the unit of the points.

    Raises:
        EvaluationError: no track is seen in three frames that follow each other, or the depth is
            not above zero.
    """
    if not scene_depth > 0:
        raise EvaluationError(f"the scene's depth is {scene_depth}; expected one above zero")
    second = points[2:] - 2.0 * points[1:-1] + points[:-2]
    squared = (second**2).sum(dim=-1)
    known = squared.isfinite()
    if not bool(known.any()):
        raise EvaluationError("no track is seen in three frames that follow each other")
    return float(squared[known].mean().sqrt()) / scene_depth


def yt_slice(images: Iterable[Tensor], column: int) -> Tensor:
    """One column of each image (H, W, ...), side by side over time: (H, T, ...).

    Raises:
        EvaluationError: there is no image, or an image lacks the column.
    """
    columns = []
    for image in images:
        if not 0 <= column < image.shape[1]:
            raise EvaluationError(
                f"column {column} of images {image.shape[1]} wide; expected 0 to "
                f"{image.shape[1] - 1}"
            )
        columns.append(image[:, column])
    if not columns:
        raise EvaluationError("no image to take a column of; expected at least one")
    return torch.stack(columns, dim=1)


def slice_picture(depth: Tensor, near: float, far: float) -> NDArray[np.uint8]:
    """Grey picture (H, T) of a slice of depths: near is white, far and unknown are black.

    Grey is linear in inverse depth. Slices to be compared need the same `near` and `far`.

    Raises:
        EvaluationError: the range is empty.
    """
    if not 0 < near < far:
        raise EvaluationError(f"depths from {near} to {far}; expected 0 < near < far")
    share = (1.0 / depth - 1.0 / far) / (1.0 / near - 1.0 / far)
    return np.rint(share.nan_to_num(0.0).clamp(0.0, 1.0).numpy() * 255.0).astype(np.uint8)

"""Exact correspondences between frames of a scene: dense flow and point tracks.

A pixel stands for the material point on which its ray ends; the point is carried along by its
solid and projected into the other frame. It is visible there when the ray back to it meets
nothing before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic import raycast
from recon4d_ros.synthetic.raycast import NEAR_M, Hits
from recon4d_ros.synthetic.renderer import moving_solids
from recon4d_ros.synthetic.scene import Scene, Snapshot, snapshot

# Rounding of two different routes to one point, as a share of its depth. Far larger than float64
# needs, far smaller than any gap between two surfaces that matters.
_SAME_DEPTH = 1e-6


@dataclass(frozen=True, eq=False)
class ExactFlow:
    """Where the surface points of one frame are in another.

    Attributes:
        flow: (H, W, 2) float64, px, x then y; NaN where the point is behind the other camera.
        visible: (H, W) bool, inside the other image and not hidden there.
        depth: (H, W) float64, z-depth of the points in the other camera, metres.
    """

    flow: Tensor
    visible: Tensor
    depth: Tensor


@dataclass(frozen=True, eq=False)
class ExactTracks:
    """N material points over T frames.

    Attributes:
        indices: the T frame numbers.
        uv: (T, N, 2) float64, px; NaN behind the camera.
        visible: (T, N) bool.
        points_world: (T, N, 3) float64, metres.
        moving: (T, N) bool, the point's solid moves in the world at that time.
    """

    indices: tuple[int, ...]
    uv: Tensor
    visible: Tensor
    points_world: Tensor
    moving: Tensor


def flow(scene: Scene, source: int, target: int) -> ExactFlow:
    """Dense flow from frame `source` to frame `target`."""
    size = scene.intrinsics.size
    uv = camera.pixel_grid(size, torch.float64).reshape(-1, 2)
    hits = raycast.cast(snapshot(scene, source), uv)
    view = snapshot(scene, target)
    moved, depth = view.project(hits.solid, hits.local)
    visible = _visible(view, moved, depth)
    return ExactFlow((moved - uv).reshape(*size, 2), visible.reshape(size), depth.reshape(size))


def tracks(scene: Scene, index: int, uv: Tensor, indices: tuple[int, ...]) -> ExactTracks:
    """Tracks over the frames `indices` of the points that pixels uv (N, 2) of `index` show."""
    hits = raycast.cast(snapshot(scene, index), uv)
    steps = [_track_step(scene, hits, each) for each in indices]
    places, visible, points, moving = (torch.stack(parts) for parts in zip(*steps, strict=True))
    return ExactTracks(indices, places, visible, points, moving)


def _track_step(scene: Scene, hits: Hits, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, visibility, world points and motion of material points in one frame."""
    view = snapshot(scene, index)
    uv, depth = view.project(hits.solid, hits.local)
    points = se3.transform(view.T_world_solid[hits.solid], hits.local)
    return uv, _visible(view, uv, depth), points, moving_solids(scene, index)[hits.solid]


def _visible(view: Snapshot, uv: Tensor, depth: Tensor) -> Tensor:
    """(P,) bool: the pixel lies on the image and its ray ends at `depth`."""
    height, width = view.scene.intrinsics.size
    x, y = uv.unbind(-1)
    # Pixels are squares around their centres, so the image reaches half a pixel further.
    seen = (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)
    rows = (seen & (depth > NEAR_M)).nonzero().squeeze(-1)
    first = raycast.cast(view, uv[rows]).depth
    visible = torch.zeros_like(seen)
    visible[rows] = depth[rows] <= first * (1.0 + _SAME_DEPTH)
    return visible

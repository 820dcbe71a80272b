"""Scenes as seen in single pictures: the tables that ray casting and shading look things up in."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recon4d_ros.geometry import camera
from recon4d_ros.synthetic.clips import shapes
from recon4d_ros.synthetic.clips.motion import Views
from recon4d_ros.synthetic.clips.world import Kind, World

_OUTSIDE = 1e9


@dataclass(frozen=True, eq=False)
class Pictures:
    """F = B T pictures of S solids each; picture f belongs to clip f // T.

    Attributes:
        K: (F, 3, 3) float64.
        matrix: (F, S, 3, 3) maps viewing directions with z = 1 to the unit frames.
        origin: (F, S, 3) the camera there.
        number, phase: (F, S) of the waves.
        kind: (F, S) int64.
        is_present: (F, S) bool.
        low, high: (F, S, 2) float64 px, between which the solid lies in the image.
    """

    K: Tensor
    matrix: Tensor
    origin: Tensor
    number: Tensor
    phase: Tensor
    kind: Tensor
    is_present: Tensor
    low: Tensor
    high: Tensor

    def of(self, rows: Tensor | slice) -> Pictures:
        """Chosen ones."""
        return Pictures(*(getattr(self, field.name)[rows] for field in fields(self)))


def pictures(world: World, view: Views, dtype: torch.dtype) -> Pictures:
    """Tables with numbers of a type: float32 for pictures, float64 for tracks."""
    T = view.T_solid_cam
    solids = world.solids
    scale = 1.0 / solids.half_size[:, None].unsqueeze(-1)
    low, high = _bounds(world, view)

    def of_clips(values: Tensor) -> Tensor:
        return values.repeat_interleave(view.phase.shape[1], 0)

    return Pictures(
        K=of_clips(world.K),
        matrix=(T[..., :3, :3] * scale).flatten(0, 1).to(dtype),
        origin=(T[..., :3, 3:] * scale).squeeze(-1).flatten(0, 1).to(dtype),
        number=of_clips(solids.wave).to(dtype),
        phase=view.phase.flatten(0, 1).to(dtype),
        kind=of_clips(solids.kind),
        is_present=of_clips(solids.is_present),
        low=low,
        high=high,
    )


def _bounds(world: World, view: Views) -> tuple[Tensor, Tensor]:
    """Least and greatest pixels (F, S, 2) of the solids; all where one's box reaches the lens."""
    T = view.T_cam_solid
    points = world.solids.corners()[:, None] @ T[..., :3, :3].mT + T[..., None, :3, 3]
    z = points[..., 2]
    uv = camera.project(points, world.K[:, None, None, None]).nan_to_num()
    near, behind = (z < shapes.NEAR_M).any(-1), (z < shapes.NEAR_M).all(-1)
    is_ball = (world.solids.kind == Kind.ELLIPSOID)[:, None, :, None]
    least, greatest = _outline_of_balls(world, T)
    low = torch.where(is_ball, least, uv.amin(dim=-2)).masked_fill(near[..., None], -_OUTSIDE)
    high = torch.where(is_ball, greatest, uv.amax(dim=-2)).masked_fill(near[..., None], _OUTSIDE)
    low = low.masked_fill(behind[..., None], _OUTSIDE)
    return low.flatten(0, 1), high.flatten(0, 1)


def _outline_of_balls(world: World, T_cam_solid: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest pixels (B, T, S, 2) of ellipsoids in front of the camera.

    The planes that touch an ellipsoid are those of its dual quadric Q*, and the lines that touch
    its outline those of the dual conic K Q* K^T (Hartley and Zisserman, section 8.3).
    """
    axes = T_cam_solid[..., :3, :3] * world.solids.half_size[:, None, :, None]
    centre = T_cam_solid[..., :3, 3:]
    K = world.K[:, None, None]
    conic = K @ (centre @ centre.mT - axes @ axes.mT) @ K.mT
    across, scale = conic[..., :2, 2], conic[..., 2:, 2]
    squared = across.square() - scale * conic.diagonal(dim1=-2, dim2=-1)[..., :2]
    middle, reach = across / scale, squared.clamp(min=0.0).sqrt() / scale
    return middle - reach, middle + reach

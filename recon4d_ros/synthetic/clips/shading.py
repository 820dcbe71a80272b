"""Colours of what the pixels see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips.casting import Hits
from recon4d_ros.synthetic.clips.library import Library
from recon4d_ros.synthetic.clips.looks import AMBIENT, DIFFUSE, NUM_SIDES, Looks
from recon4d_ros.synthetic.clips.pictures import Pictures
from recon4d_ros.synthetic.clips.shapes import Axes
from recon4d_ros.synthetic.clips.world import Kind

# Beyond this slant (cosine) the pixels' width on the surface is no longer followed.
_LEAST_SLANT = 0.04


@dataclass(frozen=True, eq=False)
class Points:
    """Material points of solids.

    Attributes:
        row: (P,) int32, which solid, counted through all F S.
        side: (P,) int32, which side, counted through all F S 6.
        unit: coordinates in the unit frame, each (P,).
        on_side: (P,) along both axes of the side, units.
    """

    row: Tensor
    side: Tensor
    unit: Axes
    on_side: tuple[Tensor, Tensor]


def shade(pictures: Pictures, looks: Looks, hits: Hits, library: Library) -> Tensor:
    """Colours (3, F, H, W) float32, about [0, 1]: texture times light and shadow."""
    cam = _camera_points(pictures, hits)
    F, S = pictures.kind.shape
    first = torch.arange(0, F * S, S, dtype=torch.int32, device=cam.z.device)
    row = (hits.solid + first[:, None, None]).flatten()
    points = sided_points(pictures, row, _unit_points(pictures, row, cam))
    light, distance = _pick(looks.light, points.side), _pick(looks.distance, points.side)
    _bend(pictures, looks, points, light, distance)
    length = (cam.x.square() + cam.y.square()).addcmul_(cam.z, cam.z).sqrt_()
    cosine = (distance / length).clamp_(min=_LEAST_SLANT)
    focal = pictures.K[:, 0, 0].float().repeat_interleave(len(cam.z) // F)
    # Geometric mean of the pixel's extents across and along the slope.
    footprint = cam.z * cosine.rsqrt_() / focal
    colour = paint(looks, points, library, footprint)
    colour *= light
    _darken(looks, hits, cam, colour)
    return colour.view(3, *hits.depth.shape)


def sided_points(pictures: Pictures, row: Tensor, unit: Axes) -> Points:
    """Points (P,) with the sides they lie on; a ball is seen as the cube around it."""
    is_flat = _pick(pictures.kind >= Kind.QUAD, row)
    x, y, z = unit
    ax, ay, az = x.abs(), y.abs(), z.abs()
    wide = torch.maximum(ax, ay)
    is_z = (az > wide) | is_flat
    is_y = (ay > ax) & ~is_z
    along = torch.where(is_z, z, torch.where(is_y, y, x))
    # Both faces of a quad show the same picture.
    side = row * NUM_SIDES + is_y + 2 * is_z.int() + 3 * ((along > 0) | is_flat)
    push = torch.where(is_flat, 1.0, torch.maximum(wide, az).reciprocal_())
    across = torch.where(is_z | is_y, x, y) * push
    down = torch.where(is_z, y, z) * push
    return Points(row, side, unit, (across, down))


def paint(looks: Looks, points: Points, library: Library, footprint: Tensor) -> Tensor:
    """Colours (3, P) without light of points seen with pixels `footprint` (P,) metres wide."""
    side = points.side
    u, v = (
        torch.addcmul(_pick(offset, side), at, _pick(scale, side))
        for offset, scale, at in zip(looks.offset, looks.scale, points.on_side, strict=True)
    )
    level = torch.log2(footprint * _pick(looks.density, side) * library.largest)
    picture = library.sample(_pick(looks.texture, side), (u, v), level)
    grey = picture.mean(dim=0).mul_(_pick(looks.grey, side))
    vivid = _pick(looks.vivid, side)
    for channel, base in zip(picture, looks.base, strict=True):
        channel.mul_(vivid).add_(grey).add_(_pick(base, side))
    return picture.clamp_(0.02, 1.0)


def _pick(table: Tensor, row: Tensor) -> Tensor:
    """Numbers (P,) of a table at rows (P,), counted through all its axes."""
    return table.reshape(-1).index_select(0, row)


def _camera_points(pictures: Pictures, hits: Hits) -> Axes:
    """Hit points in the cameras, each coordinate (F H W,)."""
    height, width = hits.depth.shape[1:]
    K = pictures.K
    x = (torch.arange(width, device=K.device) - K[:, 0, 2:]) / K[:, 0, :1]
    y = (torch.arange(height, device=K.device) - K[:, 1, 2:]) / K[:, 1, 1:2]
    across = hits.depth * x[:, None, :].float()
    along = hits.depth * y[:, :, None].float()
    return Axes(across.flatten(), along.flatten(), hits.depth.flatten())


def _unit_points(pictures: Pictures, row: Tensor, cam: Axes) -> Axes:
    """Hit points in the unit frames of their solids."""
    coordinates = []
    for axis in range(3):
        total = _pick(pictures.origin[..., axis], row)
        for column, coordinate in enumerate(cam):
            total.addcmul_(_pick(pictures.matrix[..., axis, column], row), coordinate)
        coordinates.append(total)
    return Axes(*coordinates)


def _bend(
    pictures: Pictures, looks: Looks, points: Points, light: Tensor, distance: Tensor
) -> None:
    """Write light and distance of the touching plane of points on balls and waves, in place."""
    curved = (pictures.kind == Kind.ELLIPSOID) | (pictures.kind == Kind.BENT_QUAD)
    rows = _pick(curved, points.row).nonzero().squeeze(-1)
    at = points.row.index_select(0, rows)
    unit = Axes(*(each.index_select(0, rows) for each in points.unit))
    is_ball = _pick(pictures.kind == Kind.ELLIPSOID, at)
    number = _pick(pictures.number, at)
    slope = (number * unit.x + _pick(pictures.phase, at)).cos_().mul_(number).neg_()
    wavy = Axes(slope, torch.zeros_like(slope), torch.ones_like(slope))
    half = [_pick(looks.half_size[..., axis], at) for axis in range(3)]
    normal = [
        torch.where(is_ball, ball, wave).div_(size)
        for ball, wave, size in zip(unit, wavy, half, strict=True)
    ]
    facing, away = torch.zeros_like(slope), torch.zeros_like(slope)
    for axis, along in enumerate(normal):
        facing.addcmul_(along, _pick(looks.lamp[..., axis], at))
        lever = _pick(pictures.origin[..., axis], at).sub_(unit[axis]).mul_(half[axis])
        away.addcmul_(along, lever)
    length = torch.sqrt(normal[0].square() + normal[1].square() + normal[2].square())
    facing /= length
    facing = torch.where(is_ball, facing, facing.abs()).clamp_(min=0.0)
    light.index_copy_(0, rows, AMBIENT + DIFFUSE * facing)
    distance.index_copy_(0, rows, away.div_(length).abs_())


def _darken(looks: Looks, hits: Hits, cam: Axes, colour: Tensor) -> None:
    """Darken (3, P) what lies below solids that throw a shadow, in place."""
    if not bool((looks.blob[..., 4] > 0).any()):
        return
    T = looks.T_world_cam[..., None, None]
    shape = hits.depth.shape
    point = [each.view(shape) for each in cam]
    x, y, z = (
        (T[:, axis, 3] + T[:, axis, 2] * point[2])
        .addcmul_(T[:, axis, 1], point[1])
        .addcmul_(T[:, axis, 0], point[0])
        for axis in range(3)
    )
    brightness = torch.ones_like(x)
    for cx, cy, cz, radius, strength in looks.blob[..., None, None].permute(1, 2, 0, 3, 4):
        squared = (x - cx).square_().add_((y - cy).square_())
        dark = squared.mul_(-1.0 / radius.square()).exp_().mul_(strength).mul_(z < cz)
        brightness.addcmul_(brightness, dark, value=-1.0)
    colour *= brightness.flatten()

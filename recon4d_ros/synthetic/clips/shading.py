"""Colours of what the pixels see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips.casting import Hits, Lens, lens
from recon4d_ros.synthetic.clips.library import Library
from recon4d_ros.synthetic.clips.motion import Views
from recon4d_ros.synthetic.clips.shapes import Axes
from recon4d_ros.synthetic.clips.world import Kind, World

_AMBIENT, _DIFFUSE = 0.62, 0.5
_LEAST_SLANT = 0.04
_SIDES = 6


@dataclass(frozen=True, eq=False)
class Points:
    """Material points of solids.

    Attributes:
        row: (P,) int64, position in the table of solids (B S).
        side: (P,) int64 in 0..5: -x, -y, -z, x, y, z.
        unit: coordinates in the unit frame, each (P,).
    """

    row: Tensor
    side: Tensor
    unit: Axes


@dataclass(frozen=True, eq=False)
class _Slant:
    """How P hit points face the light and the camera.

    Attributes:
        light: (P,) brightness.
        distance: (P,) of the camera from the plane that touches the surface there.
    """

    light: Tensor
    distance: Tensor


def shade(world: World, view: Views, hits: Hits, library: Library) -> Tensor:
    """Colours (3, F, H, W) float32, about [0, 1]: texture times light and shadow."""
    rays = lens(world, view, torch.float32)
    cam = _camera_points(world, hits)
    S = world.solids.kind.shape[1]
    picture = torch.arange(len(hits.depth), device=cam.z.device).view(-1, 1, 1)
    seen = (hits.solid + picture * S).flatten()
    unit = _unit_points(rays, seen, cam)
    clip = torch.div(picture, view.phase.shape[1], rounding_mode="floor")
    points = sided_points(world, (hits.solid + clip * S).flatten(), unit)
    slant = _slant(world, view, rays, points, seen)
    colour = paint(world, points, library, _footprint(world, hits, cam, slant))
    light = slant.light * _shadows(world, view, hits, cam)
    return (colour * light).view(3, *hits.depth.shape)


def sided_points(world: World, row: Tensor, unit: Axes) -> Points:
    """Material points with the sides they lie on; a ball is seen as the cube around it."""
    kind = world.solids.kind.flatten()[row]
    is_flat = kind >= Kind.QUAD
    ax, ay, az = (each.abs() for each in unit)
    is_z = (az > torch.maximum(ax, ay)) | is_flat
    is_y = (ay > ax) & ~is_z
    along = torch.where(is_z, unit.z, torch.where(is_y, unit.y, unit.x))
    # Both faces of a quad show the same picture.
    side = torch.where(is_z, 2, is_y.long()) + 3 * ((along > 0) | is_flat)
    return Points(row, side, unit)


def paint(world: World, points: Points, library: Library, footprint: Tensor) -> Tensor:
    """Colours (3, P) without light of points seen with pixels `footprint` (P,) metres wide."""
    surfaces = world.surfaces
    at = points.row * _SIDES + points.side
    tiles = _column(surfaces.tiles)[at]
    u, v = _metres_on_side(world, points)
    u = u * tiles + _column(surfaces.offset[..., 0])[at]
    v = v * tiles + _column(surfaces.offset[..., 1])[at]
    level = torch.log2(footprint * tiles * library.edge[0])
    picture = library.sample(surfaces.texture.flatten()[at], (u, v), level)
    grey = picture.mean(dim=0)
    varied = _column(surfaces.saturation)[at] * (picture - grey) + (grey - 0.5)
    base = torch.stack([_column(each)[at] for each in surfaces.base.unbind(-1)])
    return torch.addcmul(base, _column(surfaces.contrast)[at], varied).clamp(0.02, 1.0)


def _column(table: Tensor) -> Tensor:
    return table.flatten().float()


def _camera_points(world: World, hits: Hits) -> Axes:
    """Hit points in the cameras, each coordinate (F H W,)."""
    F, height, width = hits.depth.shape
    K = world.K.repeat_interleave(F // len(world.K), 0)
    x = (torch.arange(width, device=K.device) - K[:, 0, 2:]) / K[:, 0, :1]
    y = (torch.arange(height, device=K.device) - K[:, 1, 2:]) / K[:, 1, 1:2]
    across = hits.depth * x[:, None, :].to(hits.depth)
    along = hits.depth * y[:, :, None].to(hits.depth)
    return Axes(across.flatten(), along.flatten(), hits.depth.flatten())


def _unit_points(rays: Lens, seen: Tensor, cam: Axes) -> Axes:
    """Hit points in the unit frames of their solids."""
    matrix, origin = rays.matrix.flatten(0, 1), rays.origin.flatten(0, 1)
    return Axes(
        *(_affine(origin[:, axis], matrix[:, axis].unbind(-1), seen, cam) for axis in range(3))
    )


def _affine(constant: Tensor, factors: tuple[Tensor, ...], row: Tensor, point: Axes) -> Tensor:
    """Constant + factors . point with the numbers of each point's own row."""
    total = constant.contiguous()[row]
    for factor, coordinate in zip(factors, point, strict=True):
        total = total.addcmul_(factor.contiguous()[row], coordinate)
    return total


def _metres_on_side(world: World, points: Points) -> tuple[Tensor, Tensor]:
    """Coordinates (P,) along the two other axes of the side."""
    half = world.solids.half_size.flatten(0, 1).float()
    x, y, z = (
        each * half[:, axis].contiguous()[points.row] for axis, each in enumerate(points.unit)
    )
    axis = points.side % 3
    is_ball = (world.solids.kind.flatten() == Kind.ELLIPSOID)[points.row]
    ux, uy, uz = points.unit
    top = torch.maximum(torch.maximum(ux.abs(), uy.abs()), uz.abs())
    push = torch.where(is_ball, 1.0 / top, 1.0)
    u = torch.where(axis == 0, y, x) * push
    v = torch.where(axis == 2, y, z) * push
    return u, v


def _slant(world: World, view: Views, rays: Lens, points: Points, seen: Tensor) -> _Slant:
    """Light and distance of the touching plane: by side, but by point where it is curved."""
    lamp = _in_solids(world, view)
    half = world.solids.half_size[:, None].expand_as(lamp).flatten(0, 1)
    lamp = lamp.flatten(0, 1)
    signs = torch.tensor([-1.0, 1.0], device=lamp.device)
    facing = (signs[:, None] * lamp.unsqueeze(-2)).flatten(-2)
    facing[:, 0] *= -1.0  # the room is seen from inside
    is_flat = world.solids.kind.repeat_interleave(len(lamp) // len(world.K), 0) >= Kind.QUAD
    facing = torch.where(is_flat.unsqueeze(-1), facing.abs(), facing)
    signed = signs[:, None] * torch.where(is_flat[..., None], 0.0, 1.0)[..., None]
    plane = (half.unsqueeze(-2) * (signed - rays.origin.unsqueeze(-2)).abs()).flatten(-2)
    at = seen * _SIDES + points.side
    light = _column(_AMBIENT + _DIFFUSE * facing.clamp(min=0.0))[at]
    distance = _column(plane)[at]
    _bend(world, view, rays, points, seen, light, distance)
    return _Slant(light, distance)


def _in_solids(world: World, view: Views) -> Tensor:
    """Directions (B, T, S, 3) to the lamps in the frames of the solids."""
    lamp = world.surfaces.light[:, None, None, :, None]
    return (view.T_world_solid[..., :3, :3].mT @ lamp).squeeze(-1)


def _bend(
    world: World,
    view: Views,
    rays: Lens,
    points: Points,
    seen: Tensor,
    light: Tensor,
    distance: Tensor,
) -> None:
    """Write light and distance of the points on balls and bent quads, in place."""
    kind = world.solids.kind.flatten()[points.row]
    rows = ((kind == Kind.ELLIPSOID) | (kind == Kind.BENT_QUAD)).nonzero().squeeze(-1)
    at, unit = seen[rows], torch.stack([each[rows] for each in points.unit], dim=-1)
    number, phase = rays.number.flatten()[at], rays.phase.flatten()[at]
    slope = -number * torch.cos(number * unit[:, 0] + phase)
    wavy = torch.stack([slope, torch.zeros_like(slope), torch.ones_like(slope)], dim=-1)
    is_ball = (kind[rows] == Kind.ELLIPSOID).unsqueeze(-1)
    half = world.solids.half_size.flatten(0, 1).float()[points.row[rows]]
    normal = torch.nn.functional.normalize(torch.where(is_ball, unit, wavy) / half, dim=-1)
    lamp = _in_solids(world, view).flatten(0, 2).float()[at]
    facing = (normal * lamp).sum(dim=-1)
    facing = torch.where(is_ball.squeeze(-1), facing, facing.abs()).clamp(min=0.0)
    light[rows] = _AMBIENT + _DIFFUSE * facing
    away = (rays.origin.flatten(0, 1)[at] - unit) * half
    distance[rows] = (normal * away).sum(dim=-1).abs()


def _footprint(world: World, hits: Hits, cam: Axes, slant: _Slant) -> Tensor:
    """Width (P,) of the pixels on the surfaces, metres: geometric mean of both directions."""
    focal = world.K[:, 0, 0].float().repeat_interleave(len(cam.z) // len(world.K))
    length = (cam.x.square() + cam.y.square() + cam.z.square()).sqrt()
    cosine = (slant.distance / length).clamp(min=_LEAST_SLANT)
    return cam.z / (focal * cosine.sqrt())


def _shadows(world: World, view: Views, hits: Hits, cam: Axes) -> Tensor:
    """Brightness (P,) below the solids that throw a dark blob; 1 elsewhere."""
    strength = world.surfaces.shadow
    if not bool((strength > 0).any()):
        return torch.ones_like(cam.z)
    x, y, z = _world_points(view, hits, cam)
    T = view.phase.shape[1]
    caster = world.surfaces.shadow_solid
    pick = caster[:, None, :, None].expand(-1, T, -1, 3)
    centre = view.T_world_solid[..., :3, 3].gather(2, pick).float()
    half = world.solids.half_size[..., :2].mean(dim=-1).gather(1, caster)
    total = torch.ones_like(x)
    for blob in range(caster.shape[1]):
        cx, cy, cz = (each[..., None, None] for each in centre[:, :, blob].unbind(-1))
        wide = (1.3 * half[:, blob, None, None, None].float()).square()
        dark = strength[:, blob, None, None, None].float() * (z < cz)
        total = total * (1.0 - dark * (-((x - cx).square() + (y - cy).square()) / wide).exp())
    return total.flatten()


def _world_points(view: Views, hits: Hits, cam: Axes) -> Axes:
    """Hit points in the world, each coordinate (B, T, H, W)."""
    shape = (*view.phase.shape[:2], *hits.depth.shape[1:])
    x, y, z = (each.view(shape) for each in cam)
    T = view.T_world_cam[..., None, None].float()
    axes = (
        T[:, :, axis, 0] * x + T[:, :, axis, 1] * y + T[:, :, axis, 2] * z + T[:, :, axis, 3]
        for axis in range(3)
    )
    return Axes(*axes)

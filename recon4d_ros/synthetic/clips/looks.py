"""What is painted on the sides of solids in single pictures, as columns of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips.motion import Views
from recon4d_ros.synthetic.clips.pictures import Pictures
from recon4d_ros.synthetic.clips.world import Kind, World

AMBIENT, DIFFUSE = 0.62, 0.5
NUM_SIDES = 6

# Axes that a side's picture runs along, for sides -x, -y, -z, x, y, z.
_ACROSS = (1, 0, 0, 1, 0, 0)
_DOWN = (2, 2, 1, 2, 2, 1)


@dataclass(frozen=True, eq=False)
class Looks:
    """Columns over the F S 6 sides in F pictures, float32 unless said otherwise.

    Attributes:
        texture: (F, S 6) int64 of the library.
        scale: (2, F, S 6) tiles per unit along both axes of the side.
        offset: (2, F, S 6) tiles.
        density: (F, S 6) tiles per metre.
        base: (3, F, S 6) colour where the texture is black.
        vivid, grey: (F, S 6) factors of the texture's colours and of their mean.
        light: (F, S 6) brightness of flat sides.
        distance: (F, S 6) of the camera from the plane of flat sides, metres.
        lamp: (F, S, 3) unit vector to the lamp in the frame of the solid.
        half_size: (F, S, 3).
        T_world_cam: (F, 4, 4).
        blob: (F, M, 5) x, y and z, radius and strength of shadows in the world.
    """

    texture: Tensor
    scale: Tensor
    offset: Tensor
    density: Tensor
    base: Tensor
    vivid: Tensor
    grey: Tensor
    light: Tensor
    distance: Tensor
    lamp: Tensor
    half_size: Tensor
    T_world_cam: Tensor
    blob: Tensor

    def of(self, rows: slice) -> Looks:
        """Those of chosen pictures."""
        return Looks(
            self.texture[rows],
            self.scale[:, rows],
            self.offset[:, rows],
            self.density[rows],
            self.base[:, rows],
            self.vivid[rows],
            self.grey[rows],
            self.light[rows],
            self.distance[rows],
            self.lamp[rows],
            self.half_size[rows],
            self.T_world_cam[rows],
            self.blob[rows],
        )


def looks(world: World, view: Views, pictures: Pictures) -> Looks:
    """Columns of all pictures of the views."""
    T = view.phase.shape[1]
    surfaces = world.surfaces

    def of_clips(values: Tensor) -> Tensor:
        return values.repeat_interleave(T, 0)

    half = of_clips(world.solids.half_size).float()
    lamp = (view.T_world_solid[..., :3, :3].mT @ surfaces.light[:, None, None, :, None]).float()
    lamp = lamp.squeeze(-1).flatten(0, 1)
    tiles = of_clips(surfaces.tiles).float()
    axes = (half[..., _ACROSS] * tiles, half[..., _DOWN] * tiles)
    contrast = of_clips(surfaces.contrast).float().flatten(1)
    saturation = of_clips(surfaces.saturation).float().flatten(1)
    offset = of_clips(surfaces.offset).float().flatten(1, 2)
    base = of_clips(surfaces.base).float().flatten(1, 2) - 0.5 * contrast.unsqueeze(-1)
    return Looks(
        texture=of_clips(surfaces.texture).flatten(1),
        scale=torch.stack([axis.flatten(1) for axis in axes]),
        offset=offset.permute(2, 0, 1),
        density=tiles.flatten(1),
        base=base.permute(2, 0, 1),
        vivid=contrast * saturation,
        grey=contrast * (1.0 - saturation),
        light=_light(pictures, lamp),
        distance=_distance(pictures, half),
        lamp=lamp,
        half_size=half,
        T_world_cam=view.T_world_cam.flatten(0, 1).float(),
        blob=_blobs(world, view),
    )


def _light(pictures: Pictures, lamp: Tensor) -> Tensor:
    """Brightness (F, S 6) of flat sides; the room's are seen from inside, quads from both."""
    facing = torch.cat([-lamp, lamp], dim=-1)
    facing = torch.where((pictures.kind == Kind.ROOM).unsqueeze(-1), -facing, facing)
    facing = torch.where((pictures.kind >= Kind.QUAD).unsqueeze(-1), facing.abs(), facing)
    return (AMBIENT + DIFFUSE * facing.clamp(min=0.0)).flatten(1)


def _distance(pictures: Pictures, half: Tensor) -> Tensor:
    """(F, S 6) of the camera from the planes of the sides; a quad lies in the middle."""
    out = torch.where(pictures.kind >= Kind.QUAD, 0.0, 1.0).unsqueeze(-1)
    away = torch.cat([pictures.origin + out, pictures.origin - out], dim=-1).abs()
    return (away * torch.cat([half, half], dim=-1)).flatten(1)


def _blobs(world: World, view: Views) -> Tensor:
    """(F, M, 5): centre, radius and strength of shadows below solids."""
    T = view.phase.shape[1]
    caster = world.surfaces.shadow_solid
    pick = caster[:, None, :, None].expand(-1, T, -1, 3)
    centre = view.T_world_solid[..., :3, 3].gather(2, pick)
    radius = 1.3 * world.solids.half_size[..., :2].mean(dim=-1).gather(1, caster)
    each = torch.stack([radius, world.surfaces.shadow], dim=-1)
    blob = torch.cat([centre, each[:, None].expand(-1, T, -1, -1)], dim=-1)
    return blob.flatten(0, 1).float()

"""Draw what is painted on solids: a handful of materials that all solids of a clip share."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.settings import ClipSettings
from recon4d_ros.synthetic.clips.world import Solids, Surfaces

_NUM_MATERIALS = 5
_SIDES = 6
_NUM_SHADOWS = 4


def draw_surfaces(
    settings: ClipSettings, dice: Dice, solids: Solids, distance: Tensor
) -> Surfaces:
    """Surfaces of all solids; `distance` (B, S) from which each is seen makes tiles fit."""
    places = distance.shape[1]
    material = dice.whole(0, _NUM_MATERIALS - 1, places, 1)
    # Some solids, and most rooms, have other materials on other sides.
    mixed = dice.whole(0, _NUM_MATERIALS - 1, places, _SIDES)
    is_mixed = dice.chance(0.3, places, 1)
    is_mixed[:, 0] = True
    material = torch.where(is_mixed, mixed, material)
    tile = _draw_tiles(settings, dice).gather(1, material.flatten(1)).view_as(material)
    away = distance.clone()
    away[:, 0] = distance[:, 1:].mean(dim=1)
    size = tile * away.unsqueeze(-1) * dice.log_uniform(0.7, 1.4, places, 1)
    casters = dice.whole(1, places - 1, _NUM_SHADOWS)
    is_shadow = solids.is_present.gather(1, casters) & dice.chance(settings.effects.shadows, 1)
    return Surfaces(
        texture=_pick(dice.whole(0, settings.num_textures - 1, _NUM_MATERIALS), material),
        tiles=1.0 / size,
        offset=dice.uniform(0.0, 1.0, places, _SIDES, 2),
        base=_draw_colours(dice, material),
        contrast=_pick(_draw_contrast(settings, dice), material),
        saturation=_pick(dice.log_uniform(0.7, 6.0, _NUM_MATERIALS), material),
        light=_draw_light(dice),
        shadow_solid=casters,
        shadow=dice.uniform(0.25, 0.7, _NUM_SHADOWS) * is_shadow,
    )


def _pick(values: Tensor, material: Tensor) -> Tensor:
    """(B, S, 6) of values (B, M)."""
    return values.gather(1, material.flatten(1)).view_as(material)


def _draw_tiles(settings: ClipSettings, dice: Dice) -> Tensor:
    """Edges (B, M) of the pictures, share of the distance they are seen from."""
    usual = dice.log_uniform(0.35, 1.1, _NUM_MATERIALS)
    small = dice.log_uniform(0.1, 0.25, _NUM_MATERIALS)
    return torch.where(dice.chance(settings.repeated, _NUM_MATERIALS), small, usual)


def _draw_contrast(settings: ClipSettings, dice: Dice) -> Tensor:
    usual = dice.uniform(0.5, 1.3, _NUM_MATERIALS)
    plain = dice.uniform(0.0, 0.06, _NUM_MATERIALS)
    return torch.where(dice.chance(settings.plain, _NUM_MATERIALS), plain, usual)


def _draw_colours(dice: Dice, material: Tensor) -> Tensor:
    """Mean colours (B, S, 6, 3): that of the material, a little different on each solid."""
    grey = dice.uniform(0.25, 0.75, _NUM_MATERIALS, 1)
    colour = (grey + 0.15 * dice.direction(_NUM_MATERIALS)).clamp(0.05, 0.95)
    rows = material.flatten(1).unsqueeze(-1).expand(-1, -1, 3)
    chosen = colour.gather(1, rows).view(*material.shape, 3)
    return chosen + dice.uniform(-0.08, 0.08, material.shape[1], 1, 1)


def _draw_light(dice: Dice) -> Tensor:
    """Unit vectors (B, 3) to a lamp somewhere above."""
    way = dice.direction()
    way[:, 2] += 1.5
    unit: Tensor = way / torch.linalg.vector_norm(way, dim=-1, keepdim=True)
    return unit

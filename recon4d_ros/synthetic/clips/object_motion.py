"""Draw how solids move."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.motion import camera_poses
from recon4d_ros.synthetic.clips.settings import ClipSettings
from recon4d_ros.synthetic.clips.world import CameraPath, Kind, Solids

_WAVING = 0.7


def draw_motion(
    settings: ClipSettings,
    dice: Dice,
    solids: Solids,
    path: CameraPath,
    movers: Tensor,
    standing: Tensor,
) -> Solids:
    """The same solids, of which `movers` (B, S) move; `standing` ones stay on the floor."""
    places = movers.shape[1]
    shares = dataclasses.asdict(settings.objects)
    kind = dice.choice(tuple(shares.values()), places)
    chosen = {name: movers & (kind == place) for place, name in enumerate(shares)}
    eye, baseline = _camera_at(path, solids.reference)
    ray = solids.T_world_reference[..., :3, 3] - eye
    distance = torch.linalg.vector_norm(ray, dim=-1)
    step = distance * dice.log_uniform(*settings.object_speed, places)
    velocity = step.unsqueeze(-1) * _heading(dice, chosen, ray, baseline, standing)
    radius = distance * dice.uniform(0.15, 0.6, places)
    turn, pivot = _draw_turns(dice, solids, chosen, step, radius, standing)
    begin, end = _draw_pauses(settings, dice, places)
    return dataclasses.replace(
        solids,
        velocity=velocity,
        turn=turn,
        pivot=pivot,
        begin=begin,
        end=end,
        is_following=chosen["following"],
        phase_rate=_draw_waving(dice, solids.kind, movers),
    )


def _camera_at(path: CameraPath, times: Tensor) -> tuple[Tensor, Tensor]:
    """Where the camera is (B, S, 3), and by how much it moves per frame there."""
    before, after = (camera_poses(path, times + shift)[..., :3, 3] for shift in (-0.5, 0.5))
    return (before + after) / 2.0, after - before


def _heading(
    dice: Dice, chosen: dict[str, Tensor], ray: Tensor, baseline: Tensor, standing: Tensor
) -> Tensor:
    """Unit directions (B, S, 3) of straight motions, zero for the others."""
    places = standing.shape[1]
    sign = (1.0 - 2.0 * dice.chance(0.5, places)).unsqueeze(-1)
    still = torch.linalg.vector_norm(baseline, dim=-1) < 1e-9
    radial = (dice.chance(0.5, places) | still).unsqueeze(-1)
    epipolar = sign * torch.where(radial, ray, baseline)
    free = dice.direction(places)
    flat = torch.ones_like(free)
    flat[..., 2] = 1.0 - 1.0 * standing
    free = free * flat
    way = torch.where(chosen["along_ray"].unsqueeze(-1), epipolar, free)
    unit = way / torch.linalg.vector_norm(way, dim=-1, keepdim=True).clamp(min=1e-9)
    heading: Tensor = unit * (chosen["along_ray"] | chosen["constant"]).unsqueeze(-1)
    return heading


def _draw_turns(
    dice: Dice,
    solids: Solids,
    chosen: dict[str, Tensor],
    step: Tensor,
    radius: Tensor,
    standing: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rotation vectors per frame and pivots, both (B, S, 3)."""
    places = standing.shape[1]
    up = torch.tensor([0.0, 0.0, 1.0]).to(step)
    axis = torch.where(standing.unsqueeze(-1), up, dice.direction(places))
    sign = 1.0 - 2.0 * dice.chance(0.5, places)
    spinning = chosen["spin"] | (chosen["constant"] & dice.chance(0.5, places))
    spin = dice.log_uniform(0.02, 0.2, places)
    rate = sign * torch.where(chosen["arc"], step / radius, spin * spinning)
    away = torch.linalg.cross(axis, dice.direction(places), dim=-1)
    away = away / torch.linalg.vector_norm(away, dim=-1, keepdim=True).clamp(min=1e-9)
    centre = solids.T_world_reference[..., :3, 3]
    arm = (radius * chosen["arc"]).unsqueeze(-1) * away
    return rate.unsqueeze(-1) * axis, centre + arm


def _draw_pauses(settings: ClipSettings, dice: Dice, places: int) -> tuple[Tensor, Tensor]:
    """First and last time (B, S) of the motions; without end but for stop-and-go."""
    last = settings.num_frames - 1.0
    pauses = dice.chance(settings.stop_and_go, places)
    starts = dice.chance(0.5, places)
    at = dice.uniform(0.2 * last, 0.8 * last, places)
    begin = torch.where(pauses & starts, at, torch.full_like(at, -1e6))
    end = torch.where(pauses & ~starts, at, torch.full_like(at, 1e6))
    return begin, end


def _draw_waving(dice: Dice, kind: Tensor, movers: Tensor) -> Tensor:
    """Phase (B, S) per frame of bent quads that move."""
    places = kind.shape[1]
    waving = movers & (kind == Kind.BENT_QUAD) & dice.chance(_WAVING, places)
    rate = dice.log_uniform(0.1, 0.6, places) * (1.0 - 2.0 * dice.chance(0.5, places))
    return rate * waving

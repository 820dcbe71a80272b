"""Which solids move in the world, by the rules that data sets use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import se3
from recon4d_ros.synthetic.clips.motion import Views
from recon4d_ros.synthetic.clips.settings import LabelRule
from recon4d_ros.synthetic.clips.world import Kind, World

# Share of the distance per frame: up to the first a solid rests, above the second it moves.
RESTING_SPEED, MOVING_SPEED = 0.0005, 0.003
# Kubric's scenes: metres and degrees per frame.
KUBRIC_STEP, KUBRIC_TURN_DEG = 0.01, 0.5


@dataclass(frozen=True, eq=False)
class SolidLabels:
    """What solids do.

    Attributes:
        moves_in_clip: (B, S) bool.
        moves_in_frame: (B, T, S) bool, to the next frame or from the one before.
        is_judged: (B, S) bool, False between resting and moving.
    """

    moves_in_clip: Tensor
    moves_in_frame: Tensor
    is_judged: Tensor


def solid_labels(world: World, view: Views, rule: LabelRule) -> SolidLabels:
    """Labels of all solids by a rule, from their poses alone."""
    if rule is LabelRule.RELATIVE_SPEED:
        speed = relative_speeds(world, view)
        moves = speed > MOVING_SPEED
        is_judged = moves.any(dim=1) | (speed <= RESTING_SPEED).all(dim=1)
    else:
        moves = _kubric(view, count_turns=rule is LabelRule.KUBRIC)
        is_judged = torch.ones_like(moves[:, 0])
    moves = moves & world.solids.is_present[:, None]
    return SolidLabels(moves.any(dim=1), _about_frames(moves), is_judged)


def relative_speeds(world: World, view: Views) -> Tensor:
    """(B, T - 1, S): largest step of a corner to the next frame, share of its distance."""
    T = view.T_world_solid
    points = world.solids.corners()[:, None] @ T[..., :3, :3].mT + T[..., None, :3, 3]
    step = torch.linalg.vector_norm(points[:, 1:] - points[:, :-1], dim=-1).amax(dim=-1)
    away = T[..., :3, 3] - view.T_world_cam[:, :, None, :3, 3]
    distance = torch.linalg.vector_norm(away, dim=-1)[:, :-1]
    speed: Tensor = (step + _waving(world, view)) / distance.clamp(min=1e-6)
    return speed


def _waving(world: World, view: Views) -> Tensor:
    """(B, T - 1, S): largest step of a bent quad across itself."""
    is_bent = world.solids.kind == Kind.BENT_QUAD
    amplitude = world.solids.half_size[..., 2] * is_bent
    turn = view.phase[:, 1:] - view.phase[:, :-1]
    return 2.0 * amplitude[:, None] * (0.5 * turn).sin().abs()


def _kubric(view: Views, count_turns: bool) -> Tensor:
    """(B, T - 1, S) bool: the position, or the orientation, changes to the next frame."""
    T = view.T_world_solid
    step = torch.linalg.vector_norm(T[:, 1:, :, :3, 3] - T[:, :-1, :, :3, 3], dim=-1)
    turn = se3.angle(T[:, :-1, :, :3, :3].mT @ T[:, 1:, :, :3, :3])
    turns = torch.rad2deg(turn) > KUBRIC_TURN_DEG
    return torch.logical_or(step > KUBRIC_STEP, turns & count_turns)


def _about_frames(moves: Tensor) -> Tensor:
    """(B, T, S) of (B, T - 1, S): a step is about both frames that it joins."""
    none = torch.zeros_like(moves[:, :1])
    return torch.cat([moves, none], dim=1) | torch.cat([none, moves], dim=1)

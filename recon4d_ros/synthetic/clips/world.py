"""B procedural scenes as tensors: what there is, how it looks and by which law it moves.

The world has z upward; lengths are metres, times are frames, so speeds are per frame. Solids are
described in their unit frame, in which a box reaches from -1 to 1 along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor


class Kind(IntEnum):
    """Surfaces in the unit frame."""

    ROOM = 0  # the cube seen from inside
    BOX = 1
    ELLIPSOID = 2
    QUAD = 3  # z = 0
    BENT_QUAD = 4  # z = sin(wave x + phase); the third half size is its amplitude


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A smooth motion of the optical frame, told in its frame at time 0.

    Attributes:
        T_world_start: (B, 4, 4) float64.
        velocity: (B, 3), per frame.
        turn: (B, 3) rotation vector per frame.
        orbit_rate: (B,) rad per frame around a point at (0, 0, orbit_radius).
        orbit_radius: (B,).
        sway, sway_rate, sway_phase: (B, 6, W) amplitude, rad per frame and phase of the waves
            of the hand: three axes of translation, three of rotation.
    """

    T_world_start: Tensor
    velocity: Tensor
    turn: Tensor
    orbit_rate: Tensor
    orbit_radius: Tensor
    sway: Tensor
    sway_rate: Tensor
    sway_phase: Tensor


@dataclass(frozen=True, eq=False)
class Solids:
    """S places for solids in each of B clips; the first holds the room.

    Attributes:
        kind: (B, S) int64 of `Kind`.
        half_size: (B, S, 3) float64.
        is_present: (B, S) bool; the others are not there at all.
        T_world_reference: (B, S, 4, 4) float64, where the solid is at its reference time.
        reference: (B, S) that time.
        velocity: (B, S, 3).
        turn: (B, S, 3) rotation vector per frame, in the world.
        pivot: (B, S, 3) fixed point of the turn, in the world.
        begin, end: (B, S) the motion is held before and after.
        is_following: (B, S) bool, fixed to the camera instead of all the above.
        wave: (B, S) rad per unit of x.
        phase, phase_rate: (B, S) of the wave.
    """

    kind: Tensor
    half_size: Tensor
    is_present: Tensor
    T_world_reference: Tensor
    reference: Tensor
    velocity: Tensor
    turn: Tensor
    pivot: Tensor
    begin: Tensor
    end: Tensor
    is_following: Tensor
    wave: Tensor
    phase: Tensor
    phase_rate: Tensor

    def corners(self) -> Tensor:
        """Corners (B, S, 8, 3) of the boxes around the solids, in their own frames."""
        signs = torch.tensor([-1.0, 1.0]).to(self.half_size)
        return torch.cartesian_prod(signs, signs, signs) * self.half_size[:, :, None]


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What is painted on the six sides (-x, -y, -z, x, y, z) of the S solids, and the light.

    Attributes:
        texture: (B, S, 6) int64, picture of the library.
        tiles: (B, S, 6) pictures per metre.
        offset: (B, S, 6, 2) of the picture, tiles.
        base: (B, S, 6, 3) mean colour.
        contrast, saturation: (B, S, 6) of the picture around it.
        light: (B, 3) unit vector towards the lamp, in the world.
        shadow_solid: (B, M) int64, solids that throw a dark blob on what is below them.
        shadow: (B, M) its strength in [0, 1].
    """

    texture: Tensor
    tiles: Tensor
    offset: Tensor
    base: Tensor
    contrast: Tensor
    saturation: Tensor
    light: Tensor
    shadow_solid: Tensor
    shadow: Tensor


@dataclass(frozen=True, eq=False)
class World:
    """B scenes.

    Attributes:
        K: (B, 3, 3) float64.
        camera_kind: (B,) int64, position in `sampling.CAMERA_KINDS`.
        camera, solids, surfaces: what they are.
    """

    K: Tensor
    camera_kind: Tensor
    camera: CameraPath
    solids: Solids
    surfaces: Surfaces

    def of(self, clips: Tensor) -> World:
        """The scenes of chosen clips (n,)."""
        return World(
            self.K[clips],
            self.camera_kind[clips],
            _rows(self.camera, clips),
            _rows(self.solids, clips),
            _rows(self.surfaces, clips),
        )


_Table = TypeVar("_Table", CameraPath, Solids, Surfaces)


def _rows(table: _Table, clips: Tensor) -> _Table:
    """The same with the chosen clips of every field."""
    chosen = {field.name: getattr(table, field.name)[clips] for field in fields(table)}
    return type(table)(**chosen)

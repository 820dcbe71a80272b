"""Laws of motion: the pose of a solid or a camera at any time.

Positions are metres in the world (z up), rotations are rotation vectors in radians, times are
seconds. A camera pose is that of the optical frame (x right, y down, z forward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from recon4d_ros.geometry import se3

Vector = tuple[float, float, float]

ORIGIN: Vector = (0.0, 0.0, 0.0)


class Motion(Protocol):
    """Gives a pose for every time."""

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64 at `time_s`."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Never moves."""

    position: Vector
    rotation: Vector = ORIGIN

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64, the same at every time."""
        return _resting(self.position, self.rotation).clone()


@dataclass(frozen=True)
class Swing:
    """Translates to and fro along `travel` around `position`, smoothly.

    Attributes:
        position: middle of the path.
        travel: half of the path.
        period_s: time of one return trip.
        phase: share of the period at which it starts.
        rotation: constant orientation.
    """

    position: Vector
    travel: Vector
    period_s: float
    phase: float = 0.0
    rotation: Vector = ORIGIN

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64 at `time_s`."""
        share = math.sin(2.0 * math.pi * (time_s / self.period_s + self.phase))
        centre = _vector(self.position) + share * _vector(self.travel)
        return _pose(centre, _vector(self.rotation))


@dataclass(frozen=True)
class Orbit:
    """Runs on a horizontal circle and turns with it, like a toy train.

    Attributes:
        centre: of the circle.
        radius: metres.
        period_s: time of one round; negative runs clockwise.
        phase: share of the round at which it starts.
    """

    centre: Vector
    radius: float
    period_s: float
    phase: float = 0.0

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64 at `time_s`."""
        angle = 2.0 * math.pi * (time_s / self.period_s + self.phase)
        offset = _vector((self.radius * math.cos(angle), self.radius * math.sin(angle), 0.0))
        return _pose(_vector(self.centre) + offset, _vector((0.0, 0.0, angle)))


@dataclass(frozen=True)
class Spin:
    """Turns on the spot around a world axis.

    Attributes:
        position: of the centre.
        rate: rotation vector per second, rad/s.
    """

    position: Vector
    rate: Vector

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64 at `time_s`."""
        return _pose(_vector(self.position), _vector(self.rate) * time_s)


@dataclass(frozen=True)
class StopAndGo:
    """Travels to the end of its path, rests, travels back, rests, and so on.

    Attributes:
        position: start of the path.
        travel: from the start to the end.
        move_s: time of one trip.
        rest_s: time of one rest; the motion begins with a trip.
        rotation: constant orientation.
    """

    position: Vector
    travel: Vector
    move_s: float
    rest_s: float
    rotation: Vector = ORIGIN

    def pose(self, time_s: float) -> Tensor:
        """T_world_object (4, 4) float64 at `time_s`."""
        leg, within = divmod(time_s, self.move_s + self.rest_s)
        share = min(within / self.move_s, 1.0)
        eased = share * share * (3.0 - 2.0 * share)
        along = eased if leg % 2 == 0 else 1.0 - eased
        centre = _vector(self.position) + along * _vector(self.travel)
        return _pose(centre, _vector(self.rotation))


@dataclass(frozen=True)
class HandHeld:
    """A camera carried along waypoints while it looks at moving targets, with a little tremor.

    Attributes:
        eyes: waypoints of the camera centre, equally spaced in time (at least two).
        targets: points looked at, at the same times.
        duration_s: time from the first to the last waypoint; the path is extended beyond.
        tremor_m: amplitude of the shaking of the centre, metres.
        tremor_rad: amplitude of the shaking of the orientation.
        seed: of the tremor.
    """

    eyes: tuple[Vector, ...]
    targets: tuple[Vector, ...]
    duration_s: float
    tremor_m: float = 0.0
    tremor_rad: float = 0.0
    seed: int = 0

    def pose(self, time_s: float) -> Tensor:
        """T_world_cam (4, 4) float64 at `time_s`."""
        eye = _on_spline(self.eyes, self.duration_s, time_s)
        target = _on_spline(self.targets, self.duration_s, time_s)
        shake = _tremor(self.seed, time_s)
        eye = eye + self.tremor_m * shake[:3]
        return look_at(eye, target) @ _pose(torch.zeros_like(eye), self.tremor_rad * shake[3:])


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """T_world_cam (4, 4) of a camera at `eye` that looks at `target` with the world's z upward."""
    forward = _unit(target - eye)
    right = _unit(torch.linalg.cross(forward, _vector((0.0, 0.0, 1.0))))
    down = torch.linalg.cross(forward, right)
    return se3.make(torch.stack([right, down, forward], dim=-1), eye)


def _pose(position: Tensor, rotation: Tensor) -> Tensor:
    return se3.assemble(se3.exp_so3(rotation), position)


@lru_cache(maxsize=256)
def _resting(position: Vector, rotation: Vector) -> Tensor:
    return _pose(_vector(position), _vector(rotation))


def _vector(values: Vector) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit


@lru_cache(maxsize=64)
def _spline(knots: tuple[Vector, ...], duration_s: float) -> CubicSpline:
    times = np.linspace(0.0, duration_s, len(knots))
    return CubicSpline(times, np.asarray(knots), bc_type="natural")


def _on_spline(knots: tuple[Vector, ...], duration_s: float, time_s: float) -> Tensor:
    return torch.from_numpy(np.asarray(_spline(knots, duration_s)(time_s), dtype=np.float64))


@lru_cache(maxsize=64)
def _tremor_waves(seed: int) -> tuple[Tensor, Tensor]:
    """Frequencies (Hz) and phases, each (6, 3): three waves for each of six axes."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([0.4, 1.1, 2.5], dtype=torch.float64)
    spread = 1.0 + 0.5 * torch.rand((6, 3), generator=generator, dtype=torch.float64)
    phases = 2.0 * math.pi * torch.rand((6, 3), generator=generator, dtype=torch.float64)
    return low * spread, phases


def _tremor(seed: int, time_s: float) -> Tensor:
    """Shaking (6,) of about unit amplitude; fast waves are weak, as a hand's are."""
    frequencies, phases = _tremor_waves(seed)
    strength = torch.tensor([0.7, 0.25, 0.08], dtype=torch.float64)
    return (strength * torch.sin(2.0 * math.pi * frequencies * time_s + phases)).sum(dim=-1)

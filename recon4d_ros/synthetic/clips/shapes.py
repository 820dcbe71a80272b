"""Where rays meet the surfaces, each in its unit frame; every tensor broadcasts with the others.

Rays are origin + depth * direction with direction z = 1 in the camera, so the ray parameter is
the z-depth. Works in float32 for pictures and in float64 for tracks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEAR_M = 0.02

# Steps of false position until a bent quad is met to the rounding of float32.
_BENT_STEPS = 9


class Axes(NamedTuple):
    """The three coordinates of vectors, apart."""

    x: Tensor
    y: Tensor
    z: Tensor


class Wave(NamedTuple):
    """Form of a bent quad: z = sin(number * x + phase)."""

    number: Tensor
    phase: Tensor


def room(origin: Axes, direction: Axes) -> Tensor:
    """Depth at which rays from inside leave the cube."""
    # Along a face, 1 / 0 is infinite and loses against the other axes.
    leave = [(1.0 - o * d.sign()) / d.abs() for o, d in zip(origin, direction, strict=True)]
    return torch.minimum(torch.minimum(leave[0], leave[1]), leave[2])


def box(origin: Axes, direction: Axes) -> Tensor:
    """Depth of entry into the cube (slab method), infinite for a miss."""
    enter, leave = _cross_cube(origin, direction)
    return torch.where((enter <= leave) & (enter > NEAR_M), enter, torch.inf)


def ellipsoid(origin: Axes, direction: Axes) -> Tensor:
    """Depth of the nearer point of the unit sphere, infinite for a miss."""
    a = direction.x.square() + direction.y.square() + direction.z.square()
    b = direction.x * origin.x + direction.y * origin.y + direction.z * origin.z
    # The nearest point of the ray to the centre, instead of b^2 - a c, which cancels in float32.
    foot = b / a
    rest = [o - foot * d for o, d in zip(origin, direction, strict=True)]
    inside = 1.0 - rest[0].square() - rest[1].square() - rest[2].square()
    near = -foot - (inside.clamp(min=0.0) / a).sqrt()
    return torch.where((inside > 0) & (near > NEAR_M), near, torch.inf)


def quad(origin: Axes, direction: Axes) -> Tensor:
    """Depth at which rays cross the square in z = 0, infinite for a miss."""
    depth = -origin.z / direction.z
    x = torch.addcmul(origin.x, depth, direction.x).abs()
    y = torch.addcmul(origin.y, depth, direction.y).abs()
    return torch.where((torch.maximum(x, y) <= 1.0) & (depth > NEAR_M), depth, torch.inf)


def bent_quad(origin: Axes, direction: Axes, wave: Wave) -> Tensor:
    """Depth at which rays cross the corrugated square, infinite for a miss.

    Where the ray enters the cube around it above the wave and leaves it below, or the other way
    round, false position (the Illinois rule) finds a crossing in between. A ray along the surface
    may cross it more than once: an even number counts as a miss, of an odd number one is found.
    """
    near, far = _cross_cube(origin, direction)
    above = _height(origin, direction, wave, near)
    below = _height(origin, direction, wave, far)
    crosses = (near < far) & (above * below <= 0)
    depth = near
    for _ in range(_BENT_STEPS):
        depth = (near * below - far * above) / (below - above)
        height = _height(origin, direction, wave, depth)
        same = height * above > 0
        # The end that stays counts half, else it would stay for ever on a bent curve.
        above, below = (
            torch.where(same, height, above * 0.5),
            torch.where(same, below * 0.5, height),
        )
        near, far = torch.where(same, depth, near), torch.where(same, far, depth)
    return torch.where(crosses & (depth > NEAR_M), depth, torch.inf)


def _cross_cube(origin: Axes, direction: Axes) -> tuple[Tensor, Tensor]:
    """Depths at which rays enter and leave the cube; they miss it unless enter <= leave."""
    enter, leave = _slab(origin[0], direction[0])
    for o, d in zip(origin[1:], direction[1:], strict=True):
        first, last = _slab(o, d)
        enter, leave = torch.maximum(enter, first), torch.minimum(leave, last)
    return enter, leave


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Depths at which rays enter and leave |coordinate| <= 1."""
    inverse = 1.0 / direction
    middle = -origin * inverse
    reach = inverse.abs()
    return middle - reach, middle + reach


def _height(origin: Axes, direction: Axes, wave: Wave, depth: Tensor) -> Tensor:
    x = origin.x + depth * direction.x
    return origin.z + depth * direction.z - (wave.number * x + wave.phase).sin()

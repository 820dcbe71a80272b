"""Named scenes, by what they are for.

All show the same furnished room of about 5 m, whose origin is its middle, z upward; they differ in
how the camera moves and in whether anything else does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import ConfigError
from recon4d_ros.synthetic.motions import (
    Fixed,
    HandHeld,
    Motion,
    Orbit,
    Spin,
    StopAndGo,
    Swing,
    Vector,
)
from recon4d_ros.synthetic.scene import Pattern, Scene, Shape, Solid, Texture

_TARGET: Vector = (1.3, 0.9, -0.35)
_EYE: Vector = (-1.5, -1.3, 0.1)


def demo(num_frames: int = 120, width: int = 640) -> Scene:
    """A hand-held camera walks 1 m through the room while four things move."""
    return _scene("demo", num_frames, width, _walk(), _furniture() + _movers())


def static_room(num_frames: int = 120, width: int = 640) -> Scene:
    """The camera of the demo in a world where nothing moves."""
    return _scene("static_room", num_frames, width, _walk(), _furniture())


def standing_still(num_frames: int = 60, width: int = 640) -> Scene:
    """Neither the camera nor anything else moves; frames differ by sensor noise alone."""
    return _scene("standing_still", num_frames, width, _stand(), _furniture())


def standing_camera(num_frames: int = 60, width: int = 640) -> Scene:
    """The camera stands while four things move."""
    return _scene("standing_camera", num_frames, width, _stand(), _furniture() + _movers())


def turning_camera(num_frames: int = 60, width: int = 640) -> Scene:
    """The camera turns around its own centre, so that there is no parallax at all."""
    return _scene("turning_camera", num_frames, width, _turn(), _furniture())


def large_mover(num_frames: int = 48, width: int = 640) -> Scene:
    """The camera of the demo behind a swaying crate that covers more than half of the picture."""
    return _scene("large_mover", num_frames, width, _walk(), (*_furniture(), _large_crate()))


SCENES: dict[str, Callable[[int, int], Scene]] = {
    "demo": demo,
    "static_room": static_room,
    "standing_still": standing_still,
    "standing_camera": standing_camera,
    "turning_camera": turning_camera,
    "large_mover": large_mover,
}


def named(name: str, num_frames: int, width: int = 640) -> Scene:
    """A scene by its name.

    Raises:
        ConfigError: there is no such scene.
    """
    if name not in SCENES:
        raise ConfigError(f"no scene is called '{name}'; there are {', '.join(SCENES)}")
    return SCENES[name](num_frames, width)


def without_noise(scene: Scene) -> Scene:
    """The same scene seen by a perfect sensor."""
    return dataclasses.replace(scene, noise_std=0.0)


def intrinsics(width: int) -> Intrinsics:
    """A camera of 4:3 with 62 degrees across, `width` px wide."""
    height = width * 3 // 4
    focal = 525.0 * width / 640.0
    return Intrinsics(focal, focal, (width - 1) / 2.0, (height - 1) / 2.0, width, height)


def _scene(
    name: str, num_frames: int, width: int, motion: Motion, solids: tuple[Solid, ...]
) -> Scene:
    return Scene(name, solids, motion, intrinsics(width), num_frames)


def _walk() -> Motion:
    """About 1 m in 4 s, with some turning."""
    eyes = (
        _EYE,
        (-1.25, -1.42, 0.18),
        (-0.95, -1.45, 0.3),
        (-0.7, -1.3, 0.28),
        (-0.6, -1.05, 0.2),
    )
    targets = (_TARGET, (1.4, 0.7, -0.4), (1.3, 0.8, -0.5), (1.1, 1.2, -0.4), (1.3, 1.3, -0.35))
    return HandHeld(eyes, targets, duration_s=4.0, tremor_m=0.006, tremor_rad=0.006, seed=3)


def _stand() -> Motion:
    return HandHeld((_EYE, _EYE), (_TARGET, _TARGET), duration_s=4.0)


def _turn() -> Motion:
    targets = (_TARGET, (1.6, 0.4, -0.4), (1.7, 0.0, -0.2), (1.5, 0.6, -0.3), _TARGET)
    return HandHeld((_EYE,) * len(targets), targets, duration_s=4.0)


def _furniture() -> tuple[Solid, ...]:
    """The room, and what stands in it; the floor is at z = -1.4."""
    room = Solid(
        "room",
        Shape.ROOM,
        (2.6, 2.4, 1.4),
        Fixed((0.0, 0.0, 0.0)),
        Texture(Pattern.PATCHES, seed=1, tile_m=3.2, tint=(1.0, 0.97, 0.9), resolution=1024),
    )
    return (
        room,
        _box(
            "table",
            (0.55, 0.4, 0.36),
            (0.9, 0.25, -1.04),
            0.4,
            Pattern.STRIPES,
            2,
            (1.0, 0.78, 0.55),
        ),
        _box(
            "cabinet",
            (0.35, 0.45, 0.85),
            (2.15, -0.4, -0.55),
            0.0,
            Pattern.CHECKER,
            3,
            (0.75, 0.85, 1.0),
        ),
        _box(
            "chest", (0.5, 0.3, 0.3), (0.0, 1.9, -1.1), -0.1, Pattern.PATCHES, 4, (0.95, 0.75, 0.7)
        ),
        _box(
            "crate", (0.22, 0.22, 0.22), (0.1, -0.3, -1.18), 0.7, Pattern.NOISE, 5, (1.0, 0.9, 0.6)
        ),
        _box(
            "poster", (0.01, 0.6, 0.45), (2.58, 1.3, 0.3), 0.0, Pattern.PATCHES, 6, (1.0, 1.0, 1.0)
        ),
        _box(
            "picture", (0.5, 0.01, 0.4), (0.9, 2.38, 0.4), 0.0, Pattern.CHECKER, 7, (1.0, 1.0, 1.0)
        ),
        _box(
            "pillar",
            (0.12, 0.12, 1.39),
            (1.75, 1.75, 0.0),
            0.5,
            Pattern.STRIPES,
            8,
            (0.85, 0.8, 0.95),
        ),
        _ball("globe", (0.2, 0.2, 0.2), (1.0, 0.3, -0.48), Pattern.PATCHES, 9, (0.6, 0.85, 1.0)),
        _ball(
            "cushion", (0.35, 0.28, 0.16), (0.0, 1.9, -0.65), Pattern.NOISE, 10, (0.8, 1.0, 0.75)
        ),
    )


def _movers() -> tuple[Solid, ...]:
    """A swinging ball, a box on a round track, a tumbling box and a cart that stops and goes."""
    return (
        Solid(
            "swinging ball",
            Shape.ELLIPSOID,
            (0.2, 0.2, 0.2),
            Swing((0.75, -0.5, 0.25), (0.12, -0.42, 0.1), period_s=3.1, phase=0.05),
            Texture(Pattern.PATCHES, seed=21, tile_m=0.5, tint=(1.0, 0.35, 0.3)),
        ),
        Solid(
            "train",
            Shape.BOX,
            (0.14, 0.26, 0.16),
            Orbit((0.5, 0.9, -0.35), radius=0.5, period_s=5.0, phase=0.6),
            Texture(Pattern.CHECKER, seed=22, tile_m=0.4, tint=(0.35, 0.6, 1.0)),
        ),
        Solid(
            "tumbling box",
            Shape.BOX,
            (0.17, 0.17, 0.17),
            Spin((1.5, 1.0, 0.25), (0.7, 0.4, 1.3)),
            Texture(Pattern.STRIPES, seed=23, tile_m=0.4, tint=(0.4, 1.0, 0.4)),
        ),
        Solid(
            "cart",
            Shape.BOX,
            (0.24, 0.2, 0.24),
            StopAndGo((-0.35, 0.75, -1.16), (0.45, -0.5, 0.0), move_s=1.2, rest_s=0.6),
            Texture(Pattern.PATCHES, seed=24, tile_m=0.6, tint=(1.0, 0.85, 0.25)),
        ),
    )


def _large_crate() -> Solid:
    """Always in the way of the first two seconds of the walk."""
    return Solid(
        "large crate",
        Shape.BOX,
        (0.54, 0.54, 0.47),
        Swing((-0.1, -0.22, -0.14), (-0.12, 0.16, 0.05), period_s=2.2, rotation=(0.0, 0.0, 0.6)),
        Texture(Pattern.PATCHES, seed=25, tile_m=0.8, tint=(0.9, 0.7, 0.5)),
    )


def _box(
    name: str,
    half_size: Vector,
    position: Vector,
    yaw: float,
    pattern: Pattern,
    seed: int,
    tint: Vector,
) -> Solid:
    motion = Fixed(position, (0.0, 0.0, yaw))
    return Solid(name, Shape.BOX, half_size, motion, Texture(pattern, seed, 1.0, tint))


def _ball(
    name: str, half_size: Vector, position: Vector, pattern: Pattern, seed: int, tint: Vector
) -> Solid:
    motion = Fixed(position)
    return Solid(name, Shape.ELLIPSOID, half_size, motion, Texture(pattern, seed, 0.6, tint))

"""Description of a scene: what there is, how it moves and how it looks. No sampling, no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import ConfigError
from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic.motions import Motion, Vector


class Shape(Enum):
    """Surfaces in the solid's own frame, all of half sizes (hx, hy, hz) around the origin."""

    ROOM = "room"  # a box seen from inside
    BOX = "box"
    ELLIPSOID = "ellipsoid"


class Pattern(Enum):
    """Families of textures."""

    NOISE = "noise"
    PATCHES = "patches"
    CHECKER = "checker"
    STRIPES = "stripes"
    POLYGONS = "polygons"
    DISCS = "discs"
    CLOUDS = "clouds"


@dataclass(frozen=True)
class Texture:
    """A periodic square picture painted on every face of a solid.

    Attributes:
        pattern: family.
        seed: of its details.
        tile_m: edge of the square on the surface, metres.
        tint: colour it is multiplied by, each in [0, 1].
        resolution: pixels along the edge, a power of two.
    """

    pattern: Pattern
    seed: int
    tile_m: float
    tint: Vector = (1.0, 1.0, 1.0)
    resolution: int = 512


@dataclass(frozen=True)
class Solid:
    """One rigid thing."""

    name: str
    shape: Shape
    half_size: Vector
    motion: Motion
    texture: Texture


@dataclass(frozen=True)
class Scene:
    """Everything that determines a rendered sequence.

    Attributes:
        name: of the scene, for messages and folders.
        solids: what is seen; the first is the room around all others. Instance ids are the
            positions in this tuple.
        camera: motion of the optical frame.
        intrinsics: of the images.
        num_frames: length of the sequence; frames beyond it are defined too.
        rate_hz: images per second.
        noise_std: standard deviation of the sensor noise, grey levels of 255.
        seed: of the sensor noise.
        light: position of the lamp, metres in the world.
        start_ns: stamp of frame 0.
    """

    name: str
    solids: tuple[Solid, ...]
    camera: Motion
    intrinsics: Intrinsics
    num_frames: int
    rate_hz: float = 30.0
    noise_std: float = 2.0
    seed: int = 0
    light: Vector = (0.0, 0.0, 1.2)
    start_ns: int = 1_000_000_000

    def __post_init__(self) -> None:
        """Check what the ray caster relies on.

        Raises:
            ConfigError: the first solid is no room, or a size or rate is not positive.
        """
        if not self.solids or self.solids[0].shape is not Shape.ROOM:
            raise ConfigError(f"scene '{self.name}': the first solid must be the room")
        if any(min(solid.half_size) <= 0 for solid in self.solids):
            raise ConfigError(f"scene '{self.name}': half sizes must be above 0 m")
        if self.num_frames < 1 or not self.rate_hz > 0:
            raise ConfigError(
                f"scene '{self.name}': num_frames={self.num_frames}, rate_hz={self.rate_hz}; "
                "expected at least 1 frame and a rate above 0"
            )

    def time_s(self, index: int) -> float:
        """Time of a frame."""
        return index / self.rate_hz

    def stamp_ns(self, index: int) -> int:
        """Stamp of a frame."""
        return self.start_ns + round(index * 1e9 / self.rate_hz)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A scene at one time.

    Attributes:
        scene: what it is of.
        T_world_cam: (4, 4) float64.
        T_world_solid: (S, 4, 4) float64.
    """

    scene: Scene
    T_world_cam: Tensor
    T_world_solid: Tensor

    @cached_property
    def T_solid_cam(self) -> Tensor:
        """(S, 4, 4) float64."""
        return se3.inverse(self.T_world_solid) @ self.T_world_cam

    @cached_property
    def T_cam_solid(self) -> Tensor:
        """(S, 4, 4) float64."""
        return se3.inverse(self.T_world_cam) @ self.T_world_solid

    def project(self, solid: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (P, 2), NaN behind the camera, and z-depth (P,) of material points.

        Args:
            solid: (P,) which solid each point belongs to.
            local: (P, 3) in the frame of that solid.
        """
        points = se3.transform(self.T_cam_solid[solid], local)
        return camera.project(points, self.scene.intrinsics), points[:, 2]


def snapshot(scene: Scene, index: int) -> Snapshot:
    """The scene when frame `index` is taken."""
    time_s = scene.time_s(index)
    poses = torch.stack([solid.motion.pose(time_s) for solid in scene.solids])
    return Snapshot(scene, scene.camera.pose(time_s), poses)


def half_sizes(scene: Scene) -> Tensor:
    """Half sizes (S, 3) float64, metres."""
    return torch.tensor([solid.half_size for solid in scene.solids], dtype=torch.float64)


def corners(scene: Scene) -> Tensor:
    """The eight corners (S, 8, 3) of the boxes around the solids, in their own frames."""
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    unit = torch.cartesian_prod(signs, signs, signs)
    return unit * half_sizes(scene)[:, None]

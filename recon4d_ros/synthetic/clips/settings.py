"""What clips look like: sizes, and how often each kind of motion and effect occurs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

from recon4d_ros.errors import ConfigError

Range = tuple[float, float]
Count = tuple[int, int]


class LabelRule(Enum):
    """When a solid counts as moving in the world.

    RELATIVE_SPEED: a corner of it moves by more than 0.3 % of its distance per frame; up to
        0.05 % it rests, between the two it is not judged.
    KUBRIC: its position changes by more than 0.01 per frame, or its orientation by 0.5 degrees.
    KUBRIC_POSITION: its position changes by more than 0.01 per frame; spinning is not moving.
    """

    RELATIVE_SPEED = "relative_speed"
    KUBRIC = "kubric"
    KUBRIC_POSITION = "kubric_position"


@dataclass(frozen=True)
class CameraShares:
    """How often the camera of a clip moves in which way; the sum need not be 1."""

    standing: float = 0.1
    rotation: float = 0.1
    forward: float = 0.2
    lateral: float = 0.2
    orbit: float = 0.2
    handheld: float = 0.2


@dataclass(frozen=True)
class ObjectShares:
    """How often a moving solid moves in which way; the sum need not be 1.

    Attributes:
        constant: straight on, half of them spinning as well.
        arc: on a circle, turning with it.
        spin: on the spot.
        along_ray: along the viewing direction, or along the camera's own way, so that it stays
            on its epipolar line.
        following: fixed to the camera, at rest in the image.
    """

    constant: float = 0.4
    arc: float = 0.25
    spin: float = 0.15
    along_ray: float = 0.1
    following: float = 0.1


@dataclass(frozen=True)
class EffectShares:
    """How often a clip suffers from what; each in [0, 1].

    Attributes:
        motion_blur: average over three moments while the shutter is open.
        exposure: drifting gain and white balance.
        noise: of the sensor.
        compression: quantised 8x8 blocks, as JPEG does.
        softness: blur of the lens.
        shadows: dark blobs below some solids.
    """

    motion_blur: float = 0.3
    exposure: float = 0.5
    noise: float = 0.7
    compression: float = 0.3
    softness: float = 0.6
    shadows: float = 0.5


NO_EFFECTS = EffectShares(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ClipSettings:
    """Everything but the seed that determines clips.

    Attributes:
        num_frames: T.
        size: (H, W), px.
        num_tracks: N.
        num_movers, num_statics, num_backdrops: least and most solids of a clip that move, that
            stand among them, and that stand behind them.
        still_share: clips in which neither the camera nor anything else moves.
        camera, objects, effects: how often what occurs.
        stop_and_go: moving solids that start or stop within the clip.
        bending: quads that are corrugated; those that move wave, the others keep their form.
        plain: materials without texture.
        repeated: materials that repeat a small pattern.
        camera_speed: per frame, share of the scene's usual depth.
        max_travel: of the camera in a clip, share of that depth, less than to any solid (0.6).
        object_speed: per frame, share of the solid's distance.
        max_dynamic_area: share of the image that moving solids should cover at most.
        moving_tracks: share of the tracks on moving solids where there are any.
        late_queries: share of the queries at a later frame than the first.
        label_rule: what counts as moving.
        num_textures: pictures that all clips take their surfaces from.
        texture_size: edge of such a picture, texels, a power of two.
    """

    num_frames: int = 12
    size: tuple[int, int] = (192, 192)
    num_tracks: int = 128
    num_movers: Count = (0, 4)
    num_statics: Count = (4, 10)
    num_backdrops: Count = (2, 6)
    still_share: float = 0.1
    camera: CameraShares = CameraShares()
    objects: ObjectShares = ObjectShares()
    effects: EffectShares = EffectShares()
    stop_and_go: float = 0.25
    bending: float = 0.2
    plain: float = 0.1
    repeated: float = 0.15
    camera_speed: Range = (0.004, 0.03)
    max_travel: float = 0.35
    object_speed: Range = (0.002, 0.05)
    max_dynamic_area: float = 0.7
    moving_tracks: float = 0.5
    late_queries: float = 0.25
    label_rule: LabelRule = LabelRule.RELATIVE_SPEED
    num_textures: int = 48
    texture_size: int = 256

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: a value is out of range.
        """
        for name in ("still_share", "stop_and_go", "bending", "plain", "repeated"):
            _check_share(name, getattr(self, name))
        for name in ("max_dynamic_area", "moving_tracks", "late_queries", "max_travel"):
            _check_share(name, getattr(self, name))
        for name, value in dataclasses.asdict(self.effects).items():
            _check_share(f"effects.{name}", value)
        _check_weights("camera", self.camera)
        _check_weights("objects", self.objects)
        for name in ("num_movers", "num_statics", "num_backdrops"):
            _check_count(name, getattr(self, name))
        _check_speed("camera_speed", self.camera_speed)
        _check_speed("object_speed", self.object_speed)
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.num_frames < 2:
            raise ConfigError(f"num_frames is {self.num_frames}; a clip has at least 2 frames")
        if min(self.size) < 16:
            raise ConfigError(f"size is {self.size}; expected height and width of 16 px or more")
        if self.num_tracks < 1 or self.num_textures < 1:
            raise ConfigError(
                f"num_tracks is {self.num_tracks} and num_textures {self.num_textures}; "
                "expected at least 1 of each"
            )
        edge = self.texture_size
        if edge < 32 or edge & (edge - 1):
            raise ConfigError(f"texture_size is {edge}; expected a power of two from 32")

    @property
    def num_solids(self) -> int:
        """S: places for solids in every clip, the room among them."""
        return 1 + self.num_movers[1] + self.num_statics[1] + self.num_backdrops[1]


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; expected a share within [0, 1]")


def _check_weights(name: str, shares: CameraShares | ObjectShares) -> None:
    values = dataclasses.asdict(shares)
    # Written so that NaN fails as well.
    if not all(value >= 0.0 for value in values.values()) or not 0.0 < sum(values.values()) < 1e9:
        raise ConfigError(f"shares of {name} are {values}; expected none below 0, one above")


def _check_count(name: str, count: Count) -> None:
    if not 0 <= count[0] <= count[1]:
        raise ConfigError(f"{name} is {count}; expected (least, most) with 0 <= least <= most")


def _check_speed(name: str, speed: Range) -> None:
    if not 0.0 < speed[0] <= speed[1] <= 0.2:
        raise ConfigError(
            f"{name} is {speed}; expected (least, most) with 0 < least <= most <= 0.2"
        )

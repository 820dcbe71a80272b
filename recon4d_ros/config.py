"""Every parameter, once: default, meaning, unit and range.

ROS parameter descriptors, config/recon4d.yaml and docs/parameters.md are generated from here.
A key that does not exist or a value out of range is an error that names the key, the value and
the bound; nothing is repaired silently.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros.errors import ConfigError

Scalar = bool | int | float | str


def setting(
    default: Scalar,
    doc: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A parameter: its default, meaning, unit and range (bounds included)."""
    meta = {"doc": doc, "unit": unit, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class ImageConfig:
    """Sizes at which images are worked on."""

    tracking_max_side: int = setting(
        640, "long side at which points are tracked", unit="px", minimum=64, maximum=4096
    )
    dense_max_side: int = setting(
        320, "long side of depth, masks and clouds", unit="px", minimum=32, maximum=2048
    )


@dataclass(frozen=True)
class WindowConfig:
    """The sliding window."""

    size: int = setting(12, "frames in a window", minimum=4, maximum=64)
    stride: int = setting(4, "new frames between two windows", minimum=1, maximum=16)
    final_lag: int = setting(6, "frames after which a frame is final", minimum=3, maximum=32)


@dataclass(frozen=True)
class PredictorConfig:
    """Which predictor gives pointmaps."""

    name: str = setting("classical", "pointmap predictor", choices=("classical",))


@dataclass(frozen=True)
class ComputeConfig:
    """Processor threads."""

    torch_threads: int = setting(
        1,
        "threads of torch on the CPU; more of them wait for each other on a busy machine",
        minimum=1,
        maximum=256,
    )
    opencv_threads: int = setting(2, "threads of OpenCV", minimum=1, maximum=256)


@dataclass(frozen=True)
class OdometryConfig:
    """The classical predictor's visual odometry."""

    cell_px: int = setting(
        20, "edge of the cells that each get new points", unit="px", minimum=4, maximum=200
    )
    max_points: int = setting(3000, "bound on remembered points", minimum=200, maximum=100_000)
    num_keyframes: int = setting(
        10, "keyframes adjusted besides the window", minimum=2, maximum=100
    )
    keyframe_px: float = setting(
        12.0,
        "median displacement since the last keyframe that makes a new one",
        unit="px",
        minimum=1.0,
        maximum=500.0,
    )
    consistency_px: float = setting(
        1.0, "forward-backward mismatch of a tracked point", unit="px", minimum=0.05, maximum=10.0
    )
    noise_px: float = setting(
        0.3, "scale of the robust kernel", unit="px", minimum=0.01, maximum=10.0
    )
    outlier_px: float = setting(
        1.5, "least reprojection error of a dropped sight", unit="px", minimum=0.1, maximum=50.0
    )
    min_inlier_share: float = setting(
        0.15, "share of the points under which tracking is lost", minimum=0.01, maximum=0.9
    )
    bootstrap_px: float = setting(
        2.0,
        "what rotation must leave unexplained before depth is sought",
        unit="px",
        minimum=0.2,
        maximum=100.0,
    )
    iterations: int = setting(4, "bundle adjustment steps per window", minimum=1, maximum=50)


@dataclass(frozen=True)
class FlowConfig:
    """Dense optical flow."""

    max_step: int = setting(
        3, "most frames between a frame and its nearest flow partner", minimum=1, maximum=16
    )
    step_motion_px: float = setting(
        6.4,
        "displacement to the nearest partner aimed at, at a long side of 512",
        unit="px",
        minimum=0.5,
        maximum=64.0,
    )
    num_partners: int = setting(
        3, "past partners: the nearest, its own nearest, ...", minimum=1, maximum=8
    )
    finest_scale: int = setting(
        0, "finest pyramid level of the search; 0 is the dense grid", minimum=0, maximum=3
    )
    patch_stride: int = setting(4, "step between patches", unit="px", minimum=1, maximum=8)
    refinement_iterations: int = setting(
        2, "fixed point iterations of the variational refinement", minimum=0, maximum=10
    )
    consistency_px: float = setting(
        1.0,
        "forward-backward mismatch of a valid pixel, at a long side of 512",
        unit="px",
        minimum=0.1,
        maximum=10.0,
    )
    consistency_ratio: float = setting(
        0.05, "the same, over the length of the flow", minimum=0.0, maximum=0.5
    )


@dataclass(frozen=True)
class DepthConfig:
    """Depth by triangulated flow."""

    flow_noise_px: float = setting(
        0.3,
        "standard deviation of the flow on the dense grid",
        unit="px",
        minimum=0.01,
        maximum=5.0,
    )
    max_off_line_px: float = setting(
        1.0,
        "distance from the epipolar line beyond which a pixel has no depth",
        unit="px",
        minimum=0.1,
        maximum=20.0,
    )
    max_disagreement: float = setting(
        4.0,
        "standard deviations by which two estimates may differ and still join",
        minimum=1.0,
        maximum=20.0,
    )
    carry_over: float = setting(
        0.9,
        "share of a frame's information that the next one takes over",
        minimum=0.0,
        maximum=1.0,
    )
    max_relative_sigma: float = setting(
        0.2, "relative standard deviation of a depth that is shown", minimum=0.01, maximum=1.0
    )
    min_baseline: float = setting(
        0.002,
        "movement within the window, over the depth, below which there is no parallax",
        minimum=0.0,
        maximum=0.1,
    )


@dataclass(frozen=True)
class AlignmentConfig:
    """Joining windows to the map."""

    max_keyframes: int = setting(48, "bound on stored keyframes", minimum=2, maximum=1000)
    max_landmarks: int = setting(
        20_000, "bound on stored landmark positions", minimum=100, maximum=1_000_000
    )
    keyframe_overlap: float = setting(
        1 / 3,
        "share of the last keyframe's points in view below which a new one is made",
        minimum=0.0,
        maximum=1.0,
    )
    keyframe_rotation: float = setting(
        15.0,
        "rotation since the last keyframe that makes a new one",
        unit="deg",
        minimum=1.0,
        maximum=180.0,
    )
    keyframe_interval: int = setting(
        20, "frames since the last keyframe that make a new one", minimum=1, maximum=10_000
    )
    keyframe_features: int = setting(
        500, "ORB features stored per keyframe", minimum=50, maximum=5000
    )
    relocalisation_frames: int = setting(
        30, "frames without a pose after which a new submap starts", minimum=1, maximum=10_000
    )
    relocalisation_inliers: int = setting(
        25, "matches that must agree on a pose", minimum=6, maximum=1000
    )
    relocalisation_share: float = setting(
        0.3, "share of the matches that must agree on a pose", minimum=0.05, maximum=1.0
    )


@dataclass(frozen=True)
class MotionConfig:
    """Which pixels move. Lengths are for a long side of 512 px."""

    fusion: str = setting(
        "hysteresis",
        "how the votes of several pairs join; union flags what any pair flags",
        choices=("hysteresis", "union"),
    )
    threshold_px: float = setting(
        0.7,
        "least distance from the epipolar line that speaks for motion",
        unit="px",
        minimum=0.1,
        maximum=10.0,
    )
    noise_factor: float = setting(
        3.0, "the same, in standard deviations of the flow", minimum=1.0, maximum=10.0
    )
    max_threshold_px: float = setting(
        3.0,
        "a pair so noisy that it needs a larger threshold is not used",
        unit="px",
        minimum=0.5,
        maximum=30.0,
    )
    parallax_margin: float = setting(
        4.0,
        "parallax beyond that of the background, in widths of the background's",
        minimum=1.0,
        maximum=20.0,
    )
    max_spread: float = setting(
        0.65,
        "parallax more spread over the image than this (1: all over) is depth, not motion",
        minimum=0.1,
        maximum=2.0,
    )
    min_contrast: float = setting(
        1.5,
        "grey difference that undoing the motion must make",
        unit="grey levels",
        minimum=0.0,
        maximum=50.0,
    )
    memory: float = setting(
        0.8,
        "share of the belief that the nearest partner hands on",
        minimum=0.0,
        maximum=0.95,
    )
    min_area_px: int = setting(
        64, "smaller moving parts are dropped", unit="px", minimum=0, maximum=10_000
    )


@dataclass(frozen=True)
class MapConfig:
    """The static map."""

    max_voxels: int = setting(400_000, "bound on stored voxels", minimum=1000, maximum=20_000_000)
    voxel_size: float = setting(
        0.01, "voxel edge over the median depth of the first keyframe", minimum=1e-4, maximum=1.0
    )
    min_observations: int = setting(
        2, "observations before a voxel is published", minimum=1, maximum=100
    )
    pixel_stride: int = setting(
        2,
        "one pixel of every square block of this side is mapped, another one in each frame",
        unit="px",
        minimum=1,
        maximum=8,
    )
    min_confidence: float = setting(
        0.3, "least confidence of a mapped pixel over the frame's median", minimum=0.0, maximum=1.0
    )
    edge_ratio: float = setting(
        0.05,
        "a pixel is mapped where the depths of its 3x3 pixels differ by at most this share of the "
        "least; across outlines depth is smeared",
        minimum=0.001,
        maximum=10.0,
    )
    carve_margin: float = setting(
        0.2,
        "a voxel nearer than the depth seen behind it by this share of that depth is seen through",
        minimum=0.01,
        maximum=0.9,
    )
    publish_rate: float = setting(
        1.0, "publications of ~/static_map", unit="Hz", minimum=0.01, maximum=30.0
    )


@dataclass(frozen=True)
class InputConfig:
    """The image stream of the node."""

    transport: str = setting(
        "raw", "topic read: image or image/compressed", choices=("raw", "compressed")
    )
    reliability: str = setting(
        "best_effort",
        "QoS of the image subscription; best_effort matches every publisher",
        choices=("best_effort", "reliable"),
    )
    mode: str = setting(
        "live",
        "live: the newest image wins and the others are dropped and counted; "
        "replay: a bounded queue from which nothing is dropped",
        choices=("live", "replay"),
    )
    queue_size: int = setting(
        30, "images that wait in replay mode", unit="images", minimum=1, maximum=1000
    )
    camera_info_timeout: float = setting(
        2.0,
        "wait for the first camera_info, after which the intrinsics are estimated",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    time_jump: float = setting(
        0.5,
        "stamps that go back by more start a new reconstruction; by less, the image is dropped",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )
    change_after: int = setting(
        5,
        "images in a row of another size or frame after which the camera has changed",
        unit="images",
        minimum=1,
        maximum=100,
    )
    stale_after: float = setting(
        2.0, "silence after which the image stream is stale", unit="s", minimum=0.1, maximum=60.0
    )


@dataclass(frozen=True)
class FramesConfig:
    """Names of the coordinate frames in TF."""

    map: str = setting("map", "frame of the map")
    camera: str = setting("", "optical frame of the camera; empty: that of the images")
    base: str = setting(
        "", "robot frame to publish instead of the camera's; its mount is read from /tf_static"
    )


@dataclass(frozen=True)
class OutputConfig:
    """What the node publishes and saves."""

    publish_tf: bool = setting(True, "publish the pose on /tf")
    path_length: int = setting(
        2000, "newest poses kept in ~/path", unit="poses", minimum=1, maximum=100_000
    )
    diagnostics_rate: float = setting(
        1.0, "publications of /diagnostics", unit="Hz", minimum=0.1, maximum=10.0
    )
    save_folder: str = setting("~/.ros/recon4d", "folder of ~/save_map, the only one written to")


@dataclass(frozen=True)
class Config:
    """All parameters."""

    image: ImageConfig = field(default_factory=ImageConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    map: MapConfig = field(default_factory=MapConfig)
    input: InputConfig = field(default_factory=InputConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """Check every value and the rules that join two of them."""
        for key in parameters():
            _check(key, self.get(key.name))
        if self.window.stride > min(self.window.size, self.window.final_lag - 2):
            raise ConfigError(
                f"window.stride={self.window.stride} is too large: at most window.size="
                f"{self.window.size} and window.final_lag - 2 = {self.window.final_lag - 2} "
                "(a final mask needs later partners); lower window.stride"
            )

    def get(self, name: str) -> Scalar:
        """Value of a dotted parameter name."""
        section, key = name.split(".", 1)
        value: Scalar = getattr(getattr(self, section), key)
        return value

    def flat(self) -> dict[str, Scalar]:
        """Every dotted name with its value, in the order of declaration."""
        return {parameter.name: self.get(parameter.name) for parameter in parameters()}

    def nested(self) -> dict[str, dict[str, Scalar]]:
        """Section, key, value."""
        return dataclasses.asdict(self)

    def replaced(self, changes: Mapping[str, Any]) -> Config:
        """A copy with the dotted names in `changes` set.

        Raises:
            ConfigError: a name does not exist, or a value has the wrong type or range.
        """
        known = {parameter.name: parameter for parameter in parameters()}
        sections: dict[str, dict[str, Scalar]] = {}
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(_unknown(name, list(known)))
            section, key = name.split(".", 1)
            sections.setdefault(section, {})[key] = _typed(known[name], value)
        parts = {
            section: dataclasses.replace(getattr(self, section), **values)
            for section, values in sections.items()
        }
        return dataclasses.replace(self, **parts)


@dataclass(frozen=True)
class Parameter:
    """One declared parameter."""

    name: str
    default: Scalar
    doc: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def bounds(self) -> str:
        """The range in words, for messages and tables."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.minimum is None and self.maximum is None:
            return "any " + type(self.default).__name__
        return f"{self.minimum} to {self.maximum}"


def parameters() -> Iterator[Parameter]:
    """Every parameter in the order of declaration."""
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(_section_type(section)):
            default: Any = key.default
            yield Parameter(f"{section.name}.{key.name}", default, **key.metadata)


def _section_type(section: dataclasses.Field[Any]) -> Any:
    return section.default_factory


def section_docs() -> dict[str, str]:
    """The one-line meaning of each section."""
    return {
        section.name: (_section_type(section).__doc__ or "").strip()
        for section in dataclasses.fields(Config)
    }


def load_config(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Defaults, then a YAML file, then `key=value` overrides.

    The file is nested by section, or a ROS parameter file (`node: ros__parameters: ...`).

    Raises:
        ConfigError: the file cannot be read, or a key or value is refused.
    """
    config = Config()
    if path is not None:
        config = config.replaced(_read_yaml(path))
    changes = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not key=value; write for example window.stride=2")
        changes[name.strip()] = yaml.safe_load(value)
    return config.replaced(changes)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"cannot read the config file {path}: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected sections of keys")
    if len(content) == 1:
        (only,) = content.values()
        if isinstance(only, Mapping) and "ros__parameters" in only:
            content = only["ros__parameters"]
    return dict(_dotted(content))


def _dotted(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(parameter: Parameter, value: Any) -> Scalar:
    kind = type(parameter.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and value is None:
        return ""
    if type(value) is not kind:
        raise ConfigError(
            f"{parameter.name}={value!r} is a {type(value).__name__}; "
            f"expected {kind.__name__} ({parameter.bounds})"
        )
    return kind(value)  # type: ignore[no-any-return]


def _check(parameter: Parameter, value: Scalar) -> None:
    low, high = parameter.minimum, parameter.maximum
    bad = bool(parameter.choices) and value not in parameter.choices
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Written so that NaN fails too.
        bad = bad or not ((low is None or value >= low) and (high is None or value <= high))
    if bad:
        unit = f" {parameter.unit}" if parameter.unit else ""
        raise ConfigError(
            f"{parameter.name}={value!r} is refused; expected {parameter.bounds}{unit}"
        )


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return (
        f"unknown parameter '{name}'; the nearest is '{nearest[0]}' "
        "(recon4d config dump lists all)"
    )

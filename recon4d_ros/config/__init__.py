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

from recon4d_ros.config.alignment_section import AlignmentConfig
from recon4d_ros.config.core_sections import (
    ComputeConfig,
    DepthConfig,
    FlowConfig,
    ImageConfig,
    MapConfig,
    MotionConfig,
    OdometryConfig,
    PredictorConfig,
    RefinementConfig,
    WindowConfig,
)
from recon4d_ros.config.declaration import Parameter, Scalar, check, setting, typed
from recon4d_ros.config.fixed_lag_section import FixedLagConfig
from recon4d_ros.config.network_sections import PomatoConfig, TrackerConfig
from recon4d_ros.config.node_sections import FramesConfig, InputConfig, OutputConfig
from recon4d_ros.config.offline_section import OfflineConfig
from recon4d_ros.errors import ConfigError

__all__ = [
    "AlignmentConfig",
    "ComputeConfig",
    "Config",
    "DepthConfig",
    "FixedLagConfig",
    "FlowConfig",
    "FramesConfig",
    "ImageConfig",
    "InputConfig",
    "MapConfig",
    "MotionConfig",
    "OdometryConfig",
    "OfflineConfig",
    "OutputConfig",
    "Parameter",
    "PomatoConfig",
    "PredictorConfig",
    "RefinementConfig",
    "Scalar",
    "TrackerConfig",
    "WindowConfig",
    "load_config",
    "parameters",
    "section_docs",
    "setting",
]


@dataclass(frozen=True)
class Config:
    """All parameters."""

    image: ImageConfig = field(default_factory=ImageConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    pomato: PomatoConfig = field(default_factory=PomatoConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    fixed_lag: FixedLagConfig = field(default_factory=FixedLagConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    map: MapConfig = field(default_factory=MapConfig)
    input: InputConfig = field(default_factory=InputConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """Check every value and the rules that join two of them."""
        for key in parameters():
            check(key, self.get(key.name))
        if self.window.stride > min(self.window.size, self.window.final_lag - 2):
            raise ConfigError(
                f"window.stride={self.window.stride} is too large: at most window.size="
                f"{self.window.size} and window.final_lag - 2 = {self.window.final_lag - 2} "
                "(a final mask needs later partners); lower window.stride"
            )
        if self.window.size <= self.window.final_lag:
            raise ConfigError(
                f"window.size={self.window.size} is too small: frames become final after "
                f"window.final_lag={self.window.final_lag} more, and must be in the window still; "
                f"lower window.final_lag to {self.window.size - 1} or less"
            )
        _ = self.offline.frame_offsets  # refuses what is no list of numbers

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
            sections.setdefault(section, {})[key] = typed(known[name], value)
        parts = {
            section: dataclasses.replace(getattr(self, section), **values)
            for section, values in sections.items()
        }
        return dataclasses.replace(self, **parts)


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


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return (
        f"unknown parameter '{name}'; the nearest is '{nearest[0]}' "
        "(recon4d config dump lists all)"
    )

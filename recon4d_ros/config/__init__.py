"""Every parameter, once: default, meaning, unit and range.

ROS parameter descriptors, config/recon4d.yaml and docs/parameters.md are generated from here.
A key that does not exist or a value out of range is an error that names the key, the value and
the bound; nothing is repaired silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

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
from recon4d_ros.config.declaration import Parameter, Scalar, setting
from recon4d_ros.config.fixed_lag_section import FixedLagConfig
from recon4d_ros.config.network_sections import PomatoConfig, TrackerConfig
from recon4d_ros.config.node_sections import FramesConfig, InputConfig, OutputConfig
from recon4d_ros.config.offline_section import OfflineConfig
from recon4d_ros.config.sections import Sections, load_sections
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
    "Sections",
    "TrackerConfig",
    "WindowConfig",
    "load_config",
    "load_sections",
    "parameters",
    "section_docs",
    "setting",
]


@dataclass(frozen=True)
class Config(Sections):
    """All parameters."""

    LISTED_BY: ClassVar[str] = "recon4d config dump"

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
        super().__post_init__()
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


def parameters() -> Iterator[Parameter]:
    """Every parameter in the order of declaration."""
    return Config.parameters()


def section_docs() -> dict[str, str]:
    """The one-line meaning of each section."""
    return Config.section_docs()


def load_config(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Defaults, then a YAML file, then `key=value` overrides; see `load_sections`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is refused.
    """
    return load_sections(Config(), path, overrides)

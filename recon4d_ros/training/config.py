"""Every parameter of a training run, once: default, meaning, unit and range.

They are no parameters of the node; the files in config/train/ set them by section.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from recon4d_ros.config import Sections, load_sections, setting
from recon4d_ros.errors import ConfigError

_LISTED_BY = "recon4d train --help"


@dataclass(frozen=True)
class RunConfig:
    """How long is trained, on what, and what is written meanwhile."""

    name: str = setting("network", "stem of the file of weights that the run ends with")
    seed: int = setting(
        0, "of the weights, of the clips and of every draw", minimum=0, maximum=1_000_000
    )
    steps: int = setting(
        0, "ends the run; 0 sets no such bound", unit="steps", minimum=0, maximum=10_000_000
    )
    minutes: float = setting(
        25.0,
        "ends the run, whatever was reached; the learning rate falls in time for it; 0 sets no "
        "such bound",
        unit="min",
        minimum=0.0,
        maximum=100_000.0,
    )
    device: str = setting("auto", "auto (CUDA where there is one), cpu, cuda, or cuda:N")
    precision: str = setting(
        "fp32", "of the network's arithmetic; bf16 is autocast", choices=("fp32", "bf16")
    )
    batch: int = setting(8, "clips of a step", minimum=1, maximum=4096)
    checkpoint_minutes: float = setting(
        3.0,
        "between checkpoints, the most that a killed run loses; 0 writes one each step",
        unit="min",
        minimum=0.0,
        maximum=1000.0,
    )
    log_every: int = setting(
        20, "between rows of metrics", unit="steps", minimum=1, maximum=10_000
    )
    validate_every: int = setting(
        500, "between validations", unit="steps", minimum=1, maximum=1_000_000
    )
    max_skipped: int = setting(
        20,
        "steps whose loss or gradient is not finite; they change nothing, and one more ends the "
        "run with an error",
        unit="steps",
        minimum=0,
        maximum=1_000_000,
    )


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW under a one-cycle learning rate, and the average of the weights that is kept."""

    peak_rate: float = setting(5e-4, "largest learning rate", minimum=1e-8, maximum=1.0)
    warm_up: float = setting(
        0.05, "share of the run until the peak", unit="of the run", minimum=0.0, maximum=0.9
    )
    weight_decay: float = setting(1e-4, "decoupled decay", minimum=0.0, maximum=1.0)
    beta_1: float = setting(0.9, "of the mean of the gradients", minimum=0.0, maximum=0.9999)
    beta_2: float = setting(0.95, "of the mean of their squares", minimum=0.0, maximum=0.99999)
    clip_norm: float = setting(
        1.0, "gradients longer than this are shortened to it", minimum=1e-3, maximum=1e6
    )
    average: float = setting(
        0.999,
        "share of the averaged weights that a step leaves; fewer in the first steps",
        minimum=0.0,
        maximum=0.99999,
    )


@dataclass(frozen=True)
class ClipsConfig:
    """The clips that are trained and validated on, rendered as they are needed or from disk."""

    num_frames: int = setting(12, "length of a clip", unit="frames", minimum=2, maximum=64)
    height: int = setting(192, "a multiple of 16", unit="px", minimum=32, maximum=1024)
    width: int = setting(192, "a multiple of 16", unit="px", minimum=32, maximum=1024)
    num_tracks: int = setting(128, "of a clip", minimum=1, maximum=4096)
    num_textures: int = setting(
        48, "pictures that all surfaces of a seed are taken from", minimum=1, maximum=1024
    )
    camera_fastest: float = setting(
        0.03,
        "largest speed of the camera per frame",
        unit="of the scene's depth",
        minimum=0.005,
        maximum=0.2,
    )
    camera_travel: float = setting(
        0.35,
        "most that the camera travels in a clip",
        unit="of the scene's depth",
        minimum=0.05,
        maximum=0.6,
    )
    early_share: float = setting(
        0.2, "of the run with the shorter clips of early_frames", minimum=0.0, maximum=1.0
    )
    early_frames: int = setting(
        8, "length of a clip early in the run", unit="frames", minimum=2, maximum=64
    )
    remembered: int = setting(
        0,
        "clips that are rendered at all, before the first step, and then shown again mirrored, "
        "reversed and with other queries; a pixel takes 3 bytes of memory, 15 with the flow that "
        "some trackers start from; 0 renders new ones for ever",
        minimum=0,
        maximum=100_000,
    )
    folders: str = setting(
        "",
        "dynpt: data sets to learn from instead of rendered clips, mixed in their usual ratios, "
        "as movi_f=DIR,point_odyssey=DIR (also movi_e, panning_movi_e, tartanair); validation "
        "stays with rendered clips",
    )
    validation_seed: int = setting(
        900_001, "of the held-out clips; not the run's", minimum=0, maximum=1_000_000
    )
    validation_batches: int = setting(4, "batches of held-out clips", minimum=1, maximum=10_000)


@dataclass(frozen=True)
class TrackerConfig:
    """The tracker and how it is run in training."""

    size: str = setting("small", "named sizes", choices=("tiny", "lean", "small", "full"))
    start: str = setting(
        "", "weights of a network of this size that the run goes on from (.safetensors)"
    )
    iterations: int = setting(4, "refinements of a window", minimum=1, maximum=16)
    window: int = setting(
        8,
        "frames of the two warm-started windows that some steps cut a clip into",
        unit="frames",
        minimum=2,
        maximum=64,
    )
    unrolled_share: float = setting(
        0.3, "of the steps with two warm-started windows", minimum=0.0, maximum=1.0
    )
    encoder: str = setting(
        "",
        "weights of POMATO (.safetensors, .pth) whose encoder, frozen, is the 3D-aware branch; "
        "empty: convolutions that are trained too",
    )


@dataclass(frozen=True)
class TrackLossConfig:
    """Weights of the tracker's losses."""

    visible: float = setting(
        0.05, "of the position where seen, 1 / px", minimum=0.0, maximum=100.0
    )
    hidden: float = setting(
        0.01, "of the position where hidden, 1 / px", minimum=0.0, maximum=100.0
    )
    visibility: float = setting(1.0, "of the visibility", minimum=0.0, maximum=100.0)
    confidence: float = setting(1.0, "of the confidence", minimum=0.0, maximum=100.0)
    mobility_frame: float = setting(
        1.0, "of the mobility in each frame", minimum=0.0, maximum=100.0
    )
    mobility_clip: float = setting(1.0, "of the mobility in the clip", minimum=0.0, maximum=100.0)
    gamma: float = setting(
        0.8, "of the position, from one refinement to the one before", minimum=0.0, maximum=1.0
    )
    huber_px: float = setting(
        4.0,
        "error up to which the position's loss is a square",
        unit="px",
        minimum=0.1,
        maximum=64,
    )
    radius_share: float = setting(
        12.0 / 512.0,
        "error up to which a position counts as right for the confidence",
        unit="of the long side",
        minimum=1e-4,
        maximum=1.0,
    )


@dataclass(frozen=True)
class PointmapNetConfig:
    """The pointmap network: its sizes and its stage."""

    stage: str = setting(
        "pairwise",
        "pairwise first; temporal then starts from its weights and leaves encoder and decoder",
        choices=("pairwise", "temporal"),
    )
    start: str = setting("", "weights that the temporal stage starts from (.safetensors)")
    encoder_width: int = setting(192, "channels", minimum=16, maximum=1024)
    encoder_depth: int = setting(8, "blocks", minimum=1, maximum=24)
    encoder_heads: int = setting(3, "of attention", minimum=1, maximum=16)
    decoder_width: int = setting(128, "channels", minimum=16, maximum=1024)
    decoder_depth: int = setting(6, "blocks", minimum=2, maximum=24)
    decoder_heads: int = setting(2, "of attention", minimum=1, maximum=16)
    head_width: int = setting(
        64, "channels of the finest level of a head; others follow", minimum=4, maximum=256
    )


@dataclass(frozen=True)
class PointmapLossConfig:
    """Weights of the pointmap network's losses."""

    alpha: float = setting(0.2, "of the logarithm of the confidence", minimum=1e-3, maximum=10.0)
    matching: float = setting(1.0, "of the matching pointmap", minimum=0.0, maximum=100.0)
    per_clip: float = setting(
        3.0, "temporal stage: of the loss in one unit per clip", minimum=0.0, maximum=100.0
    )
    per_frame: float = setting(
        1.0, "temporal stage: of the loss in one unit per frame", minimum=0.0, maximum=100.0
    )


@dataclass(frozen=True)
class TrainingConfig(Sections):
    """What every training has."""

    LISTED_BY: ClassVar[str] = _LISTED_BY

    run: RunConfig = field(default_factory=RunConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)

    @property
    def start(self) -> str:
        """Weights that the run goes on from; empty where it begins from nothing."""
        return ""

    def __post_init__(self) -> None:
        """Check every value and the rules that join two of them.

        Raises:
            ConfigError: a value is out of range, or two do not fit together.
        """
        super().__post_init__()
        run, clips = self.run, self.clips
        if run.steps == 0 and run.minutes == 0.0:
            raise ConfigError(
                "run.steps=0 and run.minutes=0 would train for ever; set one of them, for "
                "example run.minutes=25"
            )
        if clips.validation_seed == run.seed:
            raise ConfigError(
                f"clips.validation_seed={run.seed} is the run's seed: the held-out clips would be "
                "those of the training; set another"
            )
        if clips.early_frames > clips.num_frames:
            raise ConfigError(
                f"clips.early_frames={clips.early_frames} is more than clips.num_frames="
                f"{clips.num_frames}; clips grow in the course of a run: lower it"
            )
        for side in ("height", "width"):
            length = getattr(clips, side)
            if length % 16:
                raise ConfigError(f"clips.{side}={length}; expected a multiple of 16 px")


@dataclass(frozen=True)
class DynPTTraining(TrainingConfig):
    """Training of the point tracker."""

    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    loss: TrackLossConfig = field(default_factory=TrackLossConfig)

    @property
    def start(self) -> str:
        """See `TrainingConfig.start`."""
        return self.tracker.start

    def __post_init__(self) -> None:
        """Check every value and the rules that join two of them.

        Raises:
            ConfigError: a value is out of range, or two do not fit together.
        """
        super().__post_init__()
        if self.tracker.size == "full" and not self.tracker.encoder:
            raise ConfigError(
                "tracker.size=full needs the frozen encoder of a pointmap network; set "
                "tracker.encoder to its weights, or tracker.size=small"
            )


@dataclass(frozen=True)
class PomatoTraining(TrainingConfig):
    """Training of the pointmap network."""

    network: PointmapNetConfig = field(default_factory=PointmapNetConfig)
    loss: PointmapLossConfig = field(default_factory=PointmapLossConfig)

    @property
    def start(self) -> str:
        """See `TrainingConfig.start`."""
        return self.network.start if self.network.stage == "temporal" else ""

    def __post_init__(self) -> None:
        """Check every value and the rules that join two of them.

        Raises:
            ConfigError: a value is out of range, or two do not fit together.
        """
        super().__post_init__()
        clips = self.clips
        if clips.folders:
            raise ConfigError(
                f"clips.folders={clips.folders} cannot train pointmaps, which need dense motion; "
                "leave it empty: clips are rendered then"
            )
        if self.network.stage == "temporal" and clips.early_frames != clips.num_frames:
            raise ConfigError(
                f"clips.early_frames={clips.early_frames} is not clips.num_frames="
                f"{clips.num_frames}, but the windows of a temporal network have one length; set "
                "both to it"
            )


KINDS: dict[str, type[TrainingConfig]] = {"dynpt": DynPTTraining, "pomato": PomatoTraining}


def load_training(
    kind: str, path: Path | None = None, overrides: tuple[str, ...] = ()
) -> TrainingConfig:
    """Configuration of a kind of training: defaults, then a YAML file, then `key=value` words.

    Raises:
        ConfigError: the file cannot be read, or a key or value is refused.
    """
    return load_sections(KINDS[kind](), path, overrides)

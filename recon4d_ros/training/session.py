"""From a configuration file to trained weights: what the command line does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import ConfigError
from recon4d_ros.networks.dynpt import DynPTConfig
from recon4d_ros.predictors.devices import choose_device
from recon4d_ros.storage.training_data.shape import ClipReader, ClipShape
from recon4d_ros.storage.training_data.sources import open_mixture
from recon4d_ros.synthetic.clips import ClipGenerator, ClipSettings
from recon4d_ros.training.config import (
    ClipsConfig,
    DynPTTraining,
    PomatoTraining,
    TrainingConfig,
    load_training,
)
from recon4d_ros.training.dynpt_task import DynPTTask
from recon4d_ros.training.model_card import facts, starting_weights, write_card
from recon4d_ros.training.pomato_task import PomatoTask
from recon4d_ros.training.remembered import RememberedClips
from recon4d_ros.training.sources import ClipSource, Sources
from recon4d_ros.training.task import Task
from recon4d_ros.training.trainer import train

# Early clips move at this share of the usual speeds.
_EARLY_SPEED = 0.5


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        weights: the file.
        steps: made.
        minutes: of training.
        figures: on held-out clips.
    """

    weights: Path
    steps: int
    minutes: float
    figures: dict[str, float]


def train_network(
    kind: str, config_file: Path, overrides: tuple[str, ...], folder: Path, *, is_resumed: bool
) -> Trained:
    """Train to the end and write the weights with their page into the folder.

    Raises:
        ConfigError: the configuration is refused, or its device does not exist.
        OutputError, TrainingError: see `train`.
        ModelError: given weights cannot be used.
    """
    config = load_training(kind, config_file, overrides)
    device = choose_device(config.run.device, "run.device")
    # Convolutions have this precision anyway.
    torch.backends.cuda.matmul.allow_tf32 = True
    task = make_task(config, device)
    start = starting_weights(config)
    sources = clip_sources(config, device)
    # Whoever remembers clips makes them now, before the run's clock goes.
    for source in (sources.early, sources.usual) if config.clips.early_share else (sources.usual,):
        source.clips(0, 1)
    outcome = train(task, sources, config, folder, is_resumed=is_resumed)
    weights = folder / f"{config.run.name}.safetensors"
    known = facts(config, outcome, device, kind) | start
    task.export(outcome.network, weights, known)
    write_card(weights, known, outcome, task.LIMITS)
    progress = outcome.progress
    return Trained(weights, progress.step, progress.elapsed_s / 60.0, outcome.figures)


def make_task(config: TrainingConfig, device: torch.device) -> Task:
    """The task that a configuration is of, with a new network."""
    if isinstance(config, PomatoTraining):
        return PomatoTask(config, device)
    assert isinstance(config, DynPTTraining)
    return DynPTTask(config, device)


@dataclass(frozen=True)
class RenderedClips:
    """Clips of a generator, with dense motion where pointmaps are learned."""

    generator: ClipGenerator
    has_dense_motion: bool

    def clips(self, first: int, count: int) -> Clips:
        """See `ClipSource.clips`."""
        return self.generator.clips(first, count, dense_motion=self.has_dense_motion)


@dataclass(frozen=True)
class StoredClips:
    """Clips of data sets on disk."""

    reader: ClipReader
    device: torch.device

    def clips(self, first: int, count: int) -> Clips:
        """See `ClipSource.clips`."""
        return self.reader.clips(first, count).to(self.device)


def clip_sources(config: TrainingConfig, device: torch.device) -> Sources:
    """Where the run's clips come from.

    Raises:
        ConfigError: `clips.folders` does not name folders.
        SourceError: a folder holds no such data set.
    """
    usual = clip_settings(config.clips)
    early = dataclasses.replace(
        usual,
        num_frames=config.clips.early_frames,
        camera_speed=_slower(usual.camera_speed),
        object_speed=_slower(usual.object_speed),
    )

    def source(settings: ClipSettings, seed: int) -> RenderedClips:
        generator = ClipGenerator(settings, seed, device)
        return RenderedClips(generator, isinstance(config, PomatoTraining))

    def shown(settings: ClipSettings) -> ClipSource:
        seed, kept = config.run.seed, config.clips.remembered
        found: ClipSource = source(settings, seed)
        if config.clips.folders:
            shape = ClipShape(settings.num_frames, settings.size, settings.num_tracks)
            mixture = open_mixture(named_folders(config.clips.folders), shape, seed)
            found = StoredClips(mixture, device)
        if not kept:
            return found
        return RememberedClips(found, kept, seed, needs_flow=_starts_from_flow(config))

    return Sources(
        early=shown(early),
        usual=shown(usual),
        held_out=source(usual, config.clips.validation_seed),
    )


def named_folders(text: str) -> dict[str, Path]:
    """Folders by name of data set, of `clips.folders`.

    Raises:
        ConfigError: it is not a list of NAME=DIR.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and folder.strip() for name, _, folder in pairs):
        raise ConfigError(
            f"clips.folders={text!r}; expected NAME=DIR, several of them with commas between"
        )
    return {name.strip(): Path(folder.strip()).expanduser() for name, _, folder in pairs}


def clip_settings(clips: ClipsConfig) -> ClipSettings:
    """What the generator is told."""
    return ClipSettings(
        num_frames=clips.num_frames,
        size=(clips.height, clips.width),
        num_tracks=clips.num_tracks,
        camera_speed=(ClipSettings.camera_speed[0], clips.camera_fastest),
        max_travel=clips.camera_travel,
        num_textures=clips.num_textures,
    )


def _slower(speed: tuple[float, float]) -> tuple[float, float]:
    return _EARLY_SPEED * speed[0], _EARLY_SPEED * speed[1]


def _starts_from_flow(config: TrainingConfig) -> bool:
    return isinstance(config, DynPTTraining) and DynPTConfig.named(config.tracker.size).needs_flow

"""The state of a training run on disk: whole or not at all, and of this run or refused."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recon4d_ros import __version__
from recon4d_ros.errors import OutputError, TrainingError
from recon4d_ros.training.config import TrainingConfig

CHECKPOINT = "checkpoint.pt"
_FORMAT = "recon4d_ros training 1"
# A resumed run may be longer, elsewhere or reported otherwise, but trains the same thing.
_MAY_CHANGE = {
    "run.steps",
    "run.minutes",
    "run.device",
    "run.checkpoint_minutes",
    "run.log_every",
    "run.validate_every",
    "run.max_skipped",
    "clips.validation_batches",
}
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError)


@dataclass(frozen=True)
class Progress:
    """How far a run is; with the seed, all that the draws of the next step depend on.

    Attributes:
        step: steps done.
        clips: number of the first clip not yet used.
        elapsed_s: time of training, over all resumptions.
        skipped: steps whose loss or gradient was not finite.
    """

    step: int = 0
    clips: int = 0
    elapsed_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Attributes:
        kind: what is trained.
        config: dotted names and values.
        progress: how far the run is.
        network, average, optimiser: their states.
        commit, version: of the code that wrote it.
    """

    kind: str
    config: dict[str, Any]
    progress: Progress
    network: dict[str, Any]
    average: dict[str, Any]
    optimiser: dict[str, Any]
    commit: str
    version: str = __version__


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint in one go, so that a kill leaves the old or the new one.

    Raises:
        OutputError: it cannot be written.
    """
    content = {item: getattr(checkpoint, item) for item in checkpoint.__dataclass_fields__}
    content |= {"format": _FORMAT, "progress": asdict(checkpoint.progress)}
    path = folder / CHECKPOINT
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path}: {error}; free some space") from error


def read_checkpoint(folder: Path, kind: str, config: TrainingConfig) -> Checkpoint:
    """The folder's checkpoint of this run; nothing in it is executed.

    Raises:
        TrainingError: there is none, it is of something else, or of another configuration.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise TrainingError(f"{path} does not exist; leave out --resume to begin a run there")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(
            f"{path} is damaged or no checkpoint of a training ({reason}); begin the run anew"
        ) from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise TrainingError(
            f"{path} is no checkpoint of `recon4d train`, expected format '{_FORMAT}'; give the "
            "folder of a run to --out, or begin anew"
        )
    checkpoint = Checkpoint(**content | {"progress": Progress(**content["progress"])})
    _check_same_run(path, checkpoint, kind, config.flat())
    return checkpoint


def _check_same_run(
    path: Path, checkpoint: Checkpoint, kind: str, config: Mapping[str, Any]
) -> None:
    if checkpoint.kind != kind:
        raise TrainingError(
            f"{path} is of a training of {checkpoint.kind}, not of {kind}; give another --out"
        )
    names = sorted(set(config) | set(checkpoint.config))
    changed = [
        f"{name}={config.get(name)!r} (was {checkpoint.config.get(name)!r})"
        for name in names
        if name not in _MAY_CHANGE and config.get(name) != checkpoint.config.get(name)
    ]
    if changed:
        raise TrainingError(
            f"the configuration does not fit {path}: {', '.join(changed[:4])}; resume with the "
            "one that the run began with, or give another --out"
        )


def code_commit() -> str:
    """The commit of this code, '-dirty' where files differ from it; 'unknown' outside of git."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

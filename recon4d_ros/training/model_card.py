"""The page beside trained weights that says what they are and what they are not."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from recon4d_ros import __version__
from recon4d_ros.errors import OutputError
from recon4d_ros.networks.files import sha256_of
from recon4d_ros.training.config import ClipsConfig, TrainingConfig
from recon4d_ros.training.trainer import Outcome


def facts(
    config: TrainingConfig, outcome: Outcome, device: torch.device, kind: str
) -> dict[str, str]:
    """What is known of the weights, one line each; it also goes into the file of the weights."""
    run, progress = config.run, outcome.progress
    clips = config.clips
    num_parameters = sum(part.numel() for part in outcome.network.parameters())
    return {
        "network": f"{kind}, {num_parameters / 1e6:.2f} M parameters, averaged weights as fp16",
        "data": (
            f"{_origin(clips)} clips of {clips.num_frames} frames, {clips.width} x "
            f"{clips.height} px; {_showings(clips, progress.clips)}"
        ),
        "seeds": f"training {run.seed}, held-out clips {clips.validation_seed}",
        "steps": f"{progress.step} of {run.batch} clips, {progress.skipped} skipped as not finite",
        "hardware": _hardware(device),
        "time": f"{progress.elapsed_s / 60.0:.1f} min, {run.precision}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "code": f"recon4d_ros {__version__}, commit {outcome.commit}",
    }


def starting_weights(config: TrainingConfig) -> dict[str, str]:
    """One more of the facts: which weights a run goes on from; none where it begins from nothing.

    To be asked before the run, in whose course the file may be replaced.
    """
    if not config.start:
        return {}
    weights = Path(config.start)
    return {"start": f"weights of {weights.name}, SHA-256 {sha256_of(weights)}"}


def _origin(clips: ClipsConfig) -> str:
    names = [part.partition("=")[0].strip() for part in clips.folders.split(",")]
    return ", ".join(names) if clips.folders else "rendered"


def _showings(clips: ClipsConfig, number: int) -> str:
    if not clips.remembered or number <= clips.remembered:
        return f"{number} of them, each seen once"
    return (
        f"{clips.remembered} of them, each seen {number / clips.remembered:.1f} times on average: "
        "mirrored, reversed, recoloured and with other queries"
    )


def write_card(weights: Path, known: Mapping[str, str], outcome: Outcome, limits: str) -> Path:
    """Write the page beside the weights; returns its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = weights.with_suffix(".md")
    size_mb = weights.stat().st_size / 1e6
    figures = [f"| {name} | {value:.4g} |" for name, value in outcome.figures.items()]
    lines = [
        f"# {weights.stem}",
        "",
        f"`{weights.name}`, {size_mb:.1f} MB, SHA-256 `{sha256_of(weights)}`.",
        "",
        *(f"* **{name}**: {text}" for name, text in known.items()),
        "",
        "## Figures on held-out clips",
        "",
        "| figure | value |",
        "|---|---|",
        *figures,
        "",
        "## Limits",
        "",
        limits,
    ]
    try:
        path.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    return path


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"1 x {torch.cuda.get_device_name(device)}"
    return f"{torch.get_num_threads()} threads of {platform.machine()} CPU cores"

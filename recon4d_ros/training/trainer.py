"""The loop that trains any task: steps, checkpoints, validations, and the end of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import OutputError, TrainingError
from recon4d_ros.training.averaging import AveragedNetwork
from recon4d_ros.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    Progress,
    code_commit,
    read_checkpoint,
    write_checkpoint,
)
from recon4d_ros.training.config import TrainingConfig
from recon4d_ros.training.record import TIMES, Record, draw_curves
from recon4d_ros.training.schedule import Extent, one_cycle
from recon4d_ros.training.sources import Request, Sources, batches
from recon4d_ros.training.task import Task

CONFIG = "config.yaml"

_BAR = "{desc}{percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
# Keeps the draws of a step apart from those of any other step and seed.
_SEED_STRIDE = 10_000_019


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        network: the averaged one, which is what was validated.
        progress: how far the run went.
        figures: of the network on held-out clips.
        commit: of the code that trained it.
    """

    network: nn.Module
    progress: Progress
    figures: dict[str, float]
    commit: str


def train(
    task: Task,
    sources: Sources,
    config: TrainingConfig,
    folder: Path,
    *,
    is_resumed: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train to the end, in a folder that is made if missing.

    Args:
        task: what is trained.
        sources: its clips.
        config: resolved parameters.
        folder: receives config.yaml, checkpoint.pt, train.csv, validation.csv, tensorboard/ and
            curves.png.
        is_resumed: go on with the run that the folder holds, as if it had never stopped.
        clock: seconds.

    Raises:
        OutputError: the folder holds a run that is not to be resumed, or cannot be written.
        TrainingError: there is nothing to resume, it is of another run, or training diverges.
    """
    if not is_resumed and (folder / CHECKPOINT).exists():
        raise OutputError(
            f"{folder} holds a run; add --resume to go on with it, or choose another folder"
        )
    held = read_checkpoint(folder, task.kind, config) if is_resumed else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(yaml.safe_dump(config.nested(), sort_keys=False))
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error}") from error
    return _Run(task, sources, config, folder, held, clock).to_the_end()


class _Run:
    """A run, from its beginning or from a checkpoint."""

    def __init__(
        self,
        task: Task,
        sources: Sources,
        config: TrainingConfig,
        folder: Path,
        held: Checkpoint | None,
        clock: Callable[[], float],
    ) -> None:
        self._task, self._sources, self._config, self._folder = task, sources, config, folder
        self._network = task.network.train()
        self._device = next(task.network.parameters()).device
        self._trained = [part for part in task.network.parameters() if part.requires_grad]
        self._optimiser = _optimiser(self._trained, config)
        self._average = AveragedNetwork(task.network, config.optimiser.average)
        self._progress = Progress() if held is None else self._restored(held)
        self._extent = Extent(config.run.steps, 60.0 * config.run.minutes)
        self._commit = code_commit()
        self._clock = clock
        # The clock of the run, which goes on where a killed one was saved.
        self._began = clock() - self._progress.elapsed_s
        self._saved_at = self._progress.elapsed_s
        self._batches = batches(self._device)
        step = self._progress.step
        self._rows, self._validations = (
            Record(folder, kind, step) for kind in ("train", "validation")
        )

    def _restored(self, held: Checkpoint) -> Progress:
        self._network.load_state_dict(held.network)
        self._average.network.load_state_dict(held.average)
        self._optimiser.load_state_dict(held.optimiser)
        return held.progress

    def to_the_end(self) -> Outcome:
        """Step until the extent is reached, then validate and draw."""
        try:
            with tqdm(total=1.0, bar_format=_BAR, desc=self._config.run.name) as bar:
                while (share := self._share()) < 1.0:
                    bar.update(share - bar.n)
                    bar.set_postfix(self._advance(share), refresh=False)
                bar.update(1.0 - bar.n)
            # First, for what is learned must not be lost to whatever ends the validation.
            self._save()
            figures = self._validate()
        finally:
            self._batches.close()
            self._rows.close()
            self._validations.close()
        draw_curves(self._folder)
        return Outcome(self._average.network, self._progress, figures, self._commit)

    def _elapsed_s(self) -> float:
        return self._clock() - self._began

    def _share(self, ahead: int = 0) -> float:
        return self._extent.share(self._progress.step + ahead, self._elapsed_s())

    def _request(self, ahead: int) -> Request:
        """The batch of the step after `ahead` more."""
        batch = self._config.run.batch
        is_early = self._share(ahead) < self._config.clips.early_share
        source = self._sources.early if is_early else self._sources.usual
        return Request(source, self._progress.clips + ahead * batch, batch)

    def _advance(self, share: float) -> dict[str, float]:
        """One step and what is due after it; returns what the progress bar shows."""
        run, before = self._config.run, self._clock()
        clips = self._batches.batch(self._request(0), lambda: self._request(1))
        waiting_s = self._clock() - before
        rate = one_cycle(share, self._config.optimiser.peak_rate, self._config.optimiser.warm_up)
        row = self._step(clips, rate)
        step = self._progress.step + 1
        self._progress = replace(
            self._progress,
            step=step,
            clips=self._progress.clips + run.batch,
            elapsed_s=self._elapsed_s(),
        )
        if step % run.log_every == 0:
            times = (waiting_s, self._clock() - before, self._progress.elapsed_s)
            self._rows.add(step, row | dict(zip(TIMES, times, strict=True)))
        if step % run.validate_every == 0:
            self._validate()
        if self._elapsed_s() - self._saved_at >= 60.0 * run.checkpoint_minutes:
            self._save()
        return {"step": step, "loss": row["loss"]}

    def _step(self, clips: Clips, rate: float) -> dict[str, float]:
        """Change the weights once, unless loss or gradient is not finite."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        # All draws follow from seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(self._config.run.seed * _SEED_STRIDE + self._progress.step)
        terms = self._task.losses(clips)
        loss = torch.stack(list(terms.values())).sum()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._trained, self._config.optimiser.clip_norm)
        if bool((loss + norm).isfinite()):
            self._optimiser.step()
            self._average.follow(self._network, self._progress.step)
        else:
            self._skip(terms)
        values = {"loss": loss, **terms, "gradient": norm}
        numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
        return {**dict(zip(values, numbers, strict=True)), "rate": rate}

    def _skip(self, terms: Mapping[str, Tensor]) -> None:
        """Count a step that was not finite.

        Raises:
            TrainingError: there were too many.
        """
        skipped = self._progress.skipped + 1
        self._progress = replace(self._progress, skipped=skipped)
        if skipped > self._config.run.max_skipped:
            said = ", ".join(
                f"{name} {float(value.detach()):.3g}" for name, value in terms.items()
            )
            raise TrainingError(
                f"loss or gradient was not finite in {skipped} steps, the last one number "
                f"{self._progress.step} ({said}); lower optimiser.peak_rate, set "
                "run.precision=fp32 or raise run.max_skipped"
            )

    def _validate(self) -> dict[str, float]:
        figures = self._task.figures(self._average.network, self._held_out())
        self._validations.add(self._progress.step, figures)
        return figures

    def _held_out(self) -> Iterator[Clips]:
        batch = self._config.run.batch
        for number in range(self._config.clips.validation_batches):
            yield self._sources.held_out.clips(number * batch, batch)

    def _save(self) -> None:
        self._progress = replace(self._progress, elapsed_s=self._elapsed_s())
        self._saved_at = self._progress.elapsed_s
        checkpoint = Checkpoint(
            kind=self._task.kind,
            config=dict(self._config.flat()),
            progress=self._progress,
            network=self._network.state_dict(),
            average=self._average.network.state_dict(),
            optimiser=self._optimiser.state_dict(),
            commit=self._commit,
        )
        write_checkpoint(self._folder, checkpoint)


def _optimiser(trained: list[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; what has one axis (biases, norms) does not decay."""
    groups: list[dict[str, Any]] = [
        {"params": [part for part in trained if part.ndim > 1]},
        {"params": [part for part in trained if part.ndim <= 1], "weight_decay": 0.0},
    ]
    settings = config.optimiser
    return torch.optim.AdamW(
        groups,
        lr=settings.peak_rate,
        betas=(settings.beta_1, settings.beta_2),
        weight_decay=settings.weight_decay,
    )

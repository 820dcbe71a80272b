"""Whole runs of a tiny task: they end by steps or by the clock, and survive being killed."""

from __future__ import annotations

import csv
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_clips import SlidingClips, sliding_sources

from recon4d_ros.config import load_sections
from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import OutputError, TrainingError
from recon4d_ros.training.checkpoint import CHECKPOINT
from recon4d_ros.training.config import TrainingConfig
from recon4d_ros.training.record import CURVES, read_rows
from recon4d_ros.training.sources import Sources
from recon4d_ros.training.trainer import Outcome, train

STEPS = 12


class BrightnessTask:
    """Learns the mean brightness of a frame, with dropout, so that draws matter."""

    kind = "brightness"
    LIMITS = "It knows brightness alone."

    def __init__(self, bad_steps: Iterable[int] = ()) -> None:
        torch.manual_seed(5)
        self.network: nn.Module = nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.seen: list[Clips] = []
        self._bad_steps = set(bad_steps)

    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        error = self._errors(self.network, clips)
        if len(self.seen) in self._bad_steps:
            error = error * torch.nan
        self.seen.append(clips)
        return {"square": error.square().mean(), "edge": 0.1 * error.abs().mean()}

    def figures(self, network: nn.Module, batches: Iterable[Clips]) -> dict[str, float]:
        with torch.no_grad():
            errors = [self._errors(network, clips).abs().mean() for clips in batches]
        return {"error": float(torch.stack(errors).mean())}

    def export(self, network: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
        raise NotImplementedError

    def _errors(self, network: nn.Module, clips: Clips) -> Tensor:
        colour = clips.rgb.float().mean(dim=(2, 3)) / 255.0
        error: Tensor = network(colour)[..., 0] - colour.mean(dim=-1)
        return error


def config_of(*changes: str) -> TrainingConfig:
    usual = (
        f"run.steps={STEPS}",
        "run.minutes=0",
        "run.batch=2",
        "run.log_every=1",
        "run.validate_every=5",
        "run.checkpoint_minutes=0",
        "clips.num_frames=4",
        "clips.early_frames=3",
        "clips.early_share=0.25",
        "clips.validation_batches=2",
    )
    return load_sections(TrainingConfig(), None, usual + changes)


def run(folder: Path, *changes: str, **others) -> tuple[Outcome, BrightnessTask]:
    task = others.pop("task", None) or BrightnessTask()
    outcome = train(task, sliding_sources(), config_of(*changes), folder, **others)
    return outcome, task


def columns(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file without what the clock decides."""
    timed = {"waiting_s", "step_s", "elapsed_s"}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(path)]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    outcome, task = run(
        tmp_path, "run.steps=60", "optimiser.peak_rate=0.02", "run.checkpoint_minutes=9"
    )
    rows = read_rows(tmp_path / "train.csv")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["square"] < 0.2 * rows[0]["square"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["square"] + rows[-1]["edge"])
    assert len(read_rows(tmp_path / "validation.csv")) == 60 // 5 + 1
    assert (tmp_path / CURVES).stat().st_size > 10_000
    assert list((tmp_path / "tensorboard" / "train").iterdir())
    assert "peak_rate: 0.02" in (tmp_path / "config.yaml").read_text()
    # The first quarter is of shorter clips, and no clip comes twice.
    lengths = [clips.rgb.shape[1] for clips in task.seen]
    assert lengths == [3] * 15 + [4] * 45
    assert outcome.progress.clips == 120 and outcome.figures["error"] < 0.1
    assert len({float(clips.queries.sum()) for clips in task.seen}) == 60


def test_the_clock_ends_a_run_at_the_lowest_rate(tmp_path: Path) -> None:
    ticks = iter(range(10**9))
    outcome, _ = run(
        tmp_path,
        "run.steps=0",
        "run.minutes=2",
        "run.checkpoint_minutes=9",
        clock=lambda: float(next(ticks)),
        task=None,
    )
    rows = read_rows(tmp_path / "train.csv")
    assert 120.0 <= outcome.progress.elapsed_s < 140.0
    assert max(row["rate"] for row in rows) > 0.9 * config_of().optimiser.peak_rate
    assert rows[-1]["rate"] < 0.05 * config_of().optimiser.peak_rate


class Killed(BaseException):
    pass


class KillingTask(BrightnessTask):
    """Is killed in the middle of a step."""

    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        if len(self.seen) == 7:
            raise Killed
        return super().losses(clips)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A run that was never stopped, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder)[0], folder


def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, whole: tuple[Outcome, Path]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, task=KillingTask())
    torch.manual_seed(99)
    resumed, task = run(tmp_path, is_resumed=True)
    assert len(task.seen) == STEPS - 7
    assert same_weights(whole[0].network, resumed.network)
    assert whole[0].figures == resumed.figures
    for name in ("train.csv", "validation.csv"):
        assert columns(whole[1] / name) == columns(tmp_path / name)


class SlowTask(BrightnessTask):
    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        time.sleep(0.05)
        return super().losses(clips)


def slow_run(folder: Path) -> None:
    # The pool of threads that torch has in the parent does not live on in a fork.
    torch.set_num_threads(1)
    run(folder, task=SlowTask())


def test_a_run_killed_outright_goes_on(tmp_path: Path, whole: tuple[Outcome, Path]) -> None:
    child = multiprocessing.get_context("fork").Process(target=slow_run, args=(tmp_path,))
    child.start()
    deadline = time.monotonic() + 60.0
    while len(read_rows(tmp_path / "train.csv")) < 3:
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.join()
    resumed, task = run(tmp_path, is_resumed=True)
    # A checkpoint after each step: at most the step that was killed is done again.
    assert 0 < len(task.seen) < STEPS - 1
    assert same_weights(whole[0].network, resumed.network)
    assert columns(whole[1] / "train.csv") == columns(tmp_path / "train.csv")


def test_elapsed_time_survives_a_resumption(tmp_path: Path) -> None:
    clock = {"now": 0.0}

    def wound() -> float:
        clock["now"] += 1.0
        return clock["now"]

    with pytest.raises(Killed):
        run(tmp_path, "run.steps=0", "run.minutes=1", task=KillingTask(), clock=wound)
    before = clock["now"]
    clock["now"] += 10_000.0  # nobody trained meanwhile
    outcome, _ = run(
        tmp_path, "run.steps=0", "run.minutes=1", is_resumed=True, clock=wound, task=None
    )
    assert 60.0 <= outcome.progress.elapsed_s < 80.0
    assert clock["now"] - 10_000.0 < before + 60.0


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    short = ("run.steps=3", "clips.early_share=0")
    outcome, task = run(tmp_path / "bad", *short, task=BrightnessTask(bad_steps=(0, 1, 2)))
    assert outcome.progress.skipped == 3
    assert same_weights(task.network, BrightnessTask().network)
    assert same_weights(outcome.network, BrightnessTask().network)
    with pytest.raises(TrainingError, match=r"not finite in 2 steps.*lower optimiser.peak_rate"):
        run(
            tmp_path / "worse",
            *short,
            "run.max_skipped=1",
            task=BrightnessTask(bad_steps=(0, 2)),
        )


@pytest.fixture
def held(tmp_path: Path, whole: tuple[Outcome, Path]) -> Path:
    """A folder with a run that is over."""
    shutil.copytree(whole[1], tmp_path / "held")
    return tmp_path / "held"


def test_a_folder_with_a_run_is_not_written_over(held: Path) -> None:
    with pytest.raises(OutputError, match="add --resume"):
        run(held)


def test_what_cannot_be_resumed(tmp_path: Path, held: Path) -> None:
    with pytest.raises(TrainingError, match="leave out --resume"):
        run(tmp_path / "nothing", is_resumed=True)
    with pytest.raises(TrainingError, match=r"does not fit.*run.batch=3 \(was 2\)"):
        run(held, "run.batch=3", is_resumed=True)
    other = BrightnessTask()
    other.kind = "pomato"
    with pytest.raises(TrainingError, match="of a training of brightness, not of pomato"):
        run(held, task=other, is_resumed=True)


def foreign(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(3)}}, path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("no checkpoint at all")


def harmful(path: Path) -> None:
    torch.save({"format": Path("/")}, path)


@pytest.mark.parametrize("spoil", [foreign, damaged, text, harmful])
def test_a_foreign_checkpoint_is_refused(held: Path, spoil: Callable[[Path], None]) -> None:
    spoil(held / CHECKPOINT)
    with pytest.raises(TrainingError, match=r"damaged|no checkpoint of"):
        run(held, is_resumed=True)


def test_a_row_cut_off_by_a_kill_is_dropped(held: Path) -> None:
    path = held / "train.csv"
    path.write_text(path.read_text() + f"{STEPS + 1},0.25")
    run(held, f"run.steps={STEPS + 2}", is_resumed=True)
    assert [row["step"] for row in read_rows(path)] == list(range(1, STEPS + 3))
    with path.open(newline="") as file:
        assert all(None not in row.values() for row in csv.DictReader(file))


def test_early_and_usual_clips_are_of_one_numbering() -> None:
    sources = Sources(SlidingClips(3), SlidingClips(4), SlidingClips(4, seed=1))
    early, usual = sources.early.clips(7, 2), sources.usual.clips(7, 2)
    assert torch.equal(early.rgb, usual.rgb[:, :3])
    assert not torch.equal(usual.rgb, sources.held_out.clips(7, 2).rgb)

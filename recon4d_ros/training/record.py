"""What a run says of itself while it runs: rows of CSV files, TensorBoard, and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from recon4d_ros.errors import OutputError

CURVES = "curves.png"
STEP = "step"
# Columns that say how long things took: the clips' making, the whole step, the run.
TIMES = ("waiting_s", "step_s", "elapsed_s")
Row = dict[str, float]
Points = list[tuple[float, float]]

_NUM_COLUMNS = 4
_SMOOTHED_ROWS = 20


class Record:
    """Metrics of one kind, such as 'train': a CSV file and TensorBoard, row by row."""

    def __init__(self, folder: Path, kind: str, step: int) -> None:
        """Go on after step number `step`; rows of later steps are of a run that was killed."""
        self._kind = kind
        self._path = csv_path(folder, kind)
        self._board = SummaryWriter(str(folder / "tensorboard" / kind), purge_step=step + 1)
        kept = [row for row in read_rows(self._path) if row[STEP] <= step]
        self._path.unlink(missing_ok=True)
        for row in kept:
            self._write(row)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row, all the way to the disk's cache: a kill loses nothing.

        Raises:
            OutputError: it cannot be written.
        """
        self._write({STEP: step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"{self._kind}/{name}", value, step)

    def close(self) -> None:
        """Let TensorBoard finish its file."""
        self._board.close()

    def _write(self, row: Mapping[str, float]) -> None:
        is_new = not self._path.exists()
        try:
            with self._path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if is_new:
                    writer.writeheader()
                writer.writerow(
                    {STEP: int(row[STEP])} | {k: v for k, v in row.items() if k != STEP}
                )
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error}; free some space") from error


def csv_path(folder: Path, kind: str) -> Path:
    """Where the rows of a kind are."""
    return folder / f"{kind}.csv"


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [_numbers(row) for row in csv.DictReader(file)]
    return [row for row in rows if row]


def _numbers(row: Mapping[str, str | None]) -> Row:
    """The row's numbers; empty for one that was cut off while it was written."""
    try:
        return {name: float(value or "") for name, value in row.items()}
    except ValueError:
        return {}


def draw_curves(folder: Path) -> None:
    """Draw the metrics of the run's CSV files over the steps, as `curves.png`.

    Raises:
        OutputError: it cannot be written.
    """
    panels = [panel for kind in ("train", "validation") for panel in _panels(folder, kind)]
    num_rows = max(1, math.ceil(len(panels) / _NUM_COLUMNS))
    figure = Figure(figsize=(3.4 * _NUM_COLUMNS, 2.3 * num_rows))
    figure.subplots_adjust(0.05, 0.3 / num_rows, 0.98, 1.0 - 0.2 / num_rows, 0.25, 0.4)
    for place, (title, points, is_noisy) in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, _NUM_COLUMNS, place)
        _draw(axes, title, points, is_noisy=is_noisy)
    try:
        figure.savefig(folder / CURVES, dpi=100)
    except OSError as error:
        raise OutputError(f"cannot write {folder / CURVES}: {error}") from error


def _panels(folder: Path, kind: str) -> list[tuple[str, Points, bool]]:
    """Title and points of each metric, and whether it is that of single steps."""
    rows = read_rows(csv_path(folder, kind))
    names = [name for name in rows[0] if name not in (STEP, *TIMES)] if rows else []
    return [
        (f"{kind}: {name}", [(row[STEP], row[name]) for row in rows], kind == "train")
        for name in names
    ]


def _draw(axes: Axes, title: str, points: Points, *, is_noisy: bool) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    colour, marker = ("0.75", "") if is_noisy else ("tab:blue", ".")
    axes.plot(steps, values, color=colour, marker=marker, linewidth=1.0)
    if is_noisy:
        axes.plot(steps, _smoothed(values), color="tab:blue", linewidth=1.2)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _smoothed(values: list[float]) -> list[float]:
    """Means of each value and those before it."""
    windows = (values[max(0, n - _SMOOTHED_ROWS) : n] for n in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]

"""What the benchmarks share: where the sequences are, and runs of ours, each made once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recon4d_ros.errors import MissingPrerequisiteError
from recon4d_ros.evaluation.report import Report, evaluate_run

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"
RECON4D = Path(sys.executable).parent / "recon4d"


class RunFailedError(Exception):
    """A program under comparison stopped with an error; the message is its last line."""


@dataclass
class Workbench:
    """Output folder, and the runs made so far.

    Attributes:
        out: everything is written below it.
        runs: folder of the run of each sequence.
    """

    out: Path
    runs: dict[Path, Path] = field(default_factory=dict)
    reports: dict[Path, Report] = field(default_factory=dict)

    def run_ours(
        self, sequence: Path, name: str | None = None, settings: Sequence[str] = ()
    ) -> Path:
        """Folder of `recon4d run` on a sequence; made once unless `name` asks for another.

        Only the run without a name, which has no settings, stands for the sequence.
        """
        if name is None and sequence in self.runs:
            return self.runs[sequence]
        folder = self.out / "runs" / (name or sequence.name)
        changed = [word for each in settings for word in ("--set", each)]
        call([RECON4D, "run", sequence, "--out", folder, "--overwrite", *changed])
        if name is None:
            self.runs[sequence] = folder
        return folder

    def report(self, sequence: Path) -> Report:
        """Our run of a sequence against its truth."""
        if sequence not in self.reports:
            self.reports[sequence] = evaluate_run(self.run_ours(sequence), sequence)
        return self.reports[sequence]

    def run_report(self, sequence: Path) -> dict[str, Any]:
        """What our run says of itself (report.json)."""
        content: dict[str, Any] = json.loads((self.run_ours(sequence) / "report.json").read_text())
        return content


def call(command: list[object], **options: Any) -> str:
    """Standard output of a program.

    Raises:
        RunFailedError: it ended with an error.
    """
    words = [str(word) for word in command]
    print("  $", " ".join(words), file=sys.stderr, flush=True)
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunFailedError(f"{Path(words[0]).name} {words[1]}: {lines[-1]}")
    return done.stdout


def sequence_folder(name: str) -> Path:
    """Folder of a sequence below ../shared/data.

    Raises:
        MissingPrerequisiteError: it is not there.
    """
    folder = DATA / name
    if not (folder / "rgb.txt").is_file():
        raise MissingPrerequisiteError(
            f"the benchmarks need the sequence {name} in ../shared/data beside the repository"
        )
    return folder


def all_but(left_out: str, sequence: Path, folder: Path) -> Path:
    """The same sequence in another folder, without one of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sequence.iterdir():
        link = folder / entry.name
        if entry.name != left_out and not link.exists():
            link.symlink_to(entry)
    return folder

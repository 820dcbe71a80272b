"""Memory stays flat: resident size after 3,000 frames against that after 600."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.endless import endless_frames
from benchmarks.table import Row, Target
from benchmarks.workbench import ROOT, RunFailedError, Workbench, call, sequence_folder
from recon4d_ros.config import Config
from recon4d_ros.pipeline.factory import build_reconstructor

SEQUENCE = "tum_fr3_walking_halfsphere_clip"
EARLY, LATE = 600, 3000
GROWTH = Target(1.03)
MAP_EVERY = 30  # frames between two looks at the map, as the node publishes it


def benchmark(_: Workbench) -> Iterator[Row]:
    """The ratio, measured in a process of its own."""
    case = f"{SEQUENCE}, there and back"
    try:
        sizes = json.loads(
            call([sys.executable, "-m", "benchmarks.memory", sequence_folder(SEQUENCE)], cwd=ROOT)
        )
    except RunFailedError as error:
        yield Row("memory", case, "growth", math.nan, GROWTH, note=str(error))
        return
    early, late = sizes[str(EARLY)], sizes[str(LATE)]
    note = f"{early / 2**20:.0f} MiB after {EARLY} frames, {late / 2**20:.0f} after {LATE}"
    yield Row("memory", case, f"RSS {LATE} / {EARLY} frames", late / early, GROWTH, note=note)


def resident_bytes() -> int:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(sequence: Path) -> dict[int, int]:
    """Resident size after so many frames."""
    reconstructor = build_reconstructor(Config())
    sizes = {}
    for number, frame in enumerate(itertools.islice(endless_frames(sequence), LATE), start=1):
        reconstructor.step(frame)
        if number % MAP_EVERY == 0:
            reconstructor.static_map()
        if number in (EARLY, LATE):
            gc.collect()
            sizes[number] = resident_bytes()
    return sizes


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))

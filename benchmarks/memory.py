"""Memory stays flat: resident size after 3,000 frames against that after 600."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.endless import endless_frames
from benchmarks.table import Row, Target
from benchmarks.workbench import ROOT, RunFailedError, Workbench, sequence_folder
from recon4d_ros.config import Config
from recon4d_ros.pipeline.factory import build_reconstructor

SEQUENCE = "tum_fr3_walking_halfsphere_clip"
EARLY, LATE = 600, 3000
GROWTH = Target(1.03)
SAMPLE_EVERY = 100
MAP_EVERY = 30  # frames between two looks at the map, as the node publishes it


def benchmark(_: Workbench) -> Iterator[Row]:
    """The ratio, measured in a process of its own."""
    case = f"{SEQUENCE}, there and back"
    try:
        sizes = dict(_samples(sequence_folder(SEQUENCE)))
        early, late = sizes[EARLY] / 2**20, sizes[LATE] / 2**20
    except RunFailedError as error:
        yield Row("memory", case, "growth", math.nan, GROWTH, note=str(error))
        return
    note = f"{early:.0f} MiB after {EARLY} frames, {late:.0f} after {LATE}"
    yield Row("memory", case, f"RSS {LATE} / {EARLY} frames", late / early, GROWTH, note=note)
    yield Row("memory", case, "largest RSS MiB", max(sizes.values()) / 2**20)


def _samples(sequence: Path) -> Iterator[tuple[int, int]]:
    """Frames so far and resident bytes, told on stderr as they come.

    Raises:
        RunFailedError: the process ended with an error.
    """
    command = [sys.executable, "-m", "benchmarks.memory", str(sequence)]
    begin_s = time.monotonic()
    # In a session of its own, so that Ctrl-C reaches this process alone, which ends the other.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                num_frames, size = json.loads(line)
                rate = num_frames / (time.monotonic() - begin_s)
                progress = f"{num_frames} of {LATE} frames, {rate:.1f} frames/s"
                print(f"  {progress}, {size / 2**20:.0f} MiB", file=sys.stderr, flush=True)
                yield num_frames, size
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RunFailedError(f"benchmarks.memory ended with code {process.returncode}; see above")


def resident_bytes() -> int:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(sequence: Path) -> Iterator[tuple[int, int]]:
    """Number of frames so far and resident size, every so many frames."""
    reconstructor = build_reconstructor(Config())
    for number, frame in enumerate(itertools.islice(endless_frames(sequence), LATE), start=1):
        reconstructor.step(frame)
        if number % MAP_EVERY == 0:
            reconstructor.static_map()
        if number % SAMPLE_EVERY == 0:
            gc.collect()
            yield number, resident_bytes()


if __name__ == "__main__":
    for sample in measure(Path(sys.argv[1])):
        print(json.dumps(sample), flush=True)

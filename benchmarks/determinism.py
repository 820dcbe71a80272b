"""Two runs of the same recording give the same trajectories, to the last digit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder

SEQUENCES = ("tum_fr3_walking_halfsphere_clip", "rendered/tossed_objects")
FILES = ("trajectory.tum", "trajectory_provisional.tum")
SAME = Target(0)


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Lines that differ between two runs."""
    for name in SEQUENCES:
        sequence = sequence_folder(name)
        try:
            first = bench.run_ours(sequence)
            second = bench.run_ours(sequence, f"{sequence.name}_again")
        except RunFailedError as error:
            yield Row("determinism", name, "lines that differ", math.nan, SAME, note=str(error))
            continue
        for file in FILES:
            lines = [(folder / file).read_text().splitlines() for folder in (first, second)]
            changed = sum(a != b for a, b in zip(*lines, strict=False))
            differ = changed + abs(len(lines[0]) - len(lines[1]))
            yield Row("determinism", name, f"{file}: lines that differ", differ, SAME)

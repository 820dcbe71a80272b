"""`make bench`: every figure against its target and its peers, as a table and as JSON.

`make bench ONLY=trajectories,depth` measures some parts only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import recon4d_ros
from benchmarks.table import Row, to_json, to_markdown, to_text
from benchmarks.workbench import ROOT, Workbench
from recon4d_ros.errors import Recon4DError

PARTS = ("trajectories", "depth", "masks", "live", "memory", "determinism")
SHORT = {"ate": "trajectories"}


def main() -> int:
    """Measure the chosen parts; 0 when every target is reached."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_out"), help="folder for results")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    args = parser.parse_args()
    parts = [SHORT.get(part, part) for part in args.only.split(",")]
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}; expected some of {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = measure(Workbench(args.out.resolve()), parts)
    except Recon4DError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 2
    write(args.out, rows)
    missed = [row for row in rows if row.passed is False]
    print(f"\n{len(missed)} targets missed; {args.out / 'bench.json'}, {args.out / 'bench.md'}")
    return 1 if missed else 0


def measure(bench: Workbench, parts: list[str]) -> list[Row]:
    """Rows of the parts, in the order of PARTS."""
    rows: list[Row] = []
    for part in (name for name in PARTS if name in parts):
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{part}").benchmark(bench)
    return rows


def write(out: Path, rows: list[Row]) -> None:
    """Print the table and write it as JSON and Markdown."""
    print(to_text(rows))
    (out / "bench.json").write_text(to_json(rows, about()))
    (out / "bench.md").write_text(to_markdown(rows))


def about() -> dict[str, object]:
    """Where and with what the figures were measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "machine": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": {
            "recon4d_ros": recon4d_ros.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


if __name__ == "__main__":
    sys.exit(main())

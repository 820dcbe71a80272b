"""`make bench`: every figure against its target and its peers, as a table and as JSON.

`make bench ONLY=trajectories,depth` measures some parts only. What has been measured is on the
disk after each part.
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

PARTS = (
    "trajectories",
    "starts",
    "uncalibrated",
    "depth",
    "masks",
    "refinement",
    "live",
    "memory",
    "determinism",
    "pomato",
    "pomato_oracle",
    "dynpt",
    "tracker_masks",
    "alignment",
    "clips",
)
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
    except KeyboardInterrupt:
        print("make bench: stopped; the parts that were complete are on the disk", file=sys.stderr)
        return 130
    with_target = [row for row in rows if row.target is not None]
    missed = [row for row in with_target if not row.passed]
    print(to_text(rows))
    print(f"\n{len(missed)} of {len(with_target)} targets missed; {args.out / file_name(parts)}")
    return 1 if missed else 0


def measure(bench: Workbench, parts: list[str]) -> list[Row]:
    """Rows of the parts, in the order of PARTS; written after each part."""
    rows: list[Row] = []
    for part in (name for name in PARTS if name in parts):
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{part}").benchmark(bench)
        path = bench.out / file_name(parts)
        path.write_text(to_json(rows, about()))
        path.with_suffix(".md").write_text(to_markdown(rows))
    return rows


def file_name(parts: list[str]) -> str:
    """A full run and runs of some parts do not write over each other."""
    chosen = [part for part in PARTS if part in parts]
    return "bench.json" if len(chosen) == len(PARTS) else f"bench_{'_'.join(chosen)}.json"


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

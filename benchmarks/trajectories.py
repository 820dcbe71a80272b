"""Camera poses: ours beside a plain visual odometry, Sim(3), over all frames."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Row, Target
from benchmarks.workbench import SHARED, RunFailedError, Workbench, call, sequence_folder
from recon4d_ros.errors import Recon4DError

# Sequence: what the ATE (m) must reach, and the goal.
TARGETS = {
    "tum_fr3_walking_halfsphere_clip": Target(0.0080, goal=0.006),
    "icl_livingroom1": Target(0.0050, goal=0.0025),
    "scenes7_redkitchen_clip150": Target(0.030, goal=0.020),
    "kitti_odo_a": Target(0.15, goal=0.05),
    "rendered/room_walkers": Target(0.0055, goal=0.002),
    "rendered/static_scene": Target(0.010, goal=0.003),
    "rendered/tossed_objects": Target(0.0060, goal=0.002),
    "tum_fr2_desk_clip20": Target(0.0065, goal=0.004),
}
POSED = Target(0.98, better="higher")
# ATE (m) of COLMAP on the same frames, or on every 2nd or 3rd where it says so: offline, with full
# bundle adjustment, median of three seeds of its better preset. Measured once, not in every run.
COLMAP = {
    "tum_fr3_walking_halfsphere_clip": {"COLMAP": 0.025},
    "icl_livingroom1": {"COLMAP, fewer frames": 0.0025},
    "scenes7_redkitchen_clip150": {"COLMAP, fewer frames": 0.024},
    "kitti_odo_a": {"COLMAP": 0.026},
    "tum_fr2_desk_clip20": {"COLMAP": 0.024},
}


def plain_odometry(sequence: Path) -> dict[str, float]:
    """KLT, essential matrix and PnP with known K and nothing else, scored by its own script."""
    script = SHARED / "baselines" / "run_vo.py"
    truth = sequence / "reference_rgbd.txt"
    words: list[object] = [sys.executable, script, sequence, *([truth] if truth.is_file() else [])]
    result = json.loads(call(words))
    return {"ate": result["ate_m"], "posed": result["posed"] / result["total"]}


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Two rows per sequence: ATE and share of posed frames; ATE on arrival for information."""
    for name, target in TARGETS.items():
        sequence = sequence_folder(name)
        plain, note = _plain_figures(sequence)
        ate = {"plain VO": plain["ate"]} | COLMAP.get(name, {})
        try:
            report = bench.report(sequence)
        except (RunFailedError, Recon4DError) as error:
            yield Row("trajectories", name, "ATE m", math.nan, target, ate, str(error))
            continue
        poses, provisional = report.final_interpolated, report.provisional
        assert poses is not None
        assert provisional is not None
        yield Row("trajectories", name, "ATE m", poses.ate.rmse, target, ate, note)
        posed = {"plain VO": plain["posed"]}
        yield Row("trajectories", name, "posed", poses.posed_share, POSED, posed)
        yield Row("trajectories", name, "ATE m on arrival", provisional.ate.rmse)


def _plain_figures(sequence: Path) -> tuple[dict[str, float], str]:
    """Figures of the plain odometry; undefined ones with the reason when it fails."""
    try:
        return plain_odometry(sequence), ""
    except RunFailedError as error:
        return {"ate": math.nan, "posed": math.nan}, f"no baseline: {error}"

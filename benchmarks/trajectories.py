"""Camera poses: ours beside a plain visual odometry, Sim(3), over all frames."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
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


def plain_odometry(sequence: Path) -> dict[str, float]:
    """KLT, essential matrix and PnP with known K and nothing else, scored by its own script."""
    script = SHARED / "baselines" / "run_vo.py"
    truth = sequence / "reference_rgbd.txt"
    words: list[object] = [sys.executable, script, sequence, *([truth] if truth.is_file() else [])]
    result = json.loads(call(words))
    return {"ate": result["ate_m"], "posed": result["posed"] / result["total"]}


PEERS: dict[str, Callable[[Path], dict[str, float]]] = {"plain VO": plain_odometry}


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Two rows per sequence: ATE and share of posed frames; ATE on arrival for information."""
    for name, target in TARGETS.items():
        sequence = sequence_folder(name)
        peers = {peer: measure(sequence) for peer, measure in PEERS.items()}
        try:
            report = bench.report(sequence)
        except (RunFailedError, Recon4DError) as error:
            yield Row("trajectories", name, "ATE m", math.nan, target, note=str(error))
            continue
        poses, provisional = report.final_interpolated, report.provisional
        assert poses is not None
        assert provisional is not None
        ate = {peer: figures["ate"] for peer, figures in peers.items()}
        posed = {peer: figures["posed"] for peer, figures in peers.items()}
        yield Row("trajectories", name, "ATE m", poses.ate.rmse, target, ate)
        yield Row("trajectories", name, "posed", poses.posed_share, POSED, posed)
        yield Row("trajectories", name, "ATE m on arrival", provisional.ate.rmse)

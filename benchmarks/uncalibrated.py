"""What a camera of which nothing is known costs: the same sequences without their intrinsics.

A phone's video or a webcam comes without `camera_info`; its focal length is learned on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Row
from benchmarks.trajectories import TARGETS
from benchmarks.workbench import Workbench, all_but, sequence_folder
from recon4d_ros.evaluation.report import Report
from recon4d_ros.storage.dataset import SequenceFolder

_UNKNOWN = ("fx", "fy", "cx", "cy")
# Pixels that count for depth, the first set there is.
_PIXELS = ("static", "outside_own_mask", "all")


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Per sequence: ATE, depth and focal length, beside what is measured with intrinsics."""
    for name in TARGETS:
        sequence = sequence_folder(name)
        without = uncalibrated(sequence, bench.out / "uncalibrated")
        ours, known = bench.report(without), bench.report(sequence)
        yield Row("uncalibrated", name, "ATE m", _ate(ours), peers={"given K": _ate(known)})
        if ours.depth:
            peers = {"given K": _abs_rel(known)}
            yield Row("uncalibrated", name, "AbsRel", _abs_rel(ours), peers=peers)
        learned = bench.run_report(without)["intrinsics"]["fx"]
        given = SequenceFolder(sequence).camera.intrinsics
        assert given is not None
        yield Row("uncalibrated", name, "focal length over the given", learned / given.fx)


def uncalibrated(sequence: Path, folder: Path) -> Path:
    """The same sequence without intrinsics."""
    made = all_but("intrinsics.json", sequence, folder / f"{sequence.name}_uncalibrated")
    camera = json.loads((sequence / "intrinsics.json").read_text())
    text = json.dumps(camera | dict.fromkeys(_UNKNOWN), indent=2)
    (made / "intrinsics.json").write_text(text)
    return made


def _ate(report: Report) -> float:
    assert report.final_interpolated is not None
    return report.final_interpolated.ate.rmse


def _abs_rel(report: Report) -> float:
    return next(report.depth[name] for name in _PIXELS if name in report.depth).abs_rel

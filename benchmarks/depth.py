"""Depth: AbsRel with one scale per sequence, beside a constant depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.table import Row, Target
from benchmarks.workbench import RunFailedError, Workbench, sequence_folder
from recon4d_ros.errors import Recon4DError
from recon4d_ros.evaluation.depth import DepthFrame, evaluate_depth
from recon4d_ros.storage.dataset import SequenceFolder

# Sequence, pixels that count, AbsRel, valid share. The walking clip has no true masks: the
# run's own say what is static.
TARGETS = (
    ("icl_livingroom1", "all", Target(0.05), Target(0.60, better="higher")),
    ("tum_fr3_walking_halfsphere_clip", "outside_own_mask", Target(0.12), None),
    ("tum_fr3_walking_halfsphere_clip", "all", None, None),
    ("scenes7_redkitchen_clip150", "all", None, None),
    ("rendered/room_walkers", "static", Target(0.06), None),
    ("rendered/static_scene", "static", None, None),
    ("rendered/tossed_objects", "static", None, None),
)


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Three rows per sequence and set of pixels."""
    for name, pixels, abs_rel, valid in TARGETS:
        sequence = sequence_folder(name)
        case = f"{name}, {pixels.replace('_', ' ')}"
        try:
            depth = bench.report(sequence).depth
        except (RunFailedError, Recon4DError) as error:
            yield Row("depth", case, "AbsRel", math.nan, abs_rel, note=str(error))
            continue
        if pixels not in depth:
            note = f"the run wrote nothing to tell these pixels by; it has {', '.join(depth)}"
            yield Row("depth", case, "AbsRel", math.nan, abs_rel, note=note)
            continue
        figures = depth[pixels]
        constant = {"constant": constant_depth(sequence)}
        yield Row("depth", case, "AbsRel", figures.abs_rel, abs_rel, constant)
        yield Row("depth", case, "delta < 1.25", figures.delta_125)
        yield Row("depth", case, "valid", figures.valid_share, valid)


def constant_depth(path: Path) -> float:
    """AbsRel of one depth for all pixels of the sequence."""
    sequence = SequenceFolder(path)

    def frames() -> Iterator[DepthFrame]:
        for entry in sequence.entries:
            truth = sequence.truth.depth(entry.stamp_ns)
            if truth is not None:
                known = truth.numpy()
                yield DepthFrame(known, np.ones_like(known), np.ones(known.shape, bool))

    return evaluate_depth(frames).abs_rel

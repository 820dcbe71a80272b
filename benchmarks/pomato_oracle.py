"""POMATO's predictor on a network that knows the truth, with the noise of a good real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.table import Row, Target
from benchmarks.workbench import ROOT, Workbench
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, FramePrediction, Reconstruction, Window, WindowPrediction
from recon4d_ros.evaluation.metrics import summarise
from recon4d_ros.evaluation.trajectory import absolute_errors, align, pair_by_index
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import RenderedFrame, render

WIDTH, LENGTH, T = 320, 60, 12
CASES = {"incremental": T, "exact": T, "pairwise": None}
NOTE = "0.7 % along the ray, 0.36 px across, random unit per window or pair; demo scene"
ATE, IOU = Target(0.5), Target(0.7, better="higher")


class WithoutMatching(PomatoPredictor):
    """Says nothing of matched pointmaps, so that flow alone votes on what moves."""

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        return replace(super().track(frame, dense), matchings=())

    def predict(self, window: Window) -> WindowPrediction:
        return replace(super().predict(window), matchings=())


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Trajectory error and masks of each way to run the network."""
    shown = [render(scenes.named("demo", LENGTH, WIDTH), index) for index in range(LENGTH)]
    for case, length in CASES.items():
        final, arrival = _run(PomatoPredictor, case, length, shown)
        by_flow, _ = _run(WithoutMatching, case, length, shown)
        peers = {"flow alone": iou(by_flow, shown)}
        yield Row("pomato_oracle", case, "ATE % of path", ate(final, shown), ATE, note=NOTE)
        yield Row("pomato_oracle", case, "ATE % on arrival", ate(arrival, shown), ATE)
        yield Row("pomato_oracle", case, "mask IoU", iou(final, shown), IOU, peers)
        yield Row("pomato_oracle", case, "mask IoU on arrival", iou(arrival, shown))


def _run(
    kind: type[PomatoPredictor], case: str, length: int | None, shown: list[RenderedFrame]
) -> tuple[list[Reconstruction], list[Reconstruction]]:
    """Final results and those on arrival."""
    sys.path.insert(0, str(ROOT / "test"))
    from oracle_network import OracleNetwork

    mode = "exact" if case == "exact" else "incremental"
    config = Config().replaced({"pomato.long_side": WIDTH, "pomato.mode": mode})
    network = OracleNetwork(scenes.named("demo", LENGTH, WIDTH), length)
    reconstructor = Reconstructor(config, kind(config, Engine(network)))
    steps = [reconstructor.step(frame.frame) for frame in shown]
    final = [result for step in steps for result in step.final]
    return [*final, *reconstructor.finish()[0]], [step.provisional for step in steps]


def ate(found: list[Reconstruction], shown: list[RenderedFrame]) -> float:
    """RMSE of the positions after the best similarity, in % of the path; NaN if one is missing."""
    if any(result.T_map_cam is None for result in found):
        return float("nan")
    ours = torch.stack([r.T_map_cam for r in found if r.T_map_cam is not None]).numpy()
    exact = torch.stack([shown[r.frame.index].T_world_cam for r in found]).numpy()
    errors = absolute_errors(align(pair_by_index(exact, ours)))
    path = np.linalg.norm(np.diff(exact[:, :3, 3], axis=0), axis=1).sum()
    return float(100 * summarise(errors).rmse / path)


def iou(found: list[Reconstruction], shown: list[RenderedFrame]) -> float:
    """Intersection over union of what moves, over all pixels of all frames."""
    masks = torch.stack([result.dynamic_mask for result in found])
    moving = torch.stack([shown[result.frame.index].dynamic_mask for result in found])
    return float((masks & moving).sum() / (masks | moving).sum())

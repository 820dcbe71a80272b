"""The whole reconstruction on a network that knows the truth, with the noise of a real one."""

from functools import cache

import pytest
import torch
from oracle_network import OracleNetwork
from rendered_stream import rendered
from stream_run import Run, ate, run

from recon4d_ros.config import Config
from recon4d_ros.datatypes import TrackingState
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor
from recon4d_ros.synthetic import scenes

WIDTH, LENGTH, T = 128, 24, 8


def config(**changes) -> Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    small = {"pomato.long_side": WIDTH, "window.size": T, "map.max_voxels": 20_000}
    return Config().replaced({**small, **named})


def oracle(temporal_length: int | None = T, **noise: float) -> OracleNetwork:
    return OracleNetwork(scenes.named("demo", LENGTH, WIDTH), temporal_length, **noise)


def streamed(network: OracleNetwork, settings: Config, count: int = LENGTH) -> Run:
    predictor = PomatoPredictor(settings, Engine(network))
    images = [rendered("demo", index, WIDTH, LENGTH).frame for index in range(count)]
    return run(Reconstructor(settings, predictor), images)


@cache
def done(kind: str) -> tuple[Run, OracleNetwork]:
    network = oracle(None if kind == "pairwise" else T)
    mode = "incremental" if kind == "pairwise" else kind
    return streamed(network, config(pomato__mode=mode)), network


def truth() -> list[torch.Tensor]:
    return [rendered("demo", index, WIDTH, LENGTH).T_world_cam for index in range(LENGTH)]


def path_length() -> float:
    centres = torch.stack([T[:3, 3] for T in truth()])
    return float((centres[1:] - centres[:-1]).norm(dim=1).sum())


KINDS = ("incremental", "exact", "pairwise")


@pytest.mark.parametrize("kind", KINDS)
def test_poses_are_right_although_every_window_has_its_own_unit(kind):
    result, _ = done(kind)
    assert [r.frame.index for r in result.finals()] == list(range(LENGTH))
    for found in (result.finals(), result.provisional):
        share = ate(found, truth()) / path_length()
        print(f"{kind}: ATE {100 * share:.2f} % of the path")
        assert share < 0.02  # 0.3 to 0.8 %; noise in px counts more on so small images
    assert {r.state for r in result.finals()} == {TrackingState.TRACKING}


@pytest.mark.parametrize("kind", KINDS)
def test_depth_has_one_unit_from_frame_to_frame(kind):
    result, _ = done(kind)
    for found in (result.finals(), result.provisional):
        ratios = []
        for r in found:
            exact = rendered("demo", r.frame.index, WIDTH, LENGTH).depth
            ratios.append((r.depth / exact)[~r.filled].nanmedian())
        ratios = torch.stack(ratios)
        assert float(ratios.max() / ratios.min() - 1) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_masks_show_what_moves(kind):
    result, _ = done(kind)
    finals = result.finals()[4:]
    found = torch.stack([r.dynamic_mask for r in finals])
    exact = [rendered("demo", r.frame.index, WIDTH, LENGTH).dynamic_mask for r in finals]
    moving = torch.stack(exact)
    iou = float((found & moving).sum() / (found | moving).sum())
    print(f"{kind}: IoU {iou:.2f}")
    assert iou > 0.7
    assert float((found & ~moving).sum() / (~moving).sum()) < 0.01


def test_every_frame_is_encoded_once_and_only_what_is_needed_is_evaluated():
    _, network = done("incremental")
    assert network.num_encoded == LENGTH
    assert network.num_maps == 2 * LENGTH - 1  # heads 2 and 3; the first frame has no partner
    assert network.num_pairs <= LENGTH + 2 * T  # one each, and two keyframe changes
    _, network = done("exact")
    assert network.num_encoded == LENGTH
    _, network = done("pairwise")
    assert network.num_encoded == LENGTH
    assert network.num_pairs <= 4 * LENGTH


@pytest.mark.parametrize("kind", KINDS)
def test_exact_maps_give_exact_poses(kind):
    length = None if kind == "pairwise" else T
    network = oracle(length, along=0.0, across_px=0.0)
    mode = "incremental" if kind == "pairwise" else kind
    result = streamed(network, config(pomato__mode=mode), count=10)
    assert ate(result.finals(), truth()) < 2e-4 * path_length()

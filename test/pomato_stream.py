"""Predictors with small networks of random weights, and streams to feed them; no test in here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from pomato_fixtures import require

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Reconstruction
from recon4d_ros.networks.pomato import PomatoNet, save_safetensors
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor

T = 4
HEADS = 4


def config(**changes) -> Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    small = {
        "predictor.name": "pomato",
        "pomato.long_side": 80,
        "pomato.device": "cpu",
        "window.size": T,
        "window.final_lag": 3,
        "window.stride": 1,
        "map.max_voxels": 5000,
    }
    return Config().replaced({**small, **named})


@cache
def network(kind: str) -> PomatoNet:
    path = require(f"tiny_{kind}.safetensors")
    return PomatoNet.from_file(path, encoder_heads=HEADS, decoder_heads=HEADS)


def model_file(kind: str, folder: Path) -> Path:
    """A checkpoint that says its numbers of heads."""
    path = folder / f"{kind}.safetensors"
    save_safetensors(network(kind), path)
    return path


def predictor(kind: str = "temporal", **changes) -> PomatoPredictor:
    return PomatoPredictor(config(**changes), Engine(network(kind)))


def noise_frame(index: int, size: tuple[int, int] = (48, 80), **changes) -> Frame:
    random = torch.Generator().manual_seed(index)
    rgb = torch.randint(0, 256, (*size, 3), generator=random, dtype=torch.uint8)
    return Frame(index, 33_000_000 * (index + 1), rgb, **changes)


def assert_well_formed(result: Reconstruction) -> None:
    """Whatever the network says, no result is half made."""
    size = result.intrinsics.size
    for name in ("depth", "confidence", "dynamic_mask", "filled"):
        assert getattr(result, name).shape == size, name
    known = result.depth.isfinite()
    assert bool((result.depth[known] > 0).all())
    assert bool((result.confidence[~known] == 0).all())
    assert bool(result.confidence.isfinite().all())
    if result.T_map_cam is not None:
        assert bool(result.T_map_cam.isfinite().all())

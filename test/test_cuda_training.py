"""Clips made on a CUDA device, and training on one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from recon4d_ros.synthetic.clips import ClipGenerator, ClipSettings
from recon4d_ros.training.record import read_rows
from recon4d_ros.training.session import train_network

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: nothing of this can be run", allow_module_level=True)

CUDA = torch.device("cuda")
CLIPS = ClipSettings(num_frames=6, size=(64, 80), num_tracks=96, num_textures=7, texture_size=64)
SHORT = {
    "run": {"name": "tiny", "steps": 3, "minutes": 0.0, "batch": 2, "log_every": 1},
    "clips": {"num_frames": 4, "early_frames": 4, "height": 32, "width": 48, "num_tracks": 8}
    | {"num_textures": 2, "validation_batches": 1},
}
TRACKER = {"size": "tiny", "iterations": 2, "window": 3, "unrolled_share": 0.5}
NETWORK = {"encoder_width": 32, "encoder_depth": 1, "encoder_heads": 2, "decoder_width": 32}
NETWORK |= {"decoder_depth": 2, "decoder_heads": 2, "head_width": 32}


@pytest.mark.parametrize("dense", [False, True])
def test_clips_are_the_same(dense: bool) -> None:
    here, there = (
        ClipGenerator(CLIPS, 5, device).clips(0, 4, dense_motion=dense) for device in ("cpu", CUDA)
    )
    assert {v.device.type for v in vars(there).values() if isinstance(v, Tensor)} == {"cuda"}
    there = there.to(torch.device("cpu"))
    for name in ("K", "T_world_cam"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name))
    # Rounding decides what a pixel on an edge sees, and with it which pixel is the n-th to ask.
    same_depth = (there.depth / here.depth - 1.0).abs() < 1e-3
    same_picture = (there.rgb.float() - here.rgb.float()).abs().mean()
    asked = (there.queries - here.queries).abs().amax(dim=-1) < 1e-3
    shares = same_depth.float().mean(), asked.float().mean(), same_picture
    print("depths alike, queries alike, difference of colours:", shares)
    assert shares[0] > 0.998 and shares[1] > 0.8 and same_picture < 8.0
    assert (there.dynamic_mask == here.dynamic_mask).float().mean() > 0.998
    for name in ("moves_in_clip", "is_judged", "object_ids"):
        assert torch.equal(getattr(there, name)[asked], getattr(here, name)[asked]), name
    in_time = asked[:, None].expand_as(here.visibility)
    assert (there.visibility == here.visibility)[in_time].float().mean() > 0.995
    assert torch.equal(there.moves_in_frame[in_time], here.moves_in_frame[in_time])
    torch.testing.assert_close(
        there.tracks[in_time], here.tracks[in_time], atol=1e-2, rtol=0, equal_nan=True
    )
    if dense:
        for name in ("flow", "scene_flow"):
            error = (getattr(there, name) - getattr(here, name)).abs().amax(dim=-1).nan_to_num()
            assert (error < 1e-2).float().mean() > 0.995, name


def trained(kind: str, folder: Path, *words: str, is_resumed: bool = False) -> dict[str, float]:
    path = folder / "short.yaml"
    part = {"tracker": TRACKER} if kind == "dynpt" else {"network": NETWORK}
    path.write_text(yaml.safe_dump(SHORT | part))
    usual = ("run.device=cuda", "run.precision=bf16", *words)
    done = train_network(kind, path, usual, folder / "out", is_resumed=is_resumed)
    assert done.weights.is_file()
    assert all(math.isfinite(row["loss"]) for row in read_rows(folder / "out" / "train.csv"))
    return {"steps": float(done.steps), **done.figures}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dynpt", ()),
        ("dynpt", ("tracker.size=lean", "tracker.iterations=1", "clips.remembered=3")),
        ("pomato", ()),
    ],
)
def test_a_training_runs_and_goes_on(kind: str, words: tuple[str, ...], tmp_path: Path) -> None:
    assert trained(kind, tmp_path, *words)["steps"] == 3
    assert trained(kind, tmp_path, *words, "run.steps=5", is_resumed=True)["steps"] == 5
    assert len(read_rows(tmp_path / "out" / "train.csv")) == 5


def test_the_temporal_stage_trains(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    trained("pomato", tmp_path / "pairs")
    start = f"network.start={tmp_path / 'pairs' / 'out' / 'tiny.safetensors'}"
    assert trained("pomato", tmp_path, "network.stage=temporal", start)["steps"] == 3

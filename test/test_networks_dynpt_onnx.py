"""DynPT as ONNX: one export, the same answers, and every fault refused."""

import dataclasses
import json
import shutil

import pytest
import torch

from recon4d_ros.cli.main import main
from recon4d_ros.config import Config, TrackerConfig
from recon4d_ros.errors import ConfigError, ModelError
from recon4d_ros.networks.dynpt import DynPT, DynPTConfig, TrackState, checkpoint
from recon4d_ros.networks.dynpt.onnx_export import export_onnx
from recon4d_ros.networks.dynpt.onnx_folder import DESCRIPTION
from recon4d_ros.networks.dynpt.onnx_runtime import OnnxDynPT
from recon4d_ros.predictors.dynpt.loading import load_tracker

# Tracing a network takes a minute on a busy machine; most of that goes with the number of layers.
pytestmark = pytest.mark.timeout(600)

NARROW = dataclasses.replace(
    DynPTConfig.named("tiny"),
    trunk_widths=(8, 8, 8, 8),
    context_width=8,
    layers=1,
    levels=2,
    hidden=32,
)
SIZE, NUM_FRAMES, NUM_POINTS = (32, 48), 4, 20


def export(net: DynPT, folder) -> list[str]:
    checkpoint.save(folder / "a.safetensors", net, {})
    options = {"height": SIZE[0], "width": SIZE[1], "frames": NUM_FRAMES, "points": NUM_POINTS}
    words = [f"--{name}={value}" for name, value in options.items()]
    return ["export", str(folder / "a.safetensors"), "--out", str(folder / "onnx"), *words]


@pytest.fixture(scope="module")
def net() -> DynPT:
    torch.manual_seed(0)
    net = DynPT(NARROW).eval().requires_grad_(False)
    for head in (net.updater.to_step, net.updater.to_logits):
        torch.nn.init.normal_(head.weight, std=0.1)
    return net


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    assert main(export(net, place)) == 0
    return place / "onnx"


def example(num_frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    rgb = torch.rand(1, num_frames, 3, *SIZE, generator=generator) * 2 - 1
    place = torch.rand(1, NUM_POINTS, 2, generator=generator) * torch.tensor([47.0, 31.0])
    frame = torch.randint(num_frames, (1, NUM_POINTS, 1), generator=generator).float()
    return rgb, torch.cat([frame, place], dim=-1), torch.arange(NUM_POINTS)[None] < 15


def difference(first: TrackState, second: TrackState) -> float:
    names = [field.name for field in dataclasses.fields(TrackState)]
    return max(float((getattr(first, n) - getattr(second, n)).abs().max()) for n in names)


def test_an_export_tracks_as_the_network_does(net, folder) -> None:
    rgb, queries, valid = example(NUM_FRAMES)
    exported = OnnxDynPT.from_folder(folder)
    maps, ours = exported.encode(rgb), net.encode(rgb)
    found = exported.refine(
        maps, exported.support(maps, queries), queries, iterations=3, valid=valid
    )
    expected = net.refine(ours, net.support(ours, queries), queries, iterations=3, valid=valid)
    assert difference(found[-1], expected[-1]) < 1e-4
    assert (found[-1].uv - queries[:, None, :, 1:]).abs().max() > 1


def test_a_short_window_goes_on_with_its_newest_frame(net, folder) -> None:
    rgb, queries, valid = example(2)
    exported = OnnxDynPT.from_folder(folder)
    maps = exported.encode(rgb)
    found = exported.refine(maps, exported.support(maps, queries), queries, valid=valid)[-1]
    assert found.uv.shape == (1, 2, NUM_POINTS, 2)
    assert bool(found.uv.isfinite().all())


def test_the_tracker_runs_an_export(folder) -> None:
    def load(**changes: object):
        settings = TrackerConfig("dynpt", str(folder), "onnx", "cpu", long_side=48, max_points=20)
        settings = dataclasses.replace(settings, **changes)
        return load_tracker(dataclasses.replace(Config(), tracker=settings))

    assert load().name == "dynpt"
    with pytest.raises(ConfigError, match="was exported for 20"):
        load(max_points=64)


def test_faults_are_refused(net, folder, tmp_path, capsys) -> None:
    exported = OnnxDynPT.from_folder(folder)
    with pytest.raises(ModelError, match="exported for 32 x 48"):
        exported.encode(torch.zeros(1, 2, 3, 48, 48))
    rgb, queries, _ = example(NUM_FRAMES)
    maps = exported.encode(rgb)
    with pytest.raises(ModelError, match="export again"):
        few = queries[:, :3]
        exported.refine(maps, exported.support(maps, few), few)
    shutil.copytree(folder, tmp_path / "onnx")
    (tmp_path / "onnx" / "updater.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"updater\.onnx is missing or damaged"):
        OnnxDynPT.from_folder(tmp_path / "onnx")
    (tmp_path / "onnx" / DESCRIPTION).write_text(json.dumps({"format": "another"}))
    with pytest.raises(ModelError, match="is not of the format"):
        OnnxDynPT.from_folder(tmp_path / "onnx")
    assert main(export(net, tmp_path)) == 2
    assert "holds an export" in capsys.readouterr().err
    with pytest.raises(ModelError, match="needs the tokens"):
        needy = DynPT(dataclasses.replace(NARROW, context="tokens"))
        export_onnx(needy, tmp_path / "other", SIZE, NUM_FRAMES, NUM_POINTS)

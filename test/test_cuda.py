"""What only a CUDA device shows: networks that say what they say on the CPU, and little memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracle_network import OracleNetwork
from pomato_fixtures import TINY, relative_l2, rule_images, rule_net
from rendered_stream import rendered
from torch import Tensor

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame
from recon4d_ros.networks.dynpt import DynPT, DynPTConfig, TrackState
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap, PomatoNet
from recon4d_ros.networks.pomato.checkpoint import save_safetensors
from recon4d_ros.predictors.pomato import recorded
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.loading import load_predictor
from recon4d_ros.predictors.pomato.network import PointmapNetwork
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor
from recon4d_ros.predictors.pomato.recorded import RecordedNetwork
from recon4d_ros.synthetic import scenes

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: nothing of this can be run", allow_module_level=True)

CUDA = torch.device("cuda")
T, WIDTH = 4, 128
EXACT, BF16 = 1e-3, 0.1


@pytest.fixture(autouse=True)
def plain_device() -> Iterator[None]:
    """Float32 that is float32, and no search for algorithms; what bounds the memory is undone."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def net(length: int | None) -> PomatoNet:
    return rule_net(dataclasses.replace(TINY, temporal_length=length))


def outputs(length: int | None, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    network = net(length).to(device)
    images = rule_images((2, 4, 3, 48, 80), seed=3).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if length is None:
            out = vars(network.pair(images[0], images[1]))
        else:
            out = vars(network.window(images, "fast_recon"))
    return {name: value.float().cpu() for name, value in out.items()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, EXACT), (torch.bfloat16, BF16)])
@pytest.mark.parametrize("length", [None, T])
def test_pomato_is_the_same(length: int | None, dtype: torch.dtype, bound: float) -> None:
    there = outputs(length, CUDA, dtype)
    away = {
        name: relative_l2(there[name], value)
        for name, value in outputs(length, torch.device("cpu"), torch.float32).items()
    }
    print({name: f"{value:.2g}" for name, value in away.items()})
    assert max(away.values()) < bound


def config(**changes: object) -> Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    usual = {"pomato.long_side": WIDTH, "window.size": T, "window.final_lag": 3}
    return Config().replaced({**usual, "window.stride": 1, **named})


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("kind", ["temporal", "pairwise"])
def test_a_stream_in_bf16_says_what_one_on_the_cpu_says(
    kind: str, is_recorded: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"{kind}.safetensors"
    save_safetensors(net(T if kind == "temporal" else None), path)
    settings = {"pomato__model": str(path), "pomato__memory_mib": 2048}
    on_cuda = {"pomato__device": "cuda", "pomato__precision": "bf16"}
    there = load_predictor(config(**settings, **on_cuda, pomato__cuda_graphs=is_recorded))
    here = load_predictor(config(**settings, pomato__device="cpu"))
    described = there.description
    assert (described["device"], described["precision"]) == ("cuda", "bfloat16")
    draw = torch.Generator().manual_seed(1)
    for index in range(T + 2):
        rgb = torch.randint(0, 256, (96, 128, 3), generator=draw, dtype=torch.uint8)
        found, wanted = (each.track(Frame(index, 10**7 * index, rgb)) for each in (there, here))
        assert found.depth.device.type == "cpu" and found.depth.dtype == torch.float32
        if index == 0:
            known = found.depth.isfinite() & wanted.depth.isfinite()
            assert known.float().mean() > 0.1
            assert relative_l2(found.depth[known], wanted.depth[known]) < BF16
        for ours, theirs in zip(found.matchings, wanted.matchings, strict=True):
            assert relative_l2(ours.confidence, theirs.confidence) < BF16


@pytest.mark.parametrize("length", [None, T])
@torch.no_grad()
def test_a_recorded_network_says_what_it_says_itself(
    length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = net(length).to(CUDA)
    twin = RecordedNetwork(network)
    images = rule_images((6, 3, 48, 80), seed=5).to(CUDA)
    pairs = 2 if length is None else length
    for order in (images, images.flip(0)):
        found, wanted = (run(each, order, pairs) for each in (twin, network))
        assert max(map(relative_l2, found, wanted)) < EXACT
    # What a call gave is not what the next one writes into.
    first = twin.encode(images[:1])
    kept = first.tokens.clone()
    assert not torch.equal(twin.encode(images[1:2]).tokens, kept)
    assert torch.equal(first.tokens, kept)
    # Fewer recordings than calls: the oldest give way.
    monkeypatch.setattr(recorded, "_MOST_RECORDINGS", 2)
    for count in (1, 2, 3, 1):
        tokens = twin.encode(images[:count]).tokens
        assert relative_l2(tokens, network.encode(images[:count]).tokens) < EXACT


def run(network: PointmapNetwork, images: Tensor, pairs: int) -> list[Tensor]:
    """What a stream asks of a network: frames one by one, their pairs, a few heads."""
    features = [network.encode(image[None]) for image in images]
    tokens1, tokens2 = network.decode(
        Features.cat(features[:pairs]), Features.cat(features[-pairs:])
    )
    places = None if network.temporal_length is None else [pairs - 1]
    heads = [network.head(1, tokens1), network.head(2, tokens2, places), network.head(3, tokens2)]
    return [part for maps in heads for part in maps]


class Elsewhere:
    """A network that knows the truth, behind a device."""

    def __init__(self, truth: OracleNetwork, device: torch.device) -> None:
        self._truth, self._device, self.temporal_length = truth, device, truth.temporal_length

    def encode(self, images: Tensor) -> Features:
        assert images.device.type == self._device.type
        return self._put(self._truth.encode(images.cpu()))

    def decode(self, first: Features, second: Features) -> tuple[HookTokens, HookTokens]:
        assert first.tokens.device.type == second.tokens.device.type == self._device.type
        return self._truth.decode(first, second)

    def head(self, number: int, tokens: HookTokens, *others: object) -> Pointmap:
        found = self._truth.head(number, tokens, *others)
        return Pointmap(*(each.to(self._device) for each in found))

    def _put(self, features: Features) -> Features:
        return Features(features.tokens.to(self._device), features.grid)


def test_poses_of_a_stream_do_not_depend_on_the_device() -> None:
    def predictor(device: torch.device, dtype: torch.dtype) -> PomatoPredictor:
        truth = OracleNetwork(scenes.named("demo", 8, WIDTH), T)
        return PomatoPredictor(config(), Engine(Elsewhere(truth, device), device, dtype))

    there = predictor(CUDA, torch.bfloat16)
    here = predictor(torch.device("cpu"), torch.float32)
    for index in range(8):
        frame = rendered("demo", index, WIDTH, 8).frame
        found, wanted = there.track(frame), here.track(frame)
        torch.testing.assert_close(found.T_key_cam, wanted.T_key_cam)
        torch.testing.assert_close(found.depth, wanted.depth, equal_nan=True)
        assert found.is_dense


def test_lack_of_memory_is_survived_and_said() -> None:
    pairs, network = 64, net(None).to(CUDA)
    engine = Engine(network, CUDA, batch=pairs)
    images = rule_images((1, 3, 128, 128), seed=4).to(CUDA)
    with torch.no_grad():
        tokens = network.decode(*[network.encode(images)[[0] * pairs]] * 2)[1]
    peaks = []
    for batch in (1, 1, pairs):  # the first run makes the libraries' own workspaces
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            wanted = network.head(2, tokens, None, batch).points.cpu()
        peaks.append((torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()))
    least, most = peaks[1][0], peaks[2][1]
    print(f"reserved with a batch of 1: {least >> 20} MiB, allocated with {pairs}: {most >> 20}")
    assert least < 0.9 * most
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total)
    found = engine.head(2, tokens).points
    assert relative_l2(found, wanted) < EXACT
    described = PomatoPredictor(config(), engine).description
    assert int(described["out_of_memory"]) >= 1 and int(described["batch"]) < pairs


@pytest.mark.parametrize("size", ["tiny", "lean"])
@torch.no_grad()
def test_dynpt_is_the_same(size: str) -> None:
    torch.manual_seed(0)
    network = DynPT(DynPTConfig.named(size)).eval()
    for head in (network.updater.to_step, network.updater.to_logits):
        torch.nn.init.normal_(head.weight, std=0.05)
    images = torch.rand(2, 6, 3, 64, 80) * 2 - 1
    queries = torch.rand(2, 13, 3) * torch.tensor([5.0, 79.0, 63.0])
    queries[..., 0].round_()
    standing = TrackState.standing(queries[..., 1:], 6)
    here = network(images, queries, initial=standing)[-1]
    initial = TrackState(*(value.to(CUDA) for value in vars(standing).values()))
    there = network.to(CUDA)(images.to(CUDA), queries.to(CUDA), initial=initial)[-1]
    away = (there.uv.cpu() - here.uv).abs().max(), (there.logits.cpu() - here.logits).abs().max()
    print(f"moved {float((here.uv - standing.uv).abs().max()):.3g} px; differs by", away)
    assert (here.uv - standing.uv).abs().max() > 0.1
    assert max(away) < 0.02
    with torch.autocast("cuda", torch.bfloat16):
        assert network(images.to(CUDA), queries.to(CUDA), initial=initial)[-1].uv.isfinite().all()

"""`recon4d train` from a file of parameters to weights, in two steps of tiny networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from command_line import error_line, recon4d
from training_clips import SlidingClips
from training_files import WIDTH, Plates, write_point_odyssey, write_tartanair

from recon4d_ros.config import load_sections
from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.networks.dynpt.checkpoint import load, read_facts, save
from recon4d_ros.networks.files import sha256_of
from recon4d_ros.networks.pomato import PomatoNet, save_safetensors
from recon4d_ros.training import dynpt_task
from recon4d_ros.training.config import (
    KINDS,
    DynPTTraining,
    PomatoTraining,
    TrainingConfig,
    load_training,
)
from recon4d_ros.training.dynpt_task import DynPTTask
from recon4d_ros.training.pomato_task import sizes_of

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "run": {
        "name": "tiny",
        "steps": 2,
        "minutes": 0.0,
        "batch": 1,
        "log_every": 1,
        "device": "cpu",
        "checkpoint_minutes": 100.0,
    },
    "clips": {
        "num_frames": 4,
        "early_frames": 4,
        "height": 32,
        "width": 48,
        "num_tracks": 8,
        "num_textures": 2,
        "validation_batches": 1,
    },
}
TRACKER = {"size": "tiny", "iterations": 2, "window": 3, "unrolled_share": 1.0}
NETWORK = {
    "encoder_width": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "head_width": 32,
}


def config_file(folder: Path, **sections: object) -> Path:
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(SHORT | sections))
    return path


def test_the_tracker_from_a_file_to_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = config_file(tmp_path, tracker=TRACKER), tmp_path / "out"
    assert recon4d("train", "dynpt", "--config", config, "--out", out) == 0
    assert "2 steps" in capsys.readouterr().out
    network = load(out / "tiny.safetensors")
    assert network.config.frames == 4 and network.config.iterations == 2
    assert "2 of 1 clips" in read_facts(out / "tiny.safetensors")["steps"]
    card = (out / "tiny.md").read_text()
    assert "2 of them, each seen once" in card
    assert "900001" in card and "mobility_accuracy" in card and "## Limits" in card
    assert {"checkpoint.pt", "config.yaml", "train.csv", "validation.csv", "curves.png"} <= {
        path.name for path in out.iterdir()
    }
    assert recon4d("train", "dynpt", "--config", config, "--out", out) == 2
    assert "add --resume" in error_line(capsys)
    words = ("--config", config, "--out", out, "--resume", "--set", "tracker.iterations=3")
    assert recon4d("train", "dynpt", *words) == 2
    assert "tracker.iterations=3 (was 2)" in error_line(capsys)


def test_the_lean_tracker_learns_from_clips_it_remembers(tmp_path: Path) -> None:
    clips = SHORT["clips"] | {"remembered": 1}
    tracker = TRACKER | {"size": "lean", "iterations": 1}
    config = config_file(tmp_path, clips=clips, tracker=tracker)
    assert recon4d("train", "dynpt", "--config", config, "--out", tmp_path / "out") == 0
    network = load(tmp_path / "out" / "tiny.safetensors")
    assert network.config.needs_flow
    card = (tmp_path / "out" / "tiny.md").read_text()
    assert "1 of them, each seen 2.0 times on average: mirrored" in card
    images, queries = torch.zeros(1, 4, 3, 32, 48), torch.zeros(1, 2, 3)
    with pytest.raises(ModelError, match="starts from tracks by chained flow"):
        network(images, queries)


def test_the_tracker_goes_on_from_weights(tmp_path: Path) -> None:
    first = DynPTTask(tracker_config("run.seed=7"), CPU)
    start = tmp_path / "first.safetensors"
    save(start, first.network, {}, torch.float32)
    config = config_file(
        tmp_path, tracker=TRACKER | {"start": str(start)}, optimiser={"peak_rate": 1e-8}
    )
    assert recon4d("train", "dynpt", "--config", config, "--out", tmp_path / "out") == 0
    after = load(tmp_path / "out" / "tiny.safetensors").state_dict()
    for name, before in first.network.state_dict().items():
        torch.testing.assert_close(after[name], before, atol=1e-3, rtol=1e-3)  # as fp16
    card = (tmp_path / "out" / "tiny.md").read_text()
    assert f"weights of first.safetensors, SHA-256 {sha256_of(start)}" in card


def test_only_a_temporal_stage_starts_from_pairwise_weights() -> None:
    for stage, start in (("pairwise", ""), ("temporal", "pairs.safetensors")):
        same_length = ("clips.num_frames=8", "clips.early_frames=8")
        words = (f"network.stage={stage}", "network.start=pairs.safetensors", *same_length)
        assert load_sections(PomatoTraining(), None, words).start == start


def test_weights_of_another_size_are_no_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lean = DynPTTask(tracker_config("tracker.size=lean"), CPU)
    save(tmp_path / "lean.safetensors", lean.network, {}, torch.float32)
    tracker = TRACKER | {"start": str(tmp_path / "lean.safetensors")}
    config = config_file(tmp_path, tracker=tracker)
    assert recon4d("train", "dynpt", "--config", config, "--out", tmp_path / "out") == 2
    assert "set tracker.size to its size" in error_line(capsys)


def test_the_tracker_learns_from_data_sets_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plates = Plates(60.0)
    write_point_odyssey(tmp_path / "odyssey" / "walk", plates)
    write_tartanair(tmp_path / "air" / "P000", Plates(WIDTH / 2, is_still=True, pace=3.0))
    folders = f"point_odyssey={tmp_path / 'odyssey'}, tartanair={tmp_path / 'air'}"
    clips = SHORT["clips"] | {"folders": folders, "num_tracks": 4}
    config = config_file(tmp_path, clips=clips, tracker=TRACKER)
    assert recon4d("train", "dynpt", "--config", config, "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "tiny.md").read_text()
    assert "point_odyssey, tartanair clips of 4 frames, 48 x 32 px; 2 of them" in card
    capsys.readouterr()
    for bad, said in (
        ("movi_f", "expected NAME=DIR"),
        (f"carla={tmp_path}", "unknown ['carla']"),
        (f"tartanair={tmp_path / 'nowhere'}", "nowhere"),
    ):
        words = ("--config", config, "--out", tmp_path / "b", "--set", f"clips.folders={bad}")
        assert recon4d("train", "dynpt", *words) == 2
        assert said in error_line(capsys)
    pomato = config_file(tmp_path, clips=clips, network=NETWORK)
    assert recon4d("train", "pomato", "--config", pomato, "--out", tmp_path / "b") == 2
    assert "cannot train pointmaps" in error_line(capsys)


def test_pointmaps_pairwise_then_temporal(tmp_path: Path) -> None:
    pairwise = config_file(tmp_path, network=NETWORK)
    assert recon4d("train", "pomato", "--config", pairwise, "--out", tmp_path / "pairs") == 0
    start = tmp_path / "pairs" / "tiny.safetensors"
    network = NETWORK | {"stage": "temporal", "start": str(start)}
    temporal = config_file(tmp_path, network=network)
    assert recon4d("train", "pomato", "--config", temporal, "--out", tmp_path / "windows") == 0
    before = PomatoNet.from_file(start).state_dict()
    trained = PomatoNet.from_file(tmp_path / "windows" / "tiny.safetensors")
    assert trained.temporal_length == 4
    after = trained.state_dict()
    frozen = ("enc_", "dec", "patch_embed", "mask_token")
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(frozen))
    heads = [n for n in before if n.startswith("downstream_head") and before[n].ndim > 1]
    assert any(not torch.equal(before[n], after[n]) for n in heads)


BAD = {
    "unknown key": (("run.stepz=3",), "the nearest is 'run.steps'"),
    "out of range": (("run.batch=0",), "run.batch=0 is refused; expected 1 to 4096"),
    "no end": (("run.steps=0",), "would train for ever"),
    "seen clips": (("clips.validation_seed=0",), "held-out clips would be those of the training"),
    "odd size": (("clips.height=40",), "expected a multiple of 16"),
    "early": (("clips.early_frames=6",), "more than clips.num_frames=4"),
    "no encoder": (("tracker.size=full",), "set tracker.encoder"),
    "no such encoder": (("tracker.encoder=nowhere.pth",), "does not exist"),
    "no such start": (("tracker.start=nowhere.safetensors",), "does not exist"),
    "no such device": (("run.device=tpu",), "expected auto, cpu, cuda"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, message = BAD[case]
    words = [word for change in changes for word in ("--set", change)]
    config = config_file(tmp_path, tracker=TRACKER)
    assert recon4d("train", "dynpt", "--config", config, "--out", tmp_path / "out", *words) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_temporal_network_needs_its_pairwise_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = PomatoNet(sizes_of(load_sections(PomatoTraining()).network))
    save_safetensors(net, tmp_path / "other.safetensors")
    for start, message in (
        ("", "set network.start"),
        (str(tmp_path / "other.safetensors"), "not of the sizes in network"),
    ):
        config = config_file(tmp_path, network=NETWORK | {"stage": "temporal", "start": start})
        assert recon4d("train", "pomato", "--config", config, "--out", tmp_path / "out") == 2
        assert message in error_line(capsys)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "train").glob("*.yaml")), ids=str)
def test_shipped_configurations_are_sound(path: Path) -> None:
    config = load_training(path.stem.partition("_")[0], path)
    assert config.run.minutes <= (120.0 if config.run.device == "cpu" else 25.0)


def test_kinds_declare_themselves() -> None:
    for kind in KINDS.values():
        assert all(parameter.doc for parameter in kind.parameters())
    assert TrainingConfig.LISTED_BY == "recon4d train --help"


def tracker_config(*changes: str) -> DynPTTraining:
    short = [f"{s}.{k}={v}" for s, keys in SHORT.items() for k, v in keys.items()]
    short += [f"tracker.{key}={value}" for key, value in TRACKER.items()]
    return load_sections(DynPTTraining(), None, (*short, *changes))


def test_a_window_is_cut_from_a_clip() -> None:
    clips = SlidingClips(num_frames=5).clips(0, 2)
    moves = torch.zeros_like(clips.moves_in_frame)
    moves[0, 1, 2] = moves[0, 3, 4] = True
    queries = clips.queries.clone()
    queries[..., 0] = 2.0
    clips = dataclasses.replace(clips, moves_in_frame=moves, queries=queries)
    cut = dynpt_task.cut(clips, 2, 3)
    assert torch.equal(cut.tracks, clips.tracks[:, 2:]) and cut.rgb.shape[1] == 3
    assert torch.equal(cut.queries[..., 1:], queries[..., 1:])
    assert bool((cut.queries[..., 0] == 0).all())
    assert cut.moves_in_clip.nonzero().tolist() == [[0, 4]]


def test_the_second_window_begins_where_the_first_ended() -> None:
    uv = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 2)
    state = dynpt_task.shifted(TrackState(uv, uv[..., 0], uv[..., 0] + 1, uv[..., 0] + 2), 2)
    assert state.uv[0, :, 0, 0].tolist() == [2, 3, 3, 3]
    assert state.mobility_logit[0, :, 0].tolist() == [4, 5, 5, 5]


def test_both_windows_of_an_unrolled_step_teach() -> None:
    config = tracker_config()
    task = DynPTTask(config, CPU)
    # A point that is asked for in the last frame can only be learned from the second window.
    clips = SlidingClips(num_frames=4, size=(32, 48)).clips(0, 1)
    queries = clips.queries.clone()
    queries[..., 0] = 3.0
    terms = task.losses(dataclasses.replace(clips, queries=queries))
    assert float(terms["visibility"].detach()) == pytest.approx(0.5 * 0.693, abs=0.02)
    sum(terms.values()).backward()
    assert all(
        part.grad is None or part.grad.isfinite().all() for part in task.network.parameters()
    )


def test_the_frozen_encoder_gives_tokens_and_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(1)
    small = load_sections(
        PomatoTraining(), None, tuple(f"network.{k}={v}" for k, v in NETWORK.items())
    )
    net = PomatoNet(sizes_of(small.network))
    save_safetensors(net, tmp_path / "net.safetensors")
    task = DynPTTask(tracker_config(f"tracker.encoder={tmp_path / 'net.safetensors'}"), CPU)
    assert task.network.config.token_width == 32
    clips = SlidingClips(num_frames=4, size=(32, 48)).clips(0, 1)
    sum(task.losses(clips).values()).backward()
    assert not any(part.requires_grad for part in task._encoder.parameters())
    assert not any(name.startswith("_encoder") for name, _ in task.network.named_parameters())

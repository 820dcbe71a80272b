"""`recon4d run --offline`: from a recording to results that `recon4d eval` takes."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import error_line, recon4d
from oracle_network import OracleNetwork
from pomato_stream import model_file
from recordings import write_folder
from rendered_stream import rendered

from recon4d_ros.cli import run as run_command
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, PairPointmaps
from recon4d_ros.errors import AlignmentError
from recon4d_ros.pipeline.offline import OfflineReconstructor
from recon4d_ros.predictors.klt import KltTracker
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.pair_network import PomatoPairs
from recon4d_ros.storage.images import read_rgb
from recon4d_ros.storage.index import read_index
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.sequence_writer import SequenceSample, write_sequence
from recon4d_ros.storage.trajectory import read_trajectory
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.pairs import NoisyPairs

WIDTH, COUNT, STEP = 80, 8, 3
TINY = (
    *("--set", "predictor.name=pomato"),
    *("--set", "pomato.device=cpu"),
    *("--set", "pomato.long_side=80"),
)


class Oracle:
    """What a good network would say of the demo scene; calls back before each pair."""

    def __init__(self, on_pair=lambda _: None) -> None:
        self._pairs = NoisyPairs(scenes.named("demo", 60, WIDTH), frame_of=lambda i: STEP * i)
        self._on_pair = on_pair

    def pair(self, first: Frame, second: Frame) -> PairPointmaps:
        self._on_pair((first.index, second.index))
        return self._pairs.pair(first.index, second.index)

    def reset(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, network: Oracle) -> None:
    def build(config: Config) -> OfflineReconstructor:
        return OfflineReconstructor(config, network, KltTracker())

    monkeypatch.setattr(run_command, "build_offline_reconstructor", build)


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = [rendered("demo", STEP * index, WIDTH) for index in range(COUNT)]
    samples = [
        SequenceSample(f.frame.stamp_ns, f.frame.rgb, f.depth, f.dynamic_mask, f.T_world_cam)
        for f in found
    ]
    folder = tmp_path_factory.mktemp("demo") / "s"
    write_sequence(folder, CameraModel(scenes.named("demo", 60, WIDTH).intrinsics), samples)
    return folder


def test_a_run_is_written_and_can_be_evaluated(sequence, tmp_path, monkeypatch, capsys):
    install(monkeypatch, Oracle())
    out = tmp_path / "out"
    assert recon4d("run", sequence, "--out", out, "--offline", "--set", "offline.window=6") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == {"in": COUNT, "posed": COUNT, "dropped": 0, "lost": 0}
    assert report["complete"] is True and report["notes"] == []
    assert set(report["stages_ms"]) == {"predict", "track", "align", "refine", "map"}
    stamps = [entry.stamp_ns for entry in read_index(out / "masks.txt")]
    assert stamps == read_trajectory(out / "trajectory.tum").stamps_ns.tolist()
    assert stamps == [entry.stamp_ns for entry in read_index(out / "depth.txt")]
    assert read_trajectory(out / "trajectory_provisional.tum").stamps_ns.tolist() == []
    assert (out / "summary.png").is_file() and (out / "map.ply").is_file()
    capsys.readouterr()
    words = ("--json", tmp_path / "figures.json", "--slice", tmp_path / "slice.png")
    assert recon4d("eval", out, sequence, *words) == 0
    picture = read_rgb(tmp_path / "slice.png")
    # Twice the height of the depth images, and at least as wide as it is said to be.
    assert picture.shape[1] >= 600 and picture.shape[1] % COUNT == 0
    assert picture[: len(picture) // 2].float().std() > 5
    assert picture[len(picture) // 2 :].float().std() > 5
    assert "provisional poses" not in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["provisional"] is None
    assert figures["final"]["ate"]["rmse"] < 0.02 * figures["final"]["spread"] * COUNT
    assert figures["masks"]["iou"] > 0.8
    assert figures["depth"]["all"]["abs_rel"] < 0.01


def test_notes_on_the_result_are_printed_and_reported(sequence, tmp_path, monkeypatch, capsys):
    install(monkeypatch, Oracle())
    words = ("--offline", "--max-frames", 4, "--set", "offline.min_static_px=10000")
    assert recon4d("run", sequence, "--out", tmp_path / "out", *words) == 0
    assert "note      frames 0 to 3: frame 0 has too few static" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["notes"]) == 4


def test_ctrl_c_aligns_what_came_till_then(sequence, tmp_path, monkeypatch):
    def interrupt(pair: tuple[int, int]) -> None:
        if pair == (4, 3):
            os.kill(os.getpid(), signal.SIGINT)

    install(monkeypatch, Oracle(interrupt))
    out = tmp_path / "out"
    assert recon4d("run", sequence, "--out", out, "--offline") == 130
    report = json.loads((out / "report.json").read_text())
    assert report["stopped_by"] == "interrupt"
    assert report["frames"]["posed"] == report["frames"]["in"] == 5
    assert len(read_trajectory(out / "trajectory.tum").stamps_ns) == 5


def test_a_clip_that_cannot_be_aligned_still_leaves_a_report(
    sequence, tmp_path, monkeypatch, capsys
):
    install(monkeypatch, Oracle())

    def fail(*_: object) -> None:
        raise AlignmentError("the pairs contradict each other; take others")

    monkeypatch.setattr("recon4d_ros.alignment.pair_store.align_pairs", fail)
    out = tmp_path / "out"
    assert recon4d("run", sequence, "--out", out, "--offline") == 2
    line = error_line(capsys)
    assert "contradict" in line and str(out) in line
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] is False and "contradict" in report["stopped_by"]
    assert report["frames"]["posed"] == 0


def test_the_tiny_network_goes_all_the_way(tmp_path, capsys):
    """Random weights: whatever it says, poses are finite and every frame has its files."""
    folder, out = write_folder(tmp_path / "s", 4), tmp_path / "out"
    model = model_file("pairwise", tmp_path)
    words = ("--offline", *TINY, "--set", f"pomato.model={model}")
    assert recon4d("run", folder.path, "--out", out, *words) == 0
    trajectory = read_trajectory(out / "trajectory.tum")
    assert len(trajectory.stamps_ns) == len(read_index(out / "masks.txt")) == 4
    assert bool(trajectory.T_world_cam.isfinite().all())


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    folder, out = write_folder(tmp_path / "s", 2), tmp_path / "out"
    assert recon4d("run", folder.path, "--out", out, "--offline", *words) == 2
    assert not out.exists()
    return error_line(capsys)


def test_the_classical_predictor_is_refused(tmp_path, capsys):
    line = refused(tmp_path, capsys)
    assert "predictor.name=classical" in line and "set predictor.name=pomato" in line


def test_a_temporal_model_is_refused(tmp_path, capsys):
    model = model_file("temporal", tmp_path)
    line = refused(tmp_path, capsys, *TINY, "--set", f"pomato.model={model}")
    assert "temporal model of 4 frames" in line and "pairwise checkpoint" in line


def test_a_missing_model_is_refused(tmp_path, capsys):
    assert "pomato.model is empty" in refused(tmp_path, capsys, *TINY)


def test_each_frame_is_encoded_once_and_old_ones_are_let_go():
    network = OracleNetwork(scenes.named("demo", 4, 64), None, along=0.0, across_px=0.0)
    pairs = PomatoPairs(Engine(network), 64, num_kept=2)
    frames = [rendered("demo", index, 64, 4).frame for index in range(3)]
    for first, second in ((0, 1), (1, 0), (1, 2), (2, 1)):
        found = pairs.pair(frames[first], frames[second])
        assert (found.first, found.second) == (first, second)
    assert network.num_encoded == 3
    pairs.pair(frames[0], frames[2])
    assert network.num_encoded == 4
    own, other = found.points_1, pairs.pair(frames[2], frames[2]).points_2
    assert float((own / other).std()) < 1e-5  # the same pixels, each call in its own unit
    assert torch.equal(found.confidence_matching, torch.full_like(found.confidence_1, 5.0))

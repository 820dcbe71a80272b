"""`recon4d run` with a fake core: every file of a run, and every way in which it can end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from command_line import FakeReconstructor, error_line, recon4d
from recordings import (
    CAMERA,
    HEIGHT,
    PERIOD_NS,
    START_NS,
    WIDTH,
    image_message,
    picture,
    samples,
    write_folder,
    write_messages,
)

from recon4d_ros import __version__
from recon4d_ros.cli import run as run_command
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Reconstruction, TrackingState
from recon4d_ros.errors import FrameError
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.images import read_depth, read_mask
from recon4d_ros.storage.index import read_index
from recon4d_ros.storage.ply import read_ply
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.trajectory import read_trajectory


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Frame], None]], None]:
    """Put the fake in; call the fixture to have something happen at each frame."""

    def install(on_frame: Callable[[Frame], None] = lambda _: None) -> None:
        monkeypatch.setattr(
            run_command, "build_reconstructor", lambda config: FakeReconstructor(on_frame)
        )

    install()
    return install


def test_run_writes_everything(
    tmp_path: Path, core: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_folder(tmp_path / "s", 6), tmp_path / "out"
    assert recon4d("run", folder.path, "--out", out, "--set", "window.stride=2") == 0
    stamps = [START_NS + number * PERIOD_NS for number in range(6)]
    posed = [stamp for number, stamp in enumerate(stamps) if number != 1]
    for name in ("trajectory.tum", "trajectory_provisional.tum"):
        assert read_trajectory(out / name).stamps_ns.tolist() == posed
    assert {path.name for path in (out / "masks").iterdir()} == {f"{s}.png" for s in stamps}
    assert [entry.stamp_ns for entry in read_index(out / "depth.txt")] == stamps
    assert len(read_ply(out / "map.ply").points) == 500
    summary = cv2.imread(str(out / "summary.png"))
    assert summary.shape[0] > 800 and summary.std() > 20
    assert yaml.safe_load((out / "config.yaml").read_text())["window"]["stride"] == 2
    printed = capsys.readouterr()
    assert "6 in, 5 posed, 1 lost, 0 dropped" in printed.out
    assert "initialised: the map begins" in printed.out


def test_depth_and_masks_are_in_the_pixels_of_the_input(tmp_path: Path, core: object) -> None:
    folder, out = write_folder(tmp_path / "s", 3), tmp_path / "out"
    recon4d("run", folder.path, "--out", out)
    description = json.loads((out / "intrinsics.json").read_text())
    sample = samples(3)[2]
    assert sample.depth is not None and sample.mask is not None
    stamp_ns = sample.stamp_ns
    mask = read_mask(out / "masks" / f"{stamp_ns}.png")
    assert mask.shape == (HEIGHT, WIDTH)
    assert int((mask ^ sample.mask).sum()) <= 60
    depth = read_depth(out / "depth" / f"{stamp_ns}.png", description["depth_scale"])
    torch.testing.assert_close(depth, sample.depth, equal_nan=True, rtol=1e-3, atol=0)
    assert (description["fx"], description["intrinsics_source"]) == (60.0, "given")
    assert description["scale_known"] is False


def test_the_report_holds_what_was_promised(tmp_path: Path, core: object) -> None:
    recon4d("run", write_folder(tmp_path / "s", 5).path, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["complete"] is True
    assert report["frames"] == {"in": 5, "posed": 4, "dropped": 0, "lost": 1}
    assert report["states"] == {"tracking": 4, "lost": 1}
    assert report["submaps"] == 1
    assert report["rate_hz"] > 0
    for latency in (report["latency_ms"], report["stages_ms"]["window"]):
        assert latency["p50"] <= latency["p95"] <= latency["p99"]
    assert report["stages_ms"]["track"]["total"] == pytest.approx(50.0)
    assert report["stages_ms"]["window"]["p95"] == pytest.approx(20.0)
    assert 50 < report["peak_rss_mib"] < 50_000
    assert report["intrinsics"]["source"] == "given"
    assert report["intrinsics"]["fx"] == pytest.approx(60.0)
    assert report["config"] == Config().nested()
    assert report["versions"]["recon4d_ros"] == __version__
    assert report["events"][0]["kind"] == "initialised"


def test_an_estimated_camera_is_reported_for_the_input_size(tmp_path: Path, core: object) -> None:
    folder = write_folder(tmp_path / "s", 3, camera=None)
    recon4d("run", folder.path, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["intrinsics"]["source"] == "estimated"
    for key in ("fx", "fy", "cx", "cy", "width", "height"):
        assert report["intrinsics"][key] == pytest.approx(getattr(CAMERA.intrinsics, key))


@pytest.mark.parametrize("camera", [None, CAMERA])
def test_a_run_that_never_knew_depth_says_what_it_lacked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    camera: CameraModel | None,
) -> None:
    class Unsure(FakeReconstructor):
        def _result(self, frame: Frame, *, is_final: bool) -> Reconstruction:
            result = super()._result(frame, is_final=is_final)
            return replace(result, state=TrackingState.INITIALISING)

    monkeypatch.setattr(run_command, "build_reconstructor", lambda config: Unsure())
    folder = write_folder(tmp_path / "s", 3, camera=camera)
    recon4d("run", folder.path, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "depth     never known" in said
    assert ("intrinsics" in said) == (camera is None)


def test_max_frames(tmp_path: Path, core: object) -> None:
    folder = write_folder(tmp_path / "s", 6)
    recon4d("run", folder.path, "--out", tmp_path / "out", "--max-frames", 3)
    assert len(read_index(tmp_path / "out" / "masks.txt")) == 3


def test_an_earlier_result_is_never_written_over(
    tmp_path: Path, core: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_folder(tmp_path / "s", 6), tmp_path / "out"
    recon4d("run", folder.path, "--out", out)
    (out / "notes.md").write_text("mine")
    (out / "masks" / "mine.png").write_text("mine")
    before = (out / "report.json").read_bytes()
    capsys.readouterr()
    assert recon4d("run", folder.path, "--out", out, "--max-frames", 3) == 2
    assert "--overwrite" in error_line(capsys)
    assert (out / "report.json").read_bytes() == before
    assert recon4d("run", folder.path, "--out", out, "--max-frames", 3, "--overwrite") == 0
    assert (out / "notes.md").read_text() == (out / "masks" / "mine.png").read_text() == "mine"
    assert len(list((out / "masks").iterdir())) == 4


def test_a_bad_source_leaves_the_earlier_result(tmp_path: Path, core: object) -> None:
    folder, out = write_folder(tmp_path / "s", 3), tmp_path / "out"
    recon4d("run", folder.path, "--out", out)
    before = (out / "report.json").read_bytes()
    assert recon4d("run", tmp_path / "none", "--out", out, "--overwrite") == 2
    assert (out / "report.json").read_bytes() == before


def test_an_unwritable_folder_stops_before_the_work(
    tmp_path: Path, core: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stepped: list[Frame] = []
    core(stepped.append)
    folder = write_folder(tmp_path / "s", 3)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert recon4d("run", folder.path, "--out", out) == 2
        assert str(out) in error_line(capsys)
    assert stepped == []


def broken_sequence(path: Path) -> Path:
    """Frame 2 has another size; the folder itself is complete."""
    folder = write_folder(path, 5).path
    cv2.imwrite(str(folder / "rgb" / "000002.png"), np.zeros((9, 9, 3), np.uint8))
    return folder


def test_a_bad_frame_ends_the_run_and_keeps_what_was_done(
    tmp_path: Path, core: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = broken_sequence(tmp_path / "s"), tmp_path / "out"
    assert recon4d("run", folder, "--out", out) == 2
    line = error_line(capsys)
    for words in ("9x9", "64x48", "--skip-bad-frames", str(out)):
        assert words in line
    assert read_trajectory(out / "trajectory.tum").stamps_ns.tolist() == [START_NS]
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] is False
    assert "9x9" in report["stopped_by"]


def test_bad_frames_can_be_skipped_and_counted(tmp_path: Path, core: object) -> None:
    folder, out = broken_sequence(tmp_path / "s"), tmp_path / "out"
    assert recon4d("run", folder, "--out", out, "--skip-bad-frames") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == {"in": 5, "posed": 3, "dropped": 1, "lost": 1}
    assert "9x9" in report["dropped_because"][0]


def refuse_third(frame: Frame) -> None:
    if frame.index == 3:
        raise FrameError("this frame cannot be used; expected another; leave it out")


def test_what_the_core_refuses_is_treated_alike(
    tmp_path: Path, core: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    core(refuse_third)
    folder = write_folder(tmp_path / "s", 5)
    assert recon4d("run", folder.path, "--out", tmp_path / "a") == 2
    assert "cannot be used" in error_line(capsys)
    assert recon4d("run", folder.path, "--out", tmp_path / "b", "--skip-bad-frames") == 0
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["frames"] == {"in": 5, "posed": 3, "dropped": 1, "lost": 1}


def test_ctrl_c_keeps_what_was_done(
    tmp_path: Path, core: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    core(lambda frame: os.kill(os.getpid(), signal.SIGINT) if frame.index == 2 else None)
    out = tmp_path / "out"
    assert recon4d("run", write_folder(tmp_path / "s", 6).path, "--out", out) == 130
    printed = capsys.readouterr().out
    assert "interrupt" in printed and str(out) in printed
    report = json.loads((out / "report.json").read_text())
    assert report["frames"]["in"] == 3
    assert report["stopped_by"] == "interrupt"
    assert len(read_trajectory(out / "trajectory.tum").stamps_ns) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_mistake_of_ours_shows_its_traceback(
    tmp_path: Path, core: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(frame: Frame) -> None:
        raise ZeroDivisionError("a bug")

    core(fail)
    assert recon4d("run", write_folder(tmp_path / "s", 2).path, "--out", tmp_path / "o") == 1
    assert "Traceback" in capsys.readouterr().err


def two_topics(path: Path) -> Path:
    image = image_message(picture().numpy(), "rgb8")
    return write_messages(path, [("/left", image), ("/right", image)])


BAD_INPUT = {
    "no source": (lambda p: p / "none", (), ("does not exist", "check the path")),
    "two topics": (two_topics, (), ("/left, /right", "--image-topic")),
    "unknown topic": (two_topics, ("--image-topic", "/up"), ("/up", "/left")),
    "unknown key": (None, ("--set", "window.strid=2"), ("window.strid", "window.stride")),
    "out of range": (None, ("--set", "window.size=1000"), ("window.size=1000", "64")),
    "wrong type": (None, ("--set", "window.size=many"), ("window.size", "expected int")),
    "no equals": (None, ("--set", "window.size"), ("key=value",)),
    "no config": (None, ("--config", "/none.yaml"), ("/none.yaml",)),
    "topic of a folder": (None, ("--image-topic", "/a"), ("no bag",)),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path, core: object, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    make_source, options, words = BAD_INPUT[case]
    source = make_source(tmp_path / "x") if make_source else write_folder(tmp_path / "s", 2).path
    assert recon4d("run", source, "--out", tmp_path / "out", *options) == 2
    line = error_line(capsys)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_the_run_folder_of_a_video(tmp_path: Path, core: object) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (WIDTH, HEIGHT)
    )
    for number in range(4):
        writer.write(np.ascontiguousarray(picture(number).numpy()[..., ::-1]))
    writer.release()
    assert recon4d("run", tmp_path / "v.avi", "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out" / "masks").iterdir()}
    assert names == {"0.png", "50000000.png", "100000000.png", "150000000.png"}


def test_a_written_sequence_is_one_we_can_run(tmp_path: Path, core: object) -> None:
    folder = write_folder(tmp_path / "s", 2)
    assert isinstance(folder, SequenceFolder)
    assert recon4d("run", folder.path, "--out", tmp_path / "out") == 0

"""The commands beside `run`: help, exit codes and one line per known error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import error_line, recon4d
from recordings import (
    write_folder,
)

from recon4d_ros.cli import doctor
from recon4d_ros.cli.main import COMMANDS


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        recon4d("--help")
    assert stop.value.code == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert command in overview
        with pytest.raises(SystemExit) as stop:
            recon4d(command, "--help")
        assert stop.value.code == 0
        assert len(capsys.readouterr().out) > 150


def test_help_of_run_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recon4d("run", "--help")
    text = capsys.readouterr().out
    for option in ("--out", "--config", "--set", "--image-topic", "--max-frames", "--overwrite"):
        assert option in text
    assert "examples:" in text


@pytest.mark.parametrize(
    "words", [[], ["runn"], ["run"], ["run", "x", "--out", "y", "--max-frames", "0"]]
)
def test_wrong_usage_is_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        recon4d(*words)
    assert stop.value.code == 2


def test_config_dump_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recon4d("config", "dump", "--set", "map.voxel_size=0.05") == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["map"]["voxel_size"] == 0.05
    (tmp_path / "c.yaml").write_text(text)
    assert recon4d("config", "dump", "--config", tmp_path / "c.yaml") == 0
    assert capsys.readouterr().out == text


def test_bag_writes_a_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "s", 3)
    options = ("--storage", "sqlite3", "--namespace", "/front")
    assert recon4d("bag", folder.path, tmp_path / "bag", *options) == 0
    assert "3 images on /front/image_raw" in capsys.readouterr().out
    assert (tmp_path / "bag" / "metadata.yaml").is_file()
    assert recon4d("bag", folder.path, tmp_path / "bag") == 2
    assert "exists" in error_line(capsys)
    assert (tmp_path / "bag" / "metadata.yaml").is_file()


def test_a_bag_that_cannot_be_completed_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "s", 3)
    image = folder.path / "rgb" / "000002.png"
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    image.write_bytes(bytes(content))
    assert recon4d("bag", folder.path, tmp_path / "bag") == 2
    assert "000002.png" in error_line(capsys)
    assert not (tmp_path / "bag").exists()


def test_doctor_looks_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    findings = list(doctor.examine())
    subjects = [finding.subject for finding in findings]
    for subject in ("Python", "PyTorch", "OpenCV", "ROS 2", "DDS profile", "GPU", "models"):
        assert subject in subjects
    for finding in findings:
        assert (finding.level is doctor.Level.OK) == (finding.advice == "")


def test_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nav_msgs.msg", None)
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/no/such/profile.xml")
    assert recon4d("doctor") == 2
    printed = capsys.readouterr()
    assert "nav_msgs.msg" in printed.out and "make setup" in printed.out
    assert "/no/such/profile.xml" in printed.out
    assert "ROS 2" in printed.err.splitlines()[-1]


def test_play_without_ros_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "recon4d_ros.ros.player", None)
    assert recon4d("play", "bag", "--rate", "2") == 2
    assert "source your ROS 2" in error_line(capsys)


def test_a_closed_pipe_is_no_error() -> None:
    command = (
        f"{sys.executable} -m recon4d_ros.cli.main config dump | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")

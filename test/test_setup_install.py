"""`make setup`: what it refuses, and when it does nothing."""

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def install(tmp_path):
    """The script, as if in a repository of its own."""
    for name in ("requirements", "interfaces"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("setup.py", "setup.cfg", "package.xml"):
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / "requirements" / "install.py"
    spec = importlib.util.spec_from_file_location("install_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / ".venv").mkdir()
    return module


def test_nothing_is_done_when_nothing_changed(install, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "install", lambda *args: calls.append(args))
    monkeypatch.setattr(install, "missing_prerequisites", list)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert [install.main(), install.main()] == [0, 0]
    assert calls == [(False, "kilted")]
    with (install.ROOT / "requirements" / "run.txt").open("a") as file:
        file.write("another==1\n")
    assert install.main() == 0
    assert len(calls) == 2
    monkeypatch.setattr(sys, "argv", ["install.py", "--gpu", "--ros", "jazzy"])
    assert install.main() == 0
    assert calls[2] == (True, "jazzy")


def test_what_building_leaves_behind_does_not_count(install):
    before = install.fingerprint(False, "kilted")
    for left in ("build/lib/a.py", "src/recon4d_tf2_msgs.egg-info/SOURCES.txt"):
        path = install.ROOT / "interfaces" / "tf2_msgs" / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert install.fingerprint(False, "kilted") == before


@pytest.mark.parametrize(
    ("target", "name", "value", "message"),
    [
        (shutil, "which", lambda _: None, "build-essential"),
        (sys, "version_info", (3, 9, 1), "3.10 to 3.14"),
        (platform, "machine", lambda: "aarch64", "x86_64"),
        (importlib.util, "find_spec", lambda _: None, "python3-pip"),
    ],
    ids=["compiler", "python", "machine", "pip"],
)
def test_a_missing_prerequisite_is_named(
    install, monkeypatch, capsys, target, name, value, message
):
    monkeypatch.setattr(target, name, value)
    problems = install.missing_prerequisites()
    monkeypatch.undo()
    assert any(message in problem for problem in problems)


def test_a_failed_step_leaves_no_stamp(install, monkeypatch, capsys):
    def fail(*_):
        install.call("false")

    monkeypatch.setattr(install, "install", fail)
    monkeypatch.setattr(install, "missing_prerequisites", list)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    assert "'false' failed" in capsys.readouterr().err
    assert not install.STAMP.exists()


def test_pins_serve_every_supported_python():
    """Each name is pinned exactly, once for every Python version."""
    from packaging.requirements import Requirement

    for name in ("run", "dev", "ros-kilted", "ros-jazzy", "cpu", "gpu"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
        for version in ("3.10", "3.11", "3.12", "3.13", "3.14"):
            environment = {"python_version": version}
            names = [r.name for r in wanted if not r.marker or r.marker.evaluate(environment)]
            assert sorted(names) == sorted({r.name for r in wanted}), (name, version)
        assert all(str(r.specifier).startswith("==") for r in wanted)

"""`recon4d doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from recon4d_ros.errors import MissingPrerequisiteError
from recon4d_ros.installation import package_file
from recon4d_ros.storage.weights import weights_folder

_MIN_PYTHON = (3, 10)
_MIN_CORES = 2
# Fast DDS's large profile takes 64 MB per publishing process.
_MIN_SHM_MIB = 256
_MIN_MEMORY_MIB = 2048
_ROS_MODULES = (
    "rclpy",
    "sensor_msgs.msg",
    "geometry_msgs.msg",
    "nav_msgs.msg",
    "diagnostic_msgs.msg",
    "std_srvs.srv",
    "tf2_msgs.msg",
)


class Level(Enum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: FAIL stops the main job, WARN costs quality or speed.
        subject: what was looked at.
        found: what was found.
        advice: what to do; empty when all is well.
    """

    level: Level
    subject: str
    found: str
    advice: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine and say what to do",
        description=(
            "Checks Python, PyTorch, OpenCV, ROS 2, the transport of images, shared memory, GPU, "
            "models and processor. Exit code 2 if something that is needed is missing."
        ),
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the findings.

    Raises:
        MissingPrerequisiteError: a check failed.
    """
    findings = list(examine())
    for finding in findings:
        print(f"{finding.level.value:5s} {finding.subject:14s} {finding.found}")
        if finding.advice:
            print(f"{'':21s}{finding.advice}")
    failed = [finding.subject for finding in findings if finding.level is Level.FAIL]
    if failed:
        raise MissingPrerequisiteError(
            f"{len(failed)} of {len(findings)} checks failed ({', '.join(failed)}); "
            "expected none; follow the advice above"
        )
    return 0


def examine() -> Iterator[Finding]:
    """Every check in turn."""
    for check in _CHECKS:
        yield check()


def _python() -> Finding:
    found = sys.version.split()[0]
    if sys.version_info < _MIN_PYTHON:
        return Finding(Level.FAIL, "Python", found, "install Python 3.10 or newer")
    return Finding(Level.OK, "Python", found)


def _torch() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Finding(Level.FAIL, "PyTorch", str(error), "run `make setup`")
    return Finding(Level.OK, "PyTorch", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _opencv() -> Finding:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        return Finding(Level.FAIL, "OpenCV", str(error), "run `make setup`")
    if not cv2.__version__.startswith("4."):
        return Finding(
            Level.FAIL, "OpenCV", cv2.__version__, "install opencv-python-headless<5 (4.x needed)"
        )
    return Finding(Level.OK, "OpenCV", cv2.__version__)


def _ros() -> Finding:
    for module in _ROS_MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return Finding(
                Level.FAIL,
                "ROS 2",
                f"{module}: {error}",
                "source your ROS 2 installation, or use the environment that `make setup` makes",
            )
    return Finding(Level.OK, "ROS 2", f"{os.environ.get('ROS_DISTRO', 'from PyPI')}, all messages")


def _transport() -> Finding:
    """Without a larger shared-memory segment Fast DDS drops images between processes."""
    try:
        profile = importlib.import_module("recon4d_ros.ros.profile")
        chosen = profile.user_profile() or ""
        packaged = package_file("config/fastdds_large.xml")
    except (ImportError, MissingPrerequisiteError) as error:
        return Finding(Level.WARN, "DDS profile", str(error), "install recon4d_ros again")
    export = "export " + " ".join(f"{name}={packaged}" for name in profile.PROFILE_VARIABLES)
    if not chosen:
        return Finding(
            Level.WARN,
            "DDS profile",
            "not set: images of other processes arrive late or not at all",
            f"where your camera driver starts: {export}",
        )
    if not Path(chosen).is_file():
        return Finding(Level.FAIL, "DDS profile", f"{chosen} does not exist", export)
    return Finding(Level.OK, "DDS profile", chosen)


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding(Level.WARN, "shared memory", "no /dev/shm", "mount a tmpfs there")
    free = shutil.disk_usage(shm).free // 2**20
    if free < _MIN_SHM_MIB:
        advice = "remove leftovers (/dev/shm/fastrtps_*), or give a container --shm-size=1g"
        return Finding(Level.WARN, "shared memory", f"{free} MiB free", advice)
    return Finding(Level.OK, "shared memory", f"{free} MiB free")


def _gpu() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return Finding(Level.WARN, "GPU", "unknown without PyTorch", "run `make setup`")
    if torch.cuda.is_available():
        return Finding(Level.OK, "GPU", str(torch.cuda.get_device_name(0)))
    return Finding(Level.OK, "GPU", "none; the classical predictor needs none")


def _models() -> Finding:
    folder = weights_folder()
    names = sorted(path.name for path in folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES)
    found = ", ".join(names) or "nothing fetched; the classical predictor needs no weights"
    return Finding(Level.OK, "models", f"{folder}: {found}")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores < _MIN_CORES:
        return Finding(
            Level.WARN, "processor", f"{cores} core", f"use {_MIN_CORES} cores for a live camera"
        )
    return Finding(Level.OK, "processor", f"{cores} cores")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    if total < _MIN_MEMORY_MIB:
        return Finding(Level.WARN, "memory", f"{total} MiB", "lower map.max_voxels")
    return Finding(Level.OK, "memory", f"{total} MiB")


_WEIGHT_SUFFIXES = (".safetensors", ".pth")
_CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _torch,
    _opencv,
    _ros,
    _transport,
    _shared_memory,
    _gpu,
    _models,
    _cores,
    _memory,
)

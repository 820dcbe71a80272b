"""Make `.venv`: ROS 2 from PyPI, torch, the libraries, the tools and this package itself.

Run by `make setup` with the system's Python and its standard library alone. A second run with
nothing changed does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "recon4d_setup.sha256"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Two builds of one module: the one installed last wins, and both break when either is removed.
ONNX_RUNTIMES = {False: "onnxruntime", True: "onnxruntime-gpu"}
OLDEST, NEWEST = (3, 10), (3, 14)


def main() -> int:
    """Bring the environment up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="torch with CUDA and onnxruntime-gpu")
    parser.add_argument("--ros", choices=("kilted", "jazzy"), default="kilted")
    args = parser.parse_args()
    wanted = fingerprint(args.gpu, args.ros)
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return 0
    problems = missing_prerequisites()
    if problems:
        print("make setup cannot start:", *problems, sep="\n  - ", file=sys.stderr)
        return 2
    try:
        install(args.gpu, args.ros)
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, error.cmd))
        print(f"make setup stopped: '{words}' failed; its message is above", file=sys.stderr)
        return 1
    STAMP.write_text(wanted)
    print(f"{VENV.name} is ready")
    return 0


def fingerprint(gpu: bool, ros: str) -> str:
    """Hash of everything the environment is made from."""
    digest = hashlib.sha256(f"{gpu} {ros} {platform.python_version()} {ROOT}".encode())
    sources = [ROOT / name for name in ("setup.py", "setup.cfg", "package.xml")]
    # By pattern: building leaves files of its own beside the sources.
    for pattern in (
        "requirements/*.*",
        "interfaces/tf2_msgs/*.*",
        "interfaces/tf2_msgs/idl/**/*.*",
    ):
        sources += sorted(path for path in ROOT.glob(pattern) if path.is_file())
    for path in sources:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def missing_prerequisites() -> list[str]:
    """What the machine lacks, each with what to do about it."""
    problems = []
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        problems.append(
            f"Python {platform.python_version()} is not supported; run "
            f"`make setup PYTHON=python3.X` with one from {OLDEST[0]}.{OLDEST[1]} to "
            f"{NEWEST[0]}.{NEWEST[1]}"
        )
    if sys.platform != "linux" or platform.machine() != "x86_64":
        problems.append(
            f"PyPI has ROS 2 for Linux on x86_64 only (this is {sys.platform} on "
            f"{platform.machine()}); use a ROS 2 installation and colcon, see README.md"
        )
    for variable, default in (("CC", "gcc"), ("CXX", "g++")):
        compiler = os.environ.get(variable, default).split()[0]
        if shutil.which(compiler) is None:
            problems.append(
                f"no compiler '{compiler}' for tf2_msgs; install one (Debian, Ubuntu: "
                f"`apt install build-essential`) or name yours in ${variable}"
            )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        problems.append("no Python.h for tf2_msgs; Debian, Ubuntu: `apt install python3-dev`")
    if not any(map(importlib.util.find_spec, ("ensurepip", "pip"))):
        problems.append("no pip; Debian, Ubuntu: `apt install python3-pip python3-venv`")
    return problems


def install(gpu: bool, ros: str) -> None:
    """Create the environment and fill it."""
    if not PYTHON.exists():
        create_venv()
    folder = ROOT / "requirements"
    names = ("run", "dev", f"ros-{ros}", *(["gpu"] if gpu else []))
    pip("uninstall", "--yes", ONNX_RUNTIMES[not gpu])
    if not gpu:
        install_cpu_builds(folder / "cpu.txt")
    pip("install", *(word for name in names for word in ("-r", folder / f"{name}.txt")))
    # The generators of the environment just made, not others in a build of its own.
    own = ("--no-build-isolation", "--no-deps", "--force-reinstall")
    pip("install", *own, ROOT / "interfaces" / "tf2_msgs")
    pip("install", *own, "--editable", ROOT)


def create_venv() -> None:
    """Make the environment, with the pip outside where Debian splits ensurepip off."""
    with_pip = importlib.util.find_spec("ensurepip") is not None
    venv.create(VENV, with_pip=with_pip, symlinks=True)
    if not with_pip:
        packages = next((VENV / "lib").glob("python3.*")) / "site-packages"
        call(sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, "pip")


def install_cpu_builds(requirement: Path) -> None:
    """From the configured indexes where they have the CPU build, else from PyTorch's own."""
    try:
        pip("install", "-r", requirement, quiet="-qqq")
    except subprocess.CalledProcessError:
        print(f"the configured package indexes lack torch for CPUs; asking {TORCH_CPU_INDEX}")
        pip("install", "-r", requirement, "--extra-index-url", TORCH_CPU_INDEX)


def pip(command: str, *arguments: object, quiet: str = "-qq") -> None:
    """Call the environment's pip, which prints errors only."""
    options = [quiet, "--disable-pip-version-check", "--no-input"]
    print("pip", command, *(_short(argument) for argument in arguments), flush=True)
    call(PYTHON, "-m", "pip", command, *options, *arguments)


def _short(argument: object) -> str:
    inside = isinstance(argument, Path) and argument.is_relative_to(ROOT)
    return str(argument.relative_to(ROOT)) if inside else str(argument)


def call(*command: object) -> None:
    """Run a command without the traces of another environment's ROS wheels."""
    dropped = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    subprocess.run([str(word) for word in command], check=True, env=environment)


if __name__ == "__main__":
    sys.exit(main())

"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest

import recon4d_ros
from recon4d_ros.config import Config, load_config
from recon4d_ros.config_docs import YAML_PATH, generated_files
from recon4d_ros.networks.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MANIFEST = ElementTree.parse(ROOT / "package.xml")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
USUAL_FUNCTION_LINES = 35
MAX_MEDIAN_LINES = 10

# Folders that exist on one machine only; written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:wor[k]|tm[p]|roo[t]|far[m])(?:/|\b)")


def tracked_files() -> list[Path]:
    """Files of the repository; without git, every file a checkout would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"git cannot list the repository: {listed.stderr.strip()}")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def run_tool(*command: object) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def function_lengths() -> dict[str, int]:
    """Lines of code and comments of every function, without its docstring."""
    lengths = {}
    for path in python_files("recon4d_ros", "benchmarks", "launch", "requirements"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                first = body[0].lineno if body else node.end_lineno
                name = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                lengths[name] = node.end_lineno - first + 1
    return lengths


def test_imports_keep_to_the_layers():
    run_tool(BIN / "lint-imports", "--no-cache")


def test_ruff_finds_nothing():
    run_tool(BIN / "ruff", "check", ".")


def test_code_is_formatted():
    run_tool(BIN / "ruff", "format", "--check", ".")


def test_types_are_sound():
    # Writing a cache takes as long as a quarter of the check; `make type` keeps one.
    no_cache = () if (ROOT / ".mypy_cache").is_dir() else ("--cache-dir", os.devnull)
    run_tool(BIN / "mypy", *no_cache)


def test_files_are_short():
    folders = ("recon4d_ros", "benchmarks", "launch", "requirements", "interfaces", "test")
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*folders)}
    long = [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines: {long}"


def test_functions_are_short():
    lengths = function_lengths()
    long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"
    usual = sum(length < USUAL_FUNCTION_LINES for length in lengths.values())
    assert usual >= 0.9 * len(lengths)
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_LINES


def test_no_file_names_a_folder_of_one_machine():
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        where = path.relative_to(ROOT)
        found += [f"{where}:{n}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert not found, f"paths of one machine: {found}"


def test_tracked_files_are_small_and_weights_have_their_page():
    """Weights of our own are the one exception."""
    big = [path for path in tracked_files() if path.stat().st_size > 1_000_000]
    assert {(path.parent, path.suffix) for path in big} <= {(ROOT / "models", ".safetensors")}
    for path in big:
        assert path.stat().st_size <= 30_000_000
        assert sha256_of(path) in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", generated_files(), ids=str)
def test_generated_files_are_fresh(path):
    fresh = (ROOT / path).is_file() and (ROOT / path).read_text() == generated_files()[path]
    assert fresh, f"{path} is stale; run `make docs`"


def test_the_generated_parameter_file_holds_the_defaults():
    assert load_config(ROOT / YAML_PATH) == Config()


def test_versions_are_equal():
    changelog = (ROOT / "CHANGELOG.rst").read_text()
    newest = re.search(r"^(\d+\.\d+\.\d+) \(", changelog, re.MULTILINE)
    versions = {
        "recon4d_ros": recon4d_ros.__version__,
        "package.xml": MANIFEST.findtext("version"),
        "installed": metadata.version("recon4d_ros"),
        "CHANGELOG.rst": newest and newest[1],
    }
    assert len(set(versions.values())) == 1, versions


def test_entry_points_can_be_imported():
    scripts = metadata.distribution("recon4d_ros").entry_points.select(group="console_scripts")
    assert {script.name for script in scripts} == {"recon4d", "recon4d_node"}
    for script in scripts:
        assert callable(script.load())


def test_every_imported_ros_package_is_declared():
    declared = {node.text for node in MANIFEST.iter() if node.tag.endswith("depend")}
    imported = set()
    for path in python_files("recon4d_ros", "launch"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0] for name in names}
    ros = {"launch", "launch_ros", "rclpy", "ament_index_python", "builtin_interfaces"}
    used = {name for name in imported if name.endswith(("_msgs", "_srvs")) or name in ros}
    assert used <= declared, f"package.xml lacks {used - declared}"


def test_the_licence_of_every_manifest_is_ours():
    assert MANIFEST.findtext("license") == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_page_of_the_architecture_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = sorted(path.parent.name for path in (ROOT / "recon4d_ros").glob("*/__init__.py"))
    assert [room for room in rooms if f"── {room}/" not in page] == []

"""Launch files and the RViz view; their run needs a ROS 2 installation."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from ros_support import OUTPUTS

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))


def test_both_launch_files_are_there():
    assert [file.name for file in FILES] == ["recon4d.launch.py", "replay.launch.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_launch_files_compile_and_describe_themselves(file):
    tree = ast.parse(file.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in names
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_argument_that_is_used_is_declared_with_a_meaning(file):
    text = file.read_text()
    tree = ast.parse(text)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    declared = [c for c in calls if getattr(c.func, "id", "") == "DeclareLaunchArgument"]
    assert declared
    assert all("description" in {k.arg for k in call.keywords} for call in declared)
    names = {c.args[0].value for c in declared if isinstance(c.args[0], ast.Constant)}
    names |= set(re.findall(r'^    "(\w+)": \(', text, re.M))
    used = set(re.findall(r'(?:LaunchConfiguration|flag)\("(\w+)"\)', text))
    assert used <= names, used - names


def test_replay_hands_on_arguments_that_the_node_file_declares():
    node, replay = (file.read_text() for file in FILES)
    handed_on = set(re.findall(r'^    "(\w+)": \(', replay, re.M))
    declared = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', node))
    assert handed_on
    assert handed_on <= declared


def test_the_rviz_view_shows_topics_that_the_node_publishes():
    view = yaml.safe_load((ROOT / "config" / "recon4d.rviz").read_text())
    manager = view["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == "map"
    topics = [display["Topic"] for display in manager["Displays"] if "Topic" in display]
    names = {topic["Value"].removeprefix("/recon4d_node/") for topic in topics}
    assert names <= set(OUTPUTS)
    assert {"static_map", "dynamic_points", "points", "path", "odometry"} <= names
    latched = [t["Value"] for t in topics if t["Durability Policy"] == "Transient Local"]
    assert latched == ["/recon4d_node/static_map"]


def test_the_launched_node_comes_up():
    pytest.importorskip(
        "launch.actions", reason="launch comes with a ROS 2 installation only, not from PyPI"
    )
    pytest.importorskip("launch_pytest", reason="launch_pytest comes with a ROS 2 installation")
    from launch.actions import IncludeLaunchDescription, RegisterEventHandler, Shutdown
    from launch.event_handlers import OnProcessIO

    from launch import LaunchDescription, LaunchService

    source = str(FILES[0])
    seen = []

    def on_output(event):
        text = event.text.decode()
        if "listening to" in text:
            seen.append(text)
            return [Shutdown(reason="the node listens")]
        return None

    service = LaunchService()
    handler = OnProcessIO(on_stdout=on_output, on_stderr=on_output)
    service.include_launch_description(
        LaunchDescription([RegisterEventHandler(handler), IncludeLaunchDescription(source)])
    )
    assert service.run() == 0
    assert seen

"""The node as a process: start, signals in any state, exit codes."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ros_support import (
    camera_info_message,
    image_message,
    new_domain,
    probe_in,
    python_process,
)
from rosgraph_msgs.msg import Clock

from recon4d_ros.ros import profile

pytestmark = pytest.mark.ros

EXACT = str(Path(__file__).with_name("ros_exact_node.py"))
RELIABLE = "--ros-args", "-p", "input.reliability:=reliable"
WAIT_S = 30


def stop(process, presses_again=False):
    """Ctrl-C, once or again and again until the process has ended."""
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + WAIT_S
    while presses_again and process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    output, _ = process.communicate(timeout=WAIT_S)
    return process.returncode, output


def until_parameters(probe, name):
    """The node answers: its services are there."""
    names = lambda: {n for n, _ in probe.node.get_service_names_and_types()}  # noqa: E731
    probe.until(lambda: f"/{name}/get_state" in names(), "the node", timeout_s=WAIT_S)


@pytest.mark.parametrize("presses_again", [False, True])
def test_sigint_ends_an_active_node_with_exit_code_0(presses_again):
    domain = new_domain()
    with probe_in(domain) as probe, python_process(domain, EXACT, *RELIABLE) as process:
        probe.listen("pose")
        probe.until(lambda: probe.image.get_subscription_count() > 0, "the node", WAIT_S)
        probe.connected()
        assert probe.send_and_wait()
        code, output = stop(process, presses_again)
    assert code == 0, output
    assert "Traceback" not in output


def test_sigint_ends_an_unconfigured_node_with_exit_code_0():
    domain = new_domain()
    options = "--ros-args", "-p", "autostart:=false"
    with probe_in(domain) as probe, python_process(domain, EXACT, *options) as process:
        until_parameters(probe, "recon4d_node")
        assert probe.image.get_subscription_count() == 0
        code, output = stop(process)
    assert code == 0, output


def test_sigint_ends_a_node_that_waits_for_camera_info_with_exit_code_0():
    domain = new_domain()
    options = *RELIABLE, "-p", "input.camera_info_timeout:=60.0"
    with probe_in(domain) as probe, python_process(domain, EXACT, *options) as process:
        probe.listen("/diagnostics")
        probe.until(lambda: probe.image.get_subscription_count() > 0, "the node", WAIT_S)
        probe.connected()
        probe.send(info=None)
        probe.until(lambda: probe.value("input", "received") == "1", "the image", WAIT_S)
        code, output = stop(process)
    assert code == 0, output


def test_a_refused_parameter_leaves_a_living_node_that_says_why():
    domain = new_domain()
    options = "--ros-args", "-p", "window.size:=1000", "-p", "windw.stride:=2"
    with probe_in(domain) as probe, python_process(domain, EXACT, *options) as process:
        probe.listen("/diagnostics")
        wanted = "unknown parameter 'windw.stride'; the nearest is 'window.stride'"
        probe.until(lambda: wanted in probe.diagnostics("process")[1], "the reason", WAIT_S)
        assert process.poll() is None
        code, output = stop(process)
    assert code == 0
    assert wanted in output


def test_the_installed_node_comes_up_and_listens():
    domain = new_domain()
    module = "-m", "recon4d_ros.ros.node", "--ros-args", "-r", "__ns:=/robot"
    options = {"image": "/robot/image", "info": "/robot/camera_info"}
    with (
        probe_in(domain, name="/robot/recon4d_node", **options) as probe,
        python_process(domain, *module) as process,
    ):
        probe.until(lambda: probe.image.get_subscription_count() > 0, "the node", WAIT_S)
        code, output = stop(process)
    assert code == 0, output


def test_the_transport_profile_is_set_unless_the_user_has_one(monkeypatch, tmp_path):
    for name in profile.PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    chosen = profile.ensure_transport_profile()
    assert chosen.name == "fastdds_large.xml"
    assert profile.user_profile() == str(chosen)
    own = tmp_path / "own.xml"
    monkeypatch.setenv(profile.PROFILE_VARIABLES[0], str(own))
    monkeypatch.delenv(profile.PROFILE_VARIABLES[1], raising=False)
    assert profile.ensure_transport_profile() == own


def test_large_images_pass_between_processes():
    """720p, best effort, as camera drivers send it; with the default transport most are lost."""
    domain, size = new_domain(), (720, 1280)
    info = camera_info_message(size, focal=900.0)
    with probe_in(domain) as probe, python_process(domain, EXACT) as process:
        probe.listen("pose")
        probe.until(lambda: probe.image.get_subscription_count() > 0, "the node", WAIT_S)
        probe.connected()

        def first_answer():
            probe.send(image_message(probe.next_stamp(), size=size), info=info)
            return probe.heard["pose"]

        probe.until(first_answer, "a first pose", WAIT_S)
        for _ in range(10):
            message = image_message(probe.next_stamp(), size=size)
            assert probe.send_and_wait(message=message, info=info)
        assert process.poll() is None


ACKNOWLEDGED = """
import sys, time
import rclpy
from rclpy.duration import Duration
from rosgraph_msgs.msg import Clock
from recon4d_ros.ros.profile import ensure_transport_profile

ensure_transport_profile()
rclpy.init()
publisher = rclpy.create_node("writer").create_publisher(Clock, "/written", 10)
while publisher.get_subscription_count() == 0:
    time.sleep(0.01)
time.sleep(0.5)  # until the reader knows the writer, too, which nobody here can ask
publisher.publish(Clock())
sys.exit(0 if publisher.wait_for_all_acked(Duration(seconds=1)) else 3)
"""


def test_what_has_arrived_is_known_before_the_default_heartbeat():
    """The writer asks its reliable readers every 0.1 s, not every 3 s."""
    domain = new_domain()
    with probe_in(domain) as probe, python_process(domain, "-c", ACKNOWLEDGED) as process:
        probe.node.create_subscription(Clock, "/written", probe.heard["/written"].append, 10)
        probe.until(lambda: process.poll() is not None, "the writer to end", WAIT_S)
    assert process.returncode == 0 and len(probe.heard["/written"]) == 1

"""Playing a bag: bytes, pace, clock, waiting."""

import argparse
import signal

import numpy as np
import pytest
import torch
from ros_support import START_NS, new_domain, probe_in, python_process, stamp_ns
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from recon4d_ros.errors import SourceError
from recon4d_ros.ros.player import PlayOptions, add_arguments, play
from recon4d_ros.storage.bag_writer import open_bag

pytestmark = pytest.mark.ros

NUM = 6
PERIOD_NS = 50_000_000
WAIT_S = 30
RUN = (
    "import argparse, sys; from recon4d_ros.ros import player;"
    "parser = argparse.ArgumentParser(); player.add_arguments(parser);"
    "sys.exit(player.run(parser.parse_args()))"
)


def picture(number):
    return torch.full((24, 32, 3), 10 * number, dtype=torch.uint8)


def write_bag(path, storage="mcap"):
    with open_bag(path, None, storage=storage) as writer:
        for number in range(NUM):
            writer.write(START_NS + number * PERIOD_NS, picture(number))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "bag")


class Listener:
    def __init__(self, probe, images="/camera/image_raw"):
        self.probe, self.images, self.infos, self.clock = probe, [], [], []
        probe.node.create_subscription(Image, images, self.images.append, 50)
        probe.node.create_subscription(CameraInfo, "/camera/camera_info", self.infos.append, 50)
        probe.node.create_subscription(Clock, "/clock", self.clock.append, 500)

    def until(self, number):
        self.probe.until(lambda: len(self.images) >= number, f"{number} images", WAIT_S)

    def times(self):
        return [m.clock.sec * 10**9 + m.clock.nanosec for m in self.clock]


def finish(process):
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_every_message_arrives_with_its_content_and_the_clock(tmp_path, storage):
    domain, bag = new_domain(), write_bag(tmp_path / "bag", storage)
    with (
        probe_in(domain) as probe,
        python_process(domain, "-c", RUN, str(bag), "--rate", "2") as process,
    ):
        heard = Listener(probe)
        heard.until(NUM)
        output = finish(process)
        probe.until(lambda: len(heard.infos) == NUM, "every camera_info")
        last_ns = START_NS + (NUM - 1) * PERIOD_NS
        probe.until(lambda: last_ns in heard.times(), "the last time")
    assert [stamp_ns(m) - START_NS for m in heard.images] == [n * PERIOD_NS for n in range(NUM)]
    for number, message in enumerate(heard.images):
        pixels = np.frombuffer(message.data, np.uint8).reshape(24, 32, 3)
        assert (pixels == 10 * number).all()
    assert heard.times() == sorted(heard.times())
    assert len(heard.times()) > NUM
    assert "/camera/image_raw" in output


def test_a_loop_jumps_back_and_ends_with_a_signal(bag):
    domain = new_domain()
    command = "-c", RUN, str(bag), "--loop", "--rate", "10"
    with probe_in(domain) as probe, python_process(domain, *command) as process:
        heard = Listener(probe)
        heard.until(2 * NUM + 1)
        process.send_signal(signal.SIGINT)
        finish(process)
    stamps = [stamp_ns(message) for message in heard.images]
    assert stamps[:NUM] == stamps[NUM : 2 * NUM]
    assert (np.diff(heard.times()) < 0).any()


def test_topics_can_be_chosen_and_renamed(bag):
    domain = new_domain()
    options = "--topics", "/camera/image_raw", "--remap", "/camera/image_raw:=/eye", "--rate", "9"
    with (
        probe_in(domain) as probe,
        python_process(domain, "-c", RUN, str(bag), *options) as process,
    ):
        heard = Listener(probe, images="/eye")
        heard.until(NUM)
        finish(process)
    assert not heard.infos


def test_playing_waits_for_no_torch():
    """Importing it takes five times as long as all the rest."""
    program = "import sys; from recon4d_ros.ros import player; sys.exit('torch' in sys.modules)"
    with python_process(new_domain(), "-c", program) as process:
        finish(process)


def test_nobody_listening_is_an_error_after_a_bounded_wait(bag):
    with python_process(new_domain(), "-c", RUN, str(bag), "--wait", "0.2") as process:
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert "had no subscriber within 0.2 s" in output
    assert "waiting for subscribers of /camera/image_raw" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topics": ("/nothing",)}, "/camera/image_raw"),
        ({"wait_for": ("/nothing",)}, "/camera/image_raw"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
    ],
)
def test_impossible_wishes_are_refused_with_what_there_is(bag, options, words, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(new_domain()))
    with pytest.raises(SourceError, match=words):
        play(PlayOptions(bag, **options))


def test_what_is_no_bag_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(new_domain()))
    (tmp_path / "broken.mcap").write_bytes(b"\x89MCAP0\r\nnothing")
    for path in (tmp_path / "missing", tmp_path / "broken.mcap", tmp_path):
        with pytest.raises(SourceError, match="rosbag2"):
            play(PlayOptions(path))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_that_breaks_off_is_an_error(tmp_path, storage, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(new_domain()))
    folder = write_bag(tmp_path / "bag", storage)
    (file,) = (path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SourceError, match="cannot play the bag"):
        play(PlayOptions(folder, rate=50.0, wait_s=0.0))


def test_arguments_have_the_defaults_of_the_options(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given, default = parser.parse_args([str(tmp_path)]), PlayOptions(tmp_path)
    assert (given.rate, given.loop, given.wait) == (default.rate, default.loop, default.wait_s)

"""The pose does not wait for depth, mask and map."""

import threading
from functools import partial

import pytest
from exact_core import ExactCore
from ros_support import PERIOD_NS, START_NS, image_message, session

from recon4d_ros.config import Config

pytestmark = pytest.mark.ros

LISTEN = ("pose", "dynamic_mask", "events", "/diagnostics")


def held_up(map_gate, gate=None, **values):
    core = partial(ExactCore, map_gate=map_gate, gate=gate)
    return session(core=core, topics=LISTEN, **values)


def test_poses_are_published_while_the_map_is_busy():
    gate = threading.Event()
    with held_up(gate) as (probe, _, cores):
        probe.connected()
        stamps = [probe.send_and_wait().header.stamp for _ in range(3)]
        assert not cores[0].mapped
        assert not probe.heard["dynamic_mask"]
        gate.set()
        probe.until(lambda: len(cores[0].mapped) == 3, "three mapped frames")
        masks = probe.heard["dynamic_mask"]
        probe.until(lambda: len(masks) == 3, "their masks")
        assert [mask.header.stamp for mask in masks] == stamps


def test_tracking_runs_ahead_by_a_window_stride_at_most():
    gate = threading.Event()
    with held_up(gate) as (probe, _, cores):
        probe.connected()
        # One frame is being mapped, a stride of them wait, and one more waits to be let in.
        most = Config().window.stride + 2
        for _ in range(most):
            probe.send_and_wait()
        probe.send()
        probe.until(lambda: probe.value("input", "received") == str(most + 1), "the next image")
        probe.send()
        probe.until(lambda: probe.value("input", "dropped.newer_image") == "1", "a dropped image")
        assert len(cores[0].frames) == most
        gate.set()
        probe.until(lambda: len(cores[0].mapped) == most + 1, "everything mapped")


def test_a_window_is_taken_in_while_the_next_pose_is_sought():
    gate, map_gate = threading.Event(), threading.Event()
    gate.set()
    with held_up(map_gate, gate=gate) as (probe, _, cores):
        probe.connected()
        for _ in range(3):
            probe.send_and_wait()
        gate.clear()
        probe.send()
        probe.until(lambda: cores[0].num_begun == 4, "the fourth image being tracked")
        map_gate.set()
        probe.until(lambda: len(cores[0].mapped) == 3, "the three before it mapped")
        assert len(cores[0].frames) == 3
        gate.set()
        probe.until(lambda: len(cores[0].mapped) == 4, "everything mapped")


def test_a_restart_comes_between_what_was_mapped_and_what_comes():
    gate = threading.Event()
    with held_up(gate) as (probe, _, cores):
        probe.connected()
        for _ in range(3):
            probe.send_and_wait()
        probe.send(image_message(START_NS - 10**9))
        gate.set()
        probe.event("reset")
        mapped = cores[0].mapped
        probe.until(lambda: mapped[-1].stamp_ns == START_NS - 10**9, "the new stream")
        assert [frame.index for frame in mapped] == [*range(len(mapped) - 1), 0]
        probe.until(lambda: len(probe.heard["dynamic_mask"]) == len(mapped), "the masks")


def test_a_replay_maps_each_frame_before_the_next_is_tracked():
    gate = threading.Event()
    with held_up(gate, input__mode="replay") as (probe, _, cores):
        probe.connected()
        probe.send_and_wait()
        for number in range(3):
            probe.send(image_message(START_NS + (number + 5) * PERIOD_NS))
        assert len(cores[0].frames) == 1
        gate.set()
        probe.until(lambda: len(cores[0].mapped) == 4, "everything mapped")


def test_what_was_tracked_is_mapped_before_the_node_goes_inactive():
    gate = threading.Event()
    with held_up(gate) as (probe, node, cores):
        probe.connected()
        for _ in range(3):
            probe.send_and_wait()
        opener = threading.Timer(0.2, gate.set)
        opener.start()
        node.trigger_deactivate()
        assert len(cores[0].mapped) == 3

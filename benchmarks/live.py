"""Live: a camera at 30 Hz, the node and a listener as processes of their own on two cores.

The camera is `recon4d play` on a bag. The listener records /tf and /clock, which are small, with
the wall clock of their arrival: the player tells the time right before it publishes an image, so
the first /clock with the stamp of an image says when that image went out.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endless import PERIOD_NS, there_and_back
from benchmarks.table import Row, Target
from benchmarks.workbench import RECON4D, Workbench, sequence_folder
from recon4d_ros.cli.processes import Process, ProcessGroup, private_graph
from recon4d_ros.cli.recorded_run import (
    IMAGE_TOPIC,
    INFO_TOPIC,
    TF,
    Latency,
    RecordedRun,
    measure_latency,
)
from recon4d_ros.errors import Recon4DError
from recon4d_ros.storage.bag_writer import open_bag
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.messages import stamp_ns

SEQUENCES = ("tum_fr3_walking_halfsphere_clip", "icl_livingroom1")
SECONDS = 30.0
POSED_HZ = Target(15.0, better="higher")
LATENCY_MS = Target(150.0)
CORES = 2
CLOCK, DIAGNOSTICS = "/clock", "/diagnostics"
START_S, SLACK_S = 60.0, 30.0
# The last images are still on their way when the player ends; diagnostics come once a second.
REST_S = 2.0


@dataclass(frozen=True)
class LiveFigures:
    """What the listener heard.

    Attributes:
        latency: from the publication of an image to the arrival of its pose.
        num_dropped: images that the node says it dropped.
    """

    latency: Latency
    num_dropped: int


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Rate of posed frames, latency and drops per sequence."""
    for name in SEQUENCES:
        sequence = SequenceFolder(sequence_folder(name))
        try:
            with cores(CORES):
                figures = stream(sequence, bench.out / "live" / name, SECONDS)
        except Recon4DError as error:
            yield Row("live", name, "posed Hz", math.nan, POSED_HZ, note=str(error))
            continue
        yield from _rows(name, figures)


def _rows(name: str, figures: LiveFigures) -> Iterator[Row]:
    latency = figures.latency
    seconds = latency.num_images * PERIOD_NS * 1e-9
    note = f"{latency.num_images} images at {latency.input_hz:.1f} Hz"
    yield Row("live", name, "posed Hz", latency.num_posed / seconds, POSED_HZ, note=note)
    yield Row("live", name, "stamp to TF p50 ms", 1e3 * latency.p50_s)
    yield Row("live", name, "stamp to TF p95 ms", 1e3 * latency.p95_s, LATENCY_MS)
    share = figures.num_dropped / max(latency.num_images, 1)
    unposed = f"{latency.num_images - latency.num_posed} images without a pose"
    yield Row("live", name, "share dropped by the node", share, note=unposed)


@contextmanager
def cores(number: int) -> Iterator[None]:
    """Processes started meanwhile share so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stream(sequence: SequenceFolder, folder: Path, seconds: float) -> LiveFigures:
    """Play a sequence there and back to the node for some seconds.

    Raises:
        Recon4DError: a process failed; whatever was started has been stopped.
    """
    shutil.rmtree(folder, ignore_errors=True)
    bag, recording = folder / "bag", folder / "recording"
    num_images = round(seconds * 1e9 / PERIOD_NS)
    _write_bag(sequence, bag, num_images)
    try:
        with private_graph(folder / "logs") as group:
            node, listener = _start_listening(group, recording)
            player = group.start("player", [str(RECON4D), "play", str(bag)])
            group.wait_until(
                lambda: not player.is_alive, "finish", seconds + SLACK_S, player, (node, listener)
            )
            if player.popen.returncode != 0:
                raise player.failure(f"ended with code {player.popen.returncode}")
            _rest(group, node)
            group.stop(listener)
    finally:
        shutil.rmtree(bag, ignore_errors=True)  # a gigabyte of images
    return _figures(RecordedRun(recording), {index * PERIOD_NS for index in range(num_images)})


def _write_bag(sequence: SequenceFolder, path: Path, num_images: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [image.load() for image in sequence.images()]
    with open_bag(path, sequence.camera) as bag:
        for index, image in enumerate(itertools.islice(there_and_back(images), num_images)):
            bag.write(index * PERIOD_NS, image)


def _start_listening(group: ProcessGroup, recording: Path) -> tuple[Process, Process]:
    """The node, and the listener once it hears the node."""
    remaps = ("-r", f"image:={IMAGE_TOPIC}", "-r", f"camera_info:={INFO_TOPIC}")
    program = str(RECON4D.with_name("recon4d_node"))
    node = group.start("node", [program, "--ros-args", *remaps, "-p", "use_sim_time:=true"])
    python = str(RECON4D.with_name("python"))
    topics = (TF, DIAGNOSTICS, f"{CLOCK}=rosgraph_msgs/msg/Clock")
    command = [python, "-m", "recon4d_ros.ros.recorder", str(recording), *topics]
    listener = group.start("listener", command)
    group.wait_until(recording.exists, "hear the node", START_S, listener, (node, listener))
    return node, listener


def _rest(group: ProcessGroup, node: Process) -> None:
    end_s = time.monotonic() + REST_S
    group.wait_until(lambda: time.monotonic() > end_s, "rest", START_S, node, (node,))


def _figures(run: RecordedRun, stamps: set[int]) -> LiveFigures:
    sent: dict[int, int] = {}
    for received in run.messages(CLOCK):
        stamp = stamp_ns(received.message.clock)
        if stamp in stamps:
            sent.setdefault(stamp, received.arrival_ns)
    return LiveFigures(measure_latency(sent, run.poses()), _num_dropped(run))


def _num_dropped(run: RecordedRun) -> int:
    """What the node's newest diagnostics say."""
    dropped = 0
    for received in run.messages(DIAGNOSTICS):
        values = {v.key: v.value for status in received.message.status for v in status.values}
        dropped = int(values.get("dropped", dropped))
    return dropped

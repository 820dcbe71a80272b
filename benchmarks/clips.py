"""Frames a second of the clips that trackers are trained on, beside the demo's renderer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.table import Row, Target
from benchmarks.workbench import Workbench
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.clips import ClipGenerator, ClipSettings
from recon4d_ros.synthetic.clips.settings import NO_EFFECTS
from recon4d_ros.synthetic.renderer import render

NUM_CLIPS, REPEATS, THREADS = 20, 3, 2
FRAMES_HZ = Target(40.0, "higher")


def benchmark(_: Workbench) -> Iterator[Row]:
    """Rates with two threads; CPU time on one thread, which other programs disturb less."""
    torch.set_num_threads(THREADS)
    usual = ClipGenerator(ClipSettings())
    plain = ClipGenerator(dataclasses.replace(ClipSettings(), effects=NO_EFFECTS))
    house = _house_rate(time.perf_counter)
    yield _row("all effects", "frames/s on 2 threads", _rate(usual, time.perf_counter), house)
    yield _row("no effects", "frames/s on 2 threads", _rate(plain, time.perf_counter), house)
    torch.set_num_threads(1)
    for case, generator in (("all effects", usual), ("no effects", plain)):
        rate = _rate(generator, time.process_time)
        yield Row("clips", case, "frames per CPU second of one thread", rate)


def _row(case: str, figure: str, rate: float, house: float) -> Row:
    note = f"{NUM_CLIPS} clips of 12 frames of 192x192, the best of {REPEATS}"
    return Row("clips", case, figure, rate, FRAMES_HZ, {"demo's renderer": house}, note)


def _rate(generator: ClipGenerator, clock: Callable[[], float]) -> float:
    generator.clips(NUM_CLIPS, 1)
    spent = _best(lambda: generator.clips(0, NUM_CLIPS), clock)
    return NUM_CLIPS * generator.settings.num_frames / spent


def _house_rate(clock: Callable[[], float]) -> float:
    """The same number of pixels in a frame of the demo."""
    scene = scenes.named("demo", 12, 222)
    render(scene, 0)
    return 1.0 / _best(lambda: render(scene, 3), clock)


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = clock()
        work()
        times.append(clock() - begin)
    return min(times)

"""POMATO on a CUDA device: `python -m benchmarks.pomato_cuda`, a table at the end.

Full-size network with random weights, bf16, 512x288: a window of 12 frames, one more frame with
the keyframe held, both also as CUDA graphs, and a stream of 3,000 frames with its memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pomato_weights import position_table, rule_images
from benchmarks.pomato_worker import exact_window, incremental
from benchmarks.table import Row, Target, to_text
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap, PomatoNet, PomatoSizes

HEIGHT, WIDTH, LENGTH = 288, 512, 12
WARM_UPS, REPEATS = 3, 20
MATMUL_SIDE = 8192
EARLY, LATE = 600, 3000
# What is aimed at on this device; others have no target.
AIMED_AT = "H200"
WINDOW_MS, FRAME_MS = Target(47.0), Target(12.0)
MEMORY_GIB, GROWTH = Target(6.0), Target(1.03)
Result = TypeVar("Result")


def main() -> int:
    """Measure, and print the table; 2 where there is no CUDA device."""
    if not torch.cuda.is_available():
        print(
            f"pomato_cuda: no CUDA device for torch {torch.__version__}; run it on a machine with "
            "one, after `make setup GPU=1`",
            file=sys.stderr,
        )
        return 2
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    net = random_net(PomatoSizes(temporal_length=LENGTH), device, torch.bfloat16)
    try:
        print(to_text(list(rows(net, device, HEIGHT, WIDTH, (EARLY, LATE)))))
    except CaptureError as error:
        print(f"pomato_cuda: {error}", file=sys.stderr)
        return 1
    return 0


class CaptureError(RuntimeError):
    """Work that CUDA could not record as a graph."""


@torch.no_grad()
def random_net(sizes: PomatoSizes, device: torch.device, dtype: torch.dtype) -> PomatoNet:
    """Network with weights drawn on the device, since speed does not depend on them."""
    with torch.device("meta"):
        net = PomatoNet(sizes).to(dtype)
    net.to_empty(device=device).to(memory_format=torch.channels_last)
    for name, weight in net.named_parameters():
        is_scale = weight.ndim == 1 and name.endswith("weight")
        _ = weight.fill_(1.0) if is_scale else weight.normal_(0.0, 0.02)
    for table in net.buffers():
        table.copy_(position_table(*table.shape[1:]))
    return net.eval()


@torch.no_grad()
def rows(
    net: PomatoNet, device: torch.device, height: int, width: int, stream: tuple[int, int]
) -> Iterator[Row]:
    """Rows of a temporal network on a device; memory is 0 where that is not CUDA."""
    length = net.temporal_length or 1
    case = _device_name(device)
    rate = matmul_rate(net, device)
    yield Row("pomato_cuda", case, "matmul TFLOP/s", rate / 1e12)
    images = rule_images((length + 1, 3, height, width), seed=7).to(device)

    def window() -> object:
        return exact_window(net, net.encode(images[:length]), length - 1, length, length)

    features = net.encode(images[:length])
    tokens, _ = exact_window(net, features, length - 1, length, length)
    key = features[length - 1 :]

    def frame() -> object:
        return incremental(net, images[length:], key, tokens)

    for work, figure, aim in ((window, "window", WINDOW_MS), (frame, "frame", FRAME_MS)):
        target = aim if AIMED_AT in case else None
        title = f"{figure} ms, {height}x{width}"
        yield from _with_target(list(_ways(work, title, case, device, rate)), target)
    yield from _stream_rows(net, images, stream, case)


def _ways(
    work: Callable[[], object], title: str, case: str, device: torch.device, rate: float
) -> Iterator[Row]:
    """The same work called from Python and, on CUDA, replayed."""
    flops = count_flops(work)
    yield _time_row(case, title, timings(work, device), flops, rate)
    if device.type == "cuda":
        graph = captured(work, title)[0]
        seconds = timings(graph.replay, device)
        del graph
        torch.cuda.empty_cache()
        yield _time_row(case, f"{title}, CUDA graph", seconds, flops, rate)


def _with_target(rows: list[Row], target: Target | None) -> list[Row]:
    best = min(rows, key=lambda row: row.ours)
    return [replace(row, target=target) if row is best else row for row in rows]


def _time_row(case: str, figure: str, seconds: list[float], flops: int, rate: float) -> Row:
    median = statistics.median(seconds)
    note = (
        f"{min(seconds) * 1e3:.3g} to {max(seconds) * 1e3:.3g} in {len(seconds)}; "
        f"{flops / 1e12:.3g} TFLOP, {flops / median / rate:.0%} of the matmul rate"
    )
    return Row("pomato_cuda", case, figure, median * 1e3, None, {}, note)


def captured(work: Callable[[], Result], what: str) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Graph of some work on static tensors, and where each replay leaves the result.

    Raises:
        CaptureError: the work waits for the device or copies from the host.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            result = work()
    except RuntimeError as error:
        raise CaptureError(
            f"the {what} cannot be captured as a CUDA graph ({error}); keep its tensors on the "
            "device and read no value of them"
        ) from error
    return graph, result


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def timings(
    work: Callable[[], object], device: torch.device, repeats: int = REPEATS
) -> list[float]:
    """Seconds of each of some runs, after a few that do not count."""
    seconds = []
    for number in range(WARM_UPS + repeats):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        if number >= WARM_UPS:
            seconds.append(time.perf_counter() - begin)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_rate(net: PomatoNet, device: torch.device) -> float:
    """Operations per second of a large product of matrices in the type of the network."""
    side = MATMUL_SIDE if device.type == "cuda" else MATMUL_SIDE // 16
    a, b = torch.randn(2, side, side, device=device).to(net.enc_norm.weight.dtype)
    return 2 * side**3 / statistics.median(timings(lambda: a @ b, device))


def _stream_rows(
    net: PomatoNet, images: Tensor, stream: tuple[int, int], case: str
) -> Iterator[Row]:
    early, late = stream
    allocated = {}
    length = net.temporal_length or 1
    features = net.encode(images[:length])
    key = features[length - 1 :]
    tokens, _ = exact_window(net, features, length - 1, length, length)
    del features
    step = _stepper(net, images[:1].clone(), key, tokens)
    begin = time.perf_counter()
    for number in range(1, late + 1):
        maps = step(images[number % length : number % length + 1])
        # As a consumer would: the result leaves the device.
        maps[0].points.cpu()
        if number in stream:
            allocated[number] = torch.cuda.memory_reserved() / 2**30
    rate = late / (time.perf_counter() - begin)
    peak = torch.cuda.max_memory_reserved() / 2**30
    note = f"{allocated[early]:.3g} GiB after {early} frames, {allocated[late]:.3g} after {late}"
    growth = allocated[late] / allocated[early] if allocated[early] else 1.0
    yield Row("pomato_cuda", case, f"memory {late} / {early} frames", growth, GROWTH, {}, note)
    yield Row("pomato_cuda", case, "largest memory GiB", peak, MEMORY_GIB)
    yield Row("pomato_cuda", case, "stream frames/s", rate)


def _stepper(
    net: PomatoNet, image: Tensor, key: Features, window: HookTokens
) -> Callable[[Tensor], list[Pointmap]]:
    """One frame more, by a CUDA graph; image and window are where it reads and leaves them."""

    def work() -> list[Pointmap]:
        _, maps, moved = incremental(net, image, key, window)
        for held, new in zip(window.levels, moved.levels, strict=True):
            held.copy_(new)
        return maps

    graph, maps = captured(work, "stream") if image.is_cuda else (None, [])

    def step(new: Tensor) -> list[Pointmap]:
        image.copy_(new)
        if graph is None:
            return work()
        graph.replay()
        return maps

    return step


if __name__ == "__main__":
    sys.exit(main())

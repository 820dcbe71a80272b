"""POMATO on a CUDA device: `python -m benchmarks.pomato_cuda`, a table at the end.

Full-size network with weights by rule, bf16, 512x288: a window of 12 frames, one more frame with
the keyframe held, and a stream of 3,000 frames with its memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pomato_weights import rule_images, rule_net
from benchmarks.pomato_worker import exact_window, incremental
from benchmarks.table import Row, Target, to_text
from recon4d_ros.networks.pomato import PomatoNet, PomatoSizes

HEIGHT, WIDTH, LENGTH = 288, 512, 12
WARM_UPS, REPEATS = 3, 20
MATMUL_SIDE = 8192
EARLY, LATE = 600, 3000
# What is aimed at on this device; others have no target.
AIMED_AT = "H200"
WINDOW_MS, FRAME_MS = Target(47.0), Target(12.0)
MEMORY_GIB, GROWTH = Target(6.0), Target(1.03)


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
    net = rule_net(PomatoSizes(temporal_length=LENGTH)).to(device, torch.bfloat16)
    net = net.to(memory_format=torch.channels_last)
    print(to_text(list(rows(net, device, HEIGHT, WIDTH, (EARLY, LATE)))))
    return 0


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
        return exact_window(net, net.encode(images[:length]), length - 1, LENGTH, LENGTH)

    features = net.encode(images[:length])
    tokens, _ = exact_window(net, features, length - 1, LENGTH, LENGTH)
    key = features[[length - 1]]

    def frame() -> object:
        return incremental(net, images[length:], key, tokens)

    for work, figure, target in ((window, "window", WINDOW_MS), (frame, "frame", FRAME_MS)):
        seconds = timings(work, device)
        median, flops = statistics.median(seconds), count_flops(work)
        note = (
            f"{min(seconds) * 1e3:.3g} to {max(seconds) * 1e3:.3g} in {len(seconds)}; "
            f"{flops / 1e12:.3g} TFLOP, {flops / median / rate:.0%} of the matmul rate"
        )
        aim = target if AIMED_AT in case else None
        yield Row(
            "pomato_cuda", case, f"{figure} ms, {height}x{width}", median * 1e3, aim, {}, note
        )
    yield from _stream_rows(net, images, stream, case)


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
    key = features[[length - 1]]
    tokens, _ = exact_window(net, features, length - 1, LENGTH, LENGTH)
    del features
    begin = time.perf_counter()
    for number in range(1, late + 1):
        image = images[number % length : number % length + 1]
        _, maps, tokens = incremental(net, image, key, tokens)
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


if __name__ == "__main__":
    sys.exit(main())

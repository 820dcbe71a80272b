"""POMATO on a CUDA device: `python -m benchmarks.pomato_cuda`, a table at the end.

Full-size network with random weights, bf16, 512x288: a window of 12 frames and one more frame with
the keyframe held, each called from Python, compiled and, both ways, replayed as CUDA graphs; and a
stream of 3,000 frames with its memory. Compiling takes about a minute.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pomato_weights import position_table, rule_images
from benchmarks.pomato_worker import exact_window, incremental
from benchmarks.table import Row, Target, to_text
from recon4d_ros.networks.pomato import Features, HookTokens, PomatoNet, PomatoSizes
from recon4d_ros.predictors.pomato.loading import compiled
from recon4d_ros.predictors.pomato.network import PointmapNetwork
from recon4d_ros.predictors.pomato.recorded import RecordedNetwork

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
    net = random_net(PomatoSizes(temporal_length=LENGTH), device, torch.bfloat16)
    print(to_text(list(rows(net, device, HEIGHT, WIDTH, (EARLY, LATE)))))
    return 0


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
    tokens, _ = exact_window(net, net.encode(images[:length]), length - 1, length, length)
    key = net.encode(images[length - 1 : length])

    def window(runner: PointmapNetwork) -> object:
        return exact_window(runner, runner.encode(images[:length]), length - 1, length, length)

    def frame(runner: PointmapNetwork) -> object:
        return incremental(runner, images[length:], key, tokens)

    works = {"window": (window, WINDOW_MS), "frame": (frame, FRAME_MS)}
    flops = {name: count_flops(partial(work, net)) for name, (work, _) in works.items()}
    found: dict[str, list[Row]] = {name: [] for name in works}
    runner: PointmapNetwork = net
    for way, runner in _ways(net, device):
        for name, (work, _) in works.items():
            seconds = timings(partial(work, runner), device)
            title = f"{name} ms, {height}x{width}{way}"
            found[name].append(_time_row(case, title, seconds, flops[name], rate))
    for name, (_, aim) in works.items():
        yield from _with_target(found[name], aim if AIMED_AT in case else None)
    yield from _stream_rows(runner, images, key, tokens, stream, case)


def _ways(net: PomatoNet, device: torch.device) -> Iterator[tuple[str, PointmapNetwork]]:
    """The network called in several ways, the fastest one last."""
    yield "", net
    if device.type == "cuda":
        yield ", CUDA graphs", RecordedNetwork(net)
        torch.cuda.empty_cache()
        yield ", compiled", compiled(net)
        yield ", compiled, CUDA graphs", RecordedNetwork(net)


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
    net: PointmapNetwork,
    images: Tensor,
    key: Features,
    tokens: HookTokens,
    stream: tuple[int, int],
    case: str,
) -> Iterator[Row]:
    early, late = stream
    allocated = {}
    length = net.temporal_length or 1
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

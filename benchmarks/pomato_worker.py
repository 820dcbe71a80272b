"""One process of the POMATO benchmark: pairs, or one window in the twin's way or in ours.

    python -m benchmarks.pomato_worker pairs|twin|ours WEIGHTS HEIGHT WIDTH OUT

writes seconds, peak memory and outputs to OUT.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import pomato_twin
from benchmarks.pomato_weights import relative_l2, rule_images
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap, PomatoNet
from recon4d_ros.pipeline.allocation import map_large_blocks
from recon4d_ros.predictors.pomato.network import PointmapNetwork

THREADS = 2
STRIDE = 4
GRAPH_FRAMES = 3
# Frames in the fine stage of a head at a time; on a CPU more cost memory and gain nothing.
CHUNK = 1
# Pairs decoded at a time, for the same reason.
BATCH = 2
Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds it took, and what it gave."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    Not from getrusage, which begins with the size of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def prepared(net: PomatoNet) -> PomatoNet:
    """The network in the memory order in which convolutions are fast, as the predictor has it."""
    return net.to(memory_format=torch.channels_last)


@torch.no_grad()
def pairs(net: PomatoNet, images: Tensor) -> dict[str, Any]:
    """Every directed pair of a few images, twin and ours in turn."""
    images = images[:GRAPH_FRAMES]
    fast = prepared(copy.deepcopy(net))
    features = _encode_each(fast, images)
    half = copy.deepcopy(fast).to(torch.bfloat16)
    coarse = _encode_each(half, images)
    names = "twin_s", "encode_s", "pair_s", "bf16_s"
    measured: dict[str, list[float]] = {name: [] for name in names}
    errors, bf16_errors = [], []
    number = range(GRAPH_FRAMES)
    for i, j in ((i, j) for i in number for j in number if i != j):
        seconds, wanted = timed(
            lambda i=i, j=j: pomato_twin.pair(net, images[i : i + 1], images[j : j + 1])
        )
        measured["twin_s"].append(seconds)
        wanted_points = wanted.points_1, wanted.points_2_in_1, wanted.matching_2_in_1
        measured["encode_s"].append(timed(lambda i=i: fast.encode(images[i : i + 1]))[0])
        seconds, maps = timed(lambda i=i, j=j: decode_pair(fast, features[[i]], features[[j]]))
        measured["pair_s"].append(seconds)
        errors.append(_worst(maps, wanted_points))
        seconds, maps = timed(lambda i=i, j=j: decode_pair(half, coarse[[i]], coarse[[j]]))
        measured["bf16_s"].append(seconds)
        bf16_errors.append(_worst(maps, wanted_points))
    return measured | {
        "error": max(errors),
        "bf16_error": max(bf16_errors),
    }


def decode_pair(net: PomatoNet, first: Features, second: Features) -> list[Pointmap]:
    """All pointmaps of pairs of encoded images."""
    tokens1, tokens2 = net.decode(first, second)
    branches = {1: tokens1, 2: tokens2, 3: tokens2}
    return [net.head(number, tokens, chunk=CHUNK) for number, tokens in branches.items()]


def _worst(maps: list[Pointmap], points: tuple[Tensor, ...]) -> float:
    return max(relative_l2(ours.points, b) for ours, b in zip(maps, points, strict=True))


@torch.no_grad()
def twin(net: PomatoNet, images: Tensor) -> dict[str, Any]:
    """One window from nothing."""
    length = net.temporal_length or 1
    seconds, out = timed(lambda: pomato_twin.window(net, images[None, :length], "fast_recon"))
    return {
        "window_s": seconds,
        "peak": peak_bytes(),
        "view2": out.view2_points,
        "matching": out.matching_points,
        "keyframe": out.view1_points[:, -1:],
    }


@torch.no_grad()
def ours(net: PomatoNet, images: Tensor) -> dict[str, Any]:
    """A window of a stream, STRIDE frames of it new; then one more frame, the keyframe held.

    What makes the stream cheaper is what is kept and what is not evaluated; see also `prepared`.
    """
    net = prepared(net)
    length = net.temporal_length or 1
    key = length - 1
    old = _encode_each(net, images[: length - STRIDE])
    encode_s, new = timed(lambda: _encode_each(net, images[length - STRIDE : length]))
    features = Features.cat((old, new))
    decode_s, (tokens, maps) = timed(lambda: exact_window(net, features, key))
    peak = peak_bytes()
    incremental_s, (fresh, newest, _) = timed(
        lambda: incremental(net, images[length : length + 1], features[[key]], tokens)
    )
    both = Features.cat((features[1:], fresh))
    _, again = net.decode(features[[key] * length], both)
    exact = [net.head(number, again, [length - 1]) for number in (2, 3)]
    return {
        "stride_s": encode_s + decode_s,
        "incremental_s": incremental_s,
        "incremental_error": _worst(newest, tuple(held.points for held in exact)),
        "peak": peak,
        "keyframe": maps[0].points[None],
        "view2": maps[1].points[None],
        "matching": maps[2].points[None],
    }


def _encode_each(net: PomatoNet, images: Tensor) -> Features:
    """Frames as they come, one by one."""
    return Features.cat([net.encode(image[None]) for image in images])


def exact_window(
    net: PointmapNetwork, features: Features, key: int, chunk: int = CHUNK, batch: int = BATCH
) -> tuple[HookTokens, list[Pointmap]]:
    """Tokens of the pairs (keyframe, t); head 1 of the keyframe, heads 2 and 3 of every frame."""
    length = len(features.tokens)
    parts = (
        net.decode(features[[key] * len(new.tokens)], new)
        for new in (features[start : start + batch] for start in range(0, length, batch))
    )
    tokens1, tokens2 = (HookTokens.cat(held) for held in zip(*parts, strict=True))
    first = net.head(1, tokens1, [key], chunk)
    del tokens1
    return tokens2, [first, *(net.head(number, tokens2, chunk=chunk) for number in (2, 3))]


def incremental(
    net: PointmapNetwork, image: Tensor, key: Features, tokens: HookTokens
) -> tuple[Features, list[Pointmap], HookTokens]:
    """Features, maps of heads 2 and 3 and window of the newest frame.

    It costs one encoding, one pair, and one fine stage a head.
    """
    fresh = net.encode(image)
    _, new = net.decode(key, fresh)
    window = HookTokens.cat((tokens[1:], new))
    return fresh, [net.head(number, window, [len(window) - 1]) for number in (2, 3)], window


def main() -> None:
    """Do what the command line says."""
    role, weights, height, width, out = sys.argv[1:]
    torch.set_num_threads(THREADS)
    if role == "ours":
        map_large_blocks()  # as whoever streams does
    net = PomatoNet.from_file(weights)
    number = (net.temporal_length or GRAPH_FRAMES) + 1
    images = rule_images((number, 3, int(height), int(width)), seed=7)
    roles = {"pairs": pairs, "twin": twin, "ours": ours}
    torch.save(roles[role](net, images), Path(out))


if __name__ == "__main__":
    main()

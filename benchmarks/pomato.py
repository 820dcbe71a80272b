"""The POMATO networks, full size, beside the slow twin of `pomato_twin`: time, memory, equality.

Weights are made by rule, since speed does not depend on them; two CPU threads, float32.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.pomato_weights import relative_l2, rule_net
from benchmarks.pomato_worker import GRAPH_FRAMES, STRIDE
from benchmarks.table import Row, Target
from benchmarks.workbench import ROOT, Workbench, call
from recon4d_ros.networks.pomato import PomatoNet, PomatoSizes, save_safetensors

HEIGHT, WIDTH = 288, 512
LENGTH = 12
# A window of the twin takes minutes.
ROUNDS = 2
# A clip of 12 frames, offsets 1, 3, 5, 7, 9 both ways.
CLIP_FRAMES, CLIP_PAIRS = 12, 70
EQUAL = Target(1e-4)
PAIRS = Target(2.2, "higher", goal=2.6)
STREAM = Target(1.6, "higher", goal=1.9)
INCREMENTAL = Target(4.5, "higher", goal=5.9)
MEMORY = Target(0.6)
BOTH = ("twin", "ours")


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Rows of the pairwise and of the temporal network."""
    sizes = PomatoSizes(temporal_length=LENGTH)
    yield from rows(bench.out / "pomato", sizes, HEIGHT, WIDTH)


def rows(folder: Path, sizes: PomatoSizes, height: int, width: int) -> Iterator[Row]:
    """Rows for a network of these sizes; its weights, written to `folder`, are removed again."""
    folder.mkdir(parents=True, exist_ok=True)
    pairwise, temporal = folder / "pairwise.safetensors", folder / "temporal.safetensors"
    try:
        write_weights(sizes, pairwise, temporal)
        yield from _pair_rows(_work("pairs", pairwise, height, width, 0))
        rounds = [
            [_work(role, temporal, height, width, number) for role in BOTH]
            for number in range(ROUNDS)
        ]
        yield from _window_rows(rounds)
    finally:
        for path in folder.glob("*.safetensors"):
            path.unlink()


def write_weights(sizes: PomatoSizes, pairwise: Path, temporal: Path) -> None:
    """Both networks; they share all weights but the motion modules'."""
    net = rule_net(sizes)
    save_safetensors(net, temporal)
    with torch.device("meta"):
        plain = PomatoNet(replace(sizes, temporal_length=None))
    state = net.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()}, assign=True)
    save_safetensors(plain, pairwise)


def _work(role: str, weights: Path, height: int, width: int, number: int) -> dict[str, Any]:
    """What a process of its own measured."""
    out = weights.parent / f"{role}_{number}.pt"
    module = [sys.executable, "-m", "benchmarks.pomato_worker"]
    call([*module, role, weights, height, width, out], cwd=ROOT)
    result: dict[str, Any] = torch.load(out, weights_only=True)
    out.unlink()
    return result


def _pair_rows(found: dict[str, Any]) -> Iterator[Row]:
    case = "pairwise, a clip of 12 frames, 70 pairs"
    share = CLIP_FRAMES / CLIP_PAIRS
    rounds = zip(found["twin_s"], found["encode_s"], found["pair_s"], strict=True)
    ratios = [twin / (share * image + pair) for twin, image, pair in rounds]
    encode, pair = (statistics.median(found[name]) for name in ("encode_s", "pair_s"))
    note = (
        f"computed from {len(ratios)} pairs of {GRAPH_FRAMES} frames, measured in turn: an image "
        f"{encode:.2f} s, a pair {pair:.2f} s; {_spread(ratios)}"
    )
    twin_s = statistics.median(found["twin_s"])
    peers = {"twin s": twin_s * CLIP_PAIRS, "ours s": encode * CLIP_FRAMES + pair * CLIP_PAIRS}
    yield Row("pomato", case, "times the twin", statistics.median(ratios), PAIRS, peers, note)
    yield Row("pomato", case, "difference, relative L2", found["error"], EQUAL)
    bf16 = statistics.median(found["bf16_s"])
    note = f"an option, not for comparison: difference {found['bf16_error']:.2g}"
    yield Row("pomato", case, "a pair in bf16, times ours", pair / bf16, note=note)


def _window_rows(rounds: Sequence[Sequence[dict[str, Any]]]) -> Iterator[Row]:
    twin_s = [twin["window_s"] for twin, _ in rounds]
    names = ("keyframe", "view2", "matching")
    difference = max(
        relative_l2(ours[name], twin[name]) for twin, ours in rounds for name in names
    )
    peers = {"twin s": statistics.median(twin_s)}

    case = f"temporal, fast_recon, every {STRIDE} frames"
    times = [ours["stride_s"] for _, ours in rounds]
    ratios = [a / b for a, b in zip(twin_s, times, strict=True)]
    note = f"a window {statistics.median(times):.1f} s; {_spread(ratios)}"
    yield Row("pomato", case, "times the twin", statistics.median(ratios), STREAM, peers, note)
    yield Row("pomato", case, "difference, relative L2", difference, EQUAL)

    case = "temporal, held keyframe, every frame"
    times = [ours["incremental_s"] for _, ours in rounds]
    ratios = [a / b for a, b in zip(twin_s, times, strict=True)]
    note = f"a frame {statistics.median(times):.1f} s; {_spread(ratios)}"
    yield Row(
        "pomato", case, "times the twin", statistics.median(ratios), INCREMENTAL, peers, note
    )
    error = max(ours["incremental_error"] for _, ours in rounds)
    note = "from the window of the same keyframe, computed afresh"
    yield Row("pomato", case, "difference, relative L2", error, EQUAL, note=note)

    peaks = [[held["peak"] / 2**20 for held in both] for both in rounds]
    ratios = [ours / twin for twin, ours in peaks]
    peers = {"twin MiB": statistics.median(a for a, _ in peaks)}
    note = f"{statistics.median(b for _, b in peaks):.0f} MiB; {_spread(ratios)}"
    case = f"temporal, {LENGTH} frames"
    yield Row("pomato", case, "peak RSS / twin's", statistics.median(ratios), MEMORY, peers, note)


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"

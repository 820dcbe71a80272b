"""DynPT on a CPU: milliseconds for each new frame of a stream, on torch and on ONNX Runtime.

Windows of 16 frames that move on by 4 at 256 x 144 with 512 tracks: a window costs the maps of its
4 new frames, their flow where the network starts from that, and some iterations over all 16.
Weights are drawn, since speed does not depend on them. The lowest of some rounds counts, in which
both runtimes take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.table import Row, Target
from benchmarks.workbench import Workbench
from recon4d_ros.networks.dynpt import DynPT, DynPTConfig, TrackState
from recon4d_ros.networks.dynpt.onnx_export import export_onnx
from recon4d_ros.networks.dynpt.onnx_runtime import OnnxDynPT
from recon4d_ros.networks.dynpt.refinement import Refinement
from recon4d_ros.predictors.chained_flow import flow_steps, follow, grey

SIZE, NUM_FRAMES, NUM_NEW, NUM_POINTS = (144, 256), 16, 4, 512
ROUNDS = 4
FRAME_MS = Target(60.0)


def benchmark(_: Workbench) -> Iterator[Row]:
    """Rows of the network of the specification and of the one that is shipped."""
    for name in ("small", "lean"):
        torch.manual_seed(0)
        net = DynPT(DynPTConfig.named(name)).eval().requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(net, Path(folder), SIZE, NUM_FRAMES, NUM_POINTS)
            exported = OnnxDynPT.from_folder(folder)
            yield from rows(name, net, exported)


@torch.inference_mode()
def rows(name: str, net: DynPT, exported: OnnxDynPT, rounds: int = ROUNDS) -> Iterator[Row]:
    """Rows of one network, of the faster runtime with the other one beside it."""
    runtimes: dict[str, Refinement] = {"torch": net, "onnx": exported}
    trained = net.config.iterations
    # One suffices where each window starts from the last one's result.
    for iterations in sorted({1, trained}):
        works = {key: window_work(held, iterations) for key, held in runtimes.items()}
        spent = {
            key: 1e3 * lowest / NUM_NEW for key, lowest in lowest_times(works, rounds).items()
        }
        faster = min(spent, key=lambda key: spent[key])
        yield Row(
            "dynpt",
            f"{name}, {iterations} iterations a window",
            "ms per frame",
            spent[faster],
            # The target is for the network as it was trained.
            FRAME_MS if iterations == trained else None,
            {key: value for key, value in spent.items() if key != faster},
            f"on {faster}, {torch.get_num_threads()} threads",
        )


def window_work(network: Refinement, iterations: int) -> Callable[[], object]:
    """What a window costs once the stream runs."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, NUM_FRAMES, 3, *SIZE, generator=random) * 2 - 1
    place = torch.rand(1, NUM_POINTS, 2, generator=random) * torch.tensor([SIZE[1], SIZE[0]])
    frame = torch.randint(NUM_FRAMES, (1, NUM_POINTS, 1), generator=random).float()
    queries = torch.cat([frame, place - 0.5], dim=-1)
    maps = network.encode(images)
    support = network.support(maps, queries)
    asked = queries[0].double().numpy()
    rgb = ((images[0] + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    greys = [grey(image) for image in rgb]
    known = flow_steps(greys[:-NUM_NEW])

    def work() -> object:
        network.encode(images[:, -NUM_NEW:])
        initial = None
        if network.config.needs_flow:
            steps = [*known, *flow_steps(greys[-NUM_NEW - 1 :])]
            uv, seen = (torch.from_numpy(part)[None] for part in follow(steps, asked))
            initial = TrackState.guessed(uv.float(), seen)
        return network.refine(maps, support, queries, iterations=iterations, initial=initial)

    return work


def lowest_times(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds that each takes at best, taking turns after one round that does not count."""
    lowest = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for key, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                lowest[key] = min(lowest[key], time.perf_counter() - start)
    return lowest

"""Alignment of a stream of pairs, frame by frame, beside that of all of its pairs at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory import resident_bytes
from benchmarks.table import Row, Target
from recon4d_ros.alignment import align_pairs, pair_masks
from recon4d_ros.alignment.fixed_lag import FixedLag
from recon4d_ros.config import Config
from recon4d_ros.datatypes import PairPointmaps
from recon4d_ros.evaluation import trajectory
from recon4d_ros.evaluation.masks import MaskFrame, evaluate_masks
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.pairs import NoisyPairs, RememberedPairs

CONFIG = Config()
SCENES = ("demo", "static_room")
WIDTH, FRAMES = 128, 60
NOTE = f"{FRAMES} frames of {WIDTH} px, the same pairs; 0.7 % along the ray, 0.36 px across"
ATE_RATIO, IOU_LOST = Target(1.2), Target(0.05)
# A frame at the size of the networks: the fastest of the frames after the window is full.
LARGE, TIMED_FROM, TIMED = 512, 30, 30
FRAME_MS = Target(10.0)
# A long stream of tiny images. Where time counts the camera goes there and back over few frames,
# so that each pair is made once.
LONG, TINY, TURN = 3000, 32, 5
LATE_RATIO, GROWTH = Target(1.05), Target(1.02)


def benchmark() -> Iterator[Row]:
    """Accuracy beside the offline result, and what a frame costs, early and late."""
    for name in SCENES:
        yield from _beside_offline(name)
    yield from _cost_of_a_frame()
    yield from _cost_of_a_long_stream()


# ------------------------------------------------------------------ accuracy
@dataclass(eq=False)
class _Stream:
    """A stream as it is aligned: what was handed out, and the pairs it rests on.

    Attributes:
        pairs: of all frames.
        arrival, final: poses when they came and when they stood still.
        masks: when they became final, by the pairs that had come until then.
    """

    pairs: list[PairPointmaps] = field(default_factory=list)
    arrival: dict[int, Tensor] = field(default_factory=dict)
    final: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)


def _streamed(network: NoisyPairs, count: int) -> _Stream:
    stream, evidence = _Stream(), dict[int, list[Tensor]]()
    aligner = FixedLag(CONFIG.fixed_lag, network.scene.intrinsics)
    for index in range(1, count):
        pairs = _pairs_of(network, aligner, index)
        for pair in pairs:
            evidence.setdefault(pair.second, []).append(_evidence(pair))
        recent = [frame for frame in evidence if frame > index - CONFIG.fixed_lag.lag]
        stream.masks |= {frame: pair_masks.voted(torch.stack(evidence[frame])) for frame in recent}
        evidence = {frame: evidence[frame] for frame in recent}
        stream.arrival[index] = aligner.push(index, pairs, stream.masks).T_map_cam
        stream.final |= {number: frame.T_map_cam for number, frame in aligner.frames.items()}
        stream.pairs += pairs
    return stream


def _pairs_of(network: NoisyPairs, aligner: FixedLag, index: int) -> list[PairPointmaps]:
    partners = aligner.partners(index) if index > 1 else (0,)
    ends = [ends for other in partners for ends in ((index, other), (other, index))]
    return [network.pair(*each) for each in ends]


def _evidence(pair: PairPointmaps) -> Tensor:
    assert pair.matching_2 is not None
    maps = (x[None] for x in (pair.points_2, pair.matching_2, pair.confidence_2.log()))
    return pair_masks.pair_evidence(*maps, CONFIG.motion)[0]


def _beside_offline(name: str) -> Iterator[Row]:
    network = NoisyPairs(scenes.named(name, FRAMES, WIDTH))
    stream = _streamed(network, FRAMES)
    offline = align_pairs(
        edges=torch.tensor([(pair.first, pair.second) for pair in stream.pairs]),
        **_stacked(stream.pairs),
        intrinsics=network.scene.intrinsics,
        config=CONFIG,
    )
    known = dict(enumerate(offline.T_world_cam))
    peer, ours = _ate(network, known), _ate(network, stream.final)
    case = f"{name}, incremental"
    peers = {"offline": peer, "on arrival": _ate(network, stream.arrival)}
    yield Row("alignment", case, "ATE", ours, None, peers, NOTE)
    yield Row("alignment", case, "ATE over offline", ours / peer, ATE_RATIO)
    frames = range(1, FRAMES)
    moving = [network.moving(index) for index in frames]
    found = [stream.masks[index] for index in frames]
    held = [offline.dynamic_mask[index] for index in frames]
    if torch.stack(moving).any():
        peer, ours = _iou(held, moving), _iou(found, moving)
        yield Row("alignment", case, "mask IoU", ours, None, {"offline": peer})
        yield Row("alignment", case, "mask IoU lost", peer - ours, IOU_LOST)
    else:
        flagged = float(torch.stack(found).double().mean())
        yield Row("alignment", case, "pixels flagged", flagged, Target(0.01))


def _stacked(pairs: Sequence[PairPointmaps]) -> dict[str, Tensor]:
    return {
        "points_1": torch.stack([pair.points_1 for pair in pairs]),
        "conf_1": torch.stack([pair.confidence_1 for pair in pairs]),
        "points_2_in_1": torch.stack([pair.points_2 for pair in pairs]),
        "conf_2": torch.stack([pair.confidence_2 for pair in pairs]),
        "matching_2_in_1": torch.stack(
            [pair.matching_2 for pair in pairs if pair.matching_2 is not None]
        ),
    }


def _ate(network: NoisyPairs, poses: Mapping[int, Tensor]) -> float:
    """RMSE of the positions after the best similarity, metres."""
    truth = np.stack([network.T_world_cam(index).numpy() for index in poses])
    found = np.stack([T.numpy() for T in poses.values()])
    errors = trajectory.absolute_errors(trajectory.align(trajectory.pair_by_index(truth, found)))
    return float(np.sqrt((errors**2).mean()))


def _iou(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    pairs = zip(truth, found, strict=True)
    return evaluate_masks([MaskFrame(t.numpy(), f.numpy()) for t, f in pairs]).iou


# ------------------------------------------------------------------ cost
def _timed(width: int, count: int) -> tuple[list[float], list[float], list[float]]:
    """Wall and processor seconds of each push, and resident MiB after it; nothing is rendered."""
    network = RememberedPairs(scenes.named("static_room", FRAMES, width), frame_of=_there_and_back)
    aligner = FixedLag(CONFIG.fixed_lag, network.scene.intrinsics)
    wall, processor, memory = [], [], []
    for index in range(1, count):
        pairs = _pairs_of(network, aligner, index)
        begin = time.perf_counter(), time.process_time()
        aligner.push(index, pairs)
        wall.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
        memory.append(resident_bytes() / 2**20)
    return wall, processor, memory


def _cost_of_a_frame() -> Iterator[Row]:
    wall, _, _ = _timed(LARGE, TIMED_FROM + TIMED)
    settled = sorted(1000 * seconds for seconds in wall[TIMED_FROM:])
    yield Row(
        "alignment",
        f"{LARGE} px wide, incremental",
        "ms per frame",
        settled[0],
        FRAME_MS,
        {"median": float(np.median(settled))},
        f"fastest of {len(settled)} frames, {CONFIG.fixed_lag.num_samples} samples per pair, "
        f"{torch.get_num_threads()} threads",
    )


def _cost_of_a_long_stream() -> Iterator[Row]:
    _, processor, memory = _timed(TINY, LONG)
    part = LONG // 6
    early, late = (1000 * float(np.median(cost)) for cost in (processor[:part], processor[-part:]))
    case = f"{LONG} frames, incremental"
    note = f"medians of processor time per frame, {early:.2f} and {late:.2f} ms"
    yield Row("alignment", case, "cost, last over first sixth", late / early, LATE_RATIO, {}, note)
    grown, note = memory[-1] / memory[part], f"{memory[part]:.0f} and {memory[-1]:.0f} MiB"
    yield Row("alignment", case, "memory, last over first sixth", grown, GROWTH, {}, note)


def _there_and_back(index: int) -> int:
    phase = index % (2 * TURN - 2)
    return min(phase, 2 * TURN - 2 - phase)

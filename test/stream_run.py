"""Running a whole `Reconstructor` over a stream, and comparing what came out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, MapEvent, Reconstruction
from recon4d_ros.pipeline.reconstructor import Reconstructor

SMALL = Config().replaced(
    {
        "image.tracking_max_side": 320,
        "image.dense_max_side": 160,
        "compute.opencv_threads": 1,
        "map.max_voxels": 20_000,
    }
)


@dataclass
class Run:
    """Everything a stream gave; finals with the number of the frame whose step gave them."""

    provisional: list[Reconstruction] = field(default_factory=list)
    final: list[tuple[int, Reconstruction]] = field(default_factory=list)
    events: list[MapEvent] = field(default_factory=list)

    def step(self, reconstructor: Reconstructor, frame: Frame) -> None:
        out = reconstructor.step(frame)
        self.provisional.append(out.provisional)
        self.final += [(frame.index, each) for each in out.final]
        self.events += out.events

    def finals(self) -> list[Reconstruction]:
        return [each for _, each in self.final]


def run(reconstructor: Reconstructor, stream: Iterable[Frame], finish: bool = True) -> Run:
    done, last = Run(), -1
    for frame in stream:
        done.step(reconstructor, frame)
        last = frame.index
    if finish:
        final, events = reconstructor.finish()
        done.final += [(last + 1, each) for each in final]
        done.events += events
    return done


def same(first: Reconstruction, second: Reconstruction) -> bool:
    """Bit-identical in everything that is computed."""
    if (first.T_map_cam is None) != (second.T_map_cam is None):
        return False
    tensors = [(getattr(first, n), getattr(second, n)) for n in ("depth", "confidence")]
    tensors += [(first.dynamic_mask, second.dynamic_mask), (first.filled, second.filled)]
    if first.T_map_cam is not None and second.T_map_cam is not None:
        tensors.append((first.T_map_cam, second.T_map_cam))
    plain = ("is_final", "state", "submap", "num_support", "intrinsics", "intrinsics_source")
    return all(_equal(a, b) for a, b in tensors) and all(
        getattr(first, name) == getattr(second, name) for name in plain
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, nan=-1.0), torch.nan_to_num(b, nan=-1.0))


def ate(found: list[Reconstruction], truth: list[Tensor]) -> float:
    """RMSE of the positions after the best similarity, in the units of the truth."""
    posed = [
        (r.T_map_cam[:3, 3], truth[r.frame.index][:3, 3]) for r in found if r.T_map_cam is not None
    ]
    ours, exact = (torch.stack(points) for points in zip(*posed, strict=True))
    R, t, s = umeyama(ours.numpy(), exact.numpy())
    error = s * ours.numpy() @ R.T + t - exact.numpy()
    return float(np.sqrt((error**2).sum(axis=1).mean()))


def umeyama(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation, translation and scale of the best similarity (Umeyama, PAMI 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    U, d, Vt = np.linalg.svd(b.T @ a / len(a))
    S = np.diag([1.0, 1.0, np.linalg.det(U @ Vt)])
    R = U @ S @ Vt
    scale = float((d * np.diag(S)).sum() / (a**2).sum(axis=1).mean())
    return R, target.mean(0) - scale * R @ source.mean(0), scale

"""The first second of real sequences through the whole reconstruction, at the usual sizes."""

from dataclasses import replace
from functools import cache, partial
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from real_sequence import RealSequence, require
from stream_run import ate, run

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Reconstruction, TrackingState
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.storage.dataset import SequenceFolder

LENGTH = 30

pytestmark = pytest.mark.data


@cache
def reconstructed(name: str) -> tuple[RealSequence, list[Reconstruction], list[Reconstruction]]:
    sequence = RealSequence(name, list(range(LENGTH)))
    done = run(build_reconstructor(Config()), [sequence.frame(i) for i in range(LENGTH)])
    return sequence, done.provisional, done.finals()


def depth_error(
    sequence: RealSequence, final: list[Reconstruction], still: list[torch.Tensor]
) -> float:
    """Mean relative error with one scale for the sequence, over still pixels, of known frames."""
    pairs = []
    for result in final:
        exact_depth = sequence.depths[result.frame.index].float()
        known = result.depth.isfinite() & exact_depth.isfinite() & still[result.frame.index]
        pairs.append((result.depth[known], exact_depth[known]))
    ours, exact = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    scale = (exact / ours).median()
    return float((scale * ours / exact - 1).abs().mean())


def still_pixels(name: str, size: tuple[int, int]) -> list[torch.Tensor]:
    folder = require(name) / "masks"
    if not folder.is_dir():
        return [torch.ones(size, dtype=torch.bool)] * LENGTH
    masks = [cv2.imread(str(path), 0) for path in sorted(folder.iterdir())[:LENGTH]]
    smaller = [cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA) for mask in masks]
    return [torch.from_numpy(mask) == 0 for mask in smaller]


@pytest.mark.parametrize(
    ("name", "worst_ate", "worst_depth"),
    [("icl_livingroom1", 0.004, 0.09), ("rendered/room_walkers", 0.001, 0.035)],
)
def test_poses_and_depth_of_real_images(name, worst_ate, worst_depth):
    """Measured: 0.0013 m and 0.054; 0.0003 m and 0.020."""
    sequence, provisional, final = reconstructed(name)
    states = [r.state for r in provisional]
    start = states.index(TrackingState.TRACKING)
    assert TrackingState.LOST not in states
    known = [r for r in final if r.frame.index >= start]
    errors = ate(known, list(sequence.poses)), ate(provisional[start:], list(sequence.poses))
    relative = depth_error(sequence, known, still_pixels(name, sequence.view.size))
    share = np.mean([float(r.depth.isfinite().float().mean()) for r in known])
    print(f"{name}: start {start}, ATE {errors}, AbsRel {relative:.4f}, valid {share:.2f}")
    assert errors[0] < worst_ate
    assert errors[1] < 2 * worst_ate
    assert relative < worst_depth
    assert share > 0.6


def test_walkers_do_not_take_the_first_poses_along():
    """From the eighth image on, two people fill what is near; the first structure must wait.

    Measured: 0.009 m of a spread of 0.10 m. Taken from two images, it took the camera the wrong
    way for good: 0.08 m.
    """
    folder = SequenceFolder(require("tum_fr3_walking_halfsphere_clip"))
    frames = [replace(f, index=f.index - 7) for f in islice(folder, 7, 37)]
    found = run(build_reconstructor(Config()), frames).finals()
    truth = folder.truth.trajectory()
    places = {int(s): T for s, T in zip(truth.stamps_ns, truth.T_world_cam, strict=True)}
    exact = [places[min(places, key=partial(gap, frame.stamp_ns))] for frame in frames]
    error = ate(found, exact)
    print(f"ATE {error:.4f}")
    assert error < 0.02


def gap(one: int, other: int) -> int:
    return abs(one - other)

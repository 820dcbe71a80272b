"""What pairs say of the sampled pixels, ready for residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.samples import Samples


@dataclass(frozen=True, eq=False)
class Observations:
    """What the pairs say of the samples; weights are shares of the mean one.

    Attributes:
        own: (E, 3, P) points of the samples of the first frame.
        own_weight: (E, P).
        other: (E, 3, P) points of the samples of the second frame.
        other_weight: (E, P).
        matched: (E, 2, P) matched directions of the samples of the second frame.
        matched_weight: (E, P), zero everywhere without matching.
    """

    own: Tensor
    own_weight: Tensor
    other: Tensor
    other_weight: Tensor
    matched: Tensor
    matched_weight: Tensor


def observe(pairs: Pairs, samples: Samples, confirmed: Tensor | None) -> Observations:
    """What the pairs say of the samples.

    Args:
        pairs: predictions.
        samples: pixels to use.
        confirmed: (E, H, W) bool, where matches count; None only without matching.
    """
    i, j = pairs.edges.T
    own, other = (
        (_planes(samples, view.points, frames), _share(samples, view.weight, frames))
        for view, frames in ((pairs.first, i), (pairs.second, j))
    )
    if pairs.matching is None or confirmed is None:
        matched, matched_weight = torch.zeros_like(other[0]), torch.zeros_like(other[1])
        matched[:, 2] = 1.0
    else:
        matched = _planes(samples, pairs.matching.points, j)
        matched_weight = _share(samples, pairs.matching.weight * confirmed, j)
        matched_weight = torch.where(matched[:, 2] > 0, matched_weight, 0.0)
        matched = torch.where(matched[:, 2:] > 0, matched, 1.0)
    return Observations(*own, *other, matched[:, :2] / matched[:, 2:], matched_weight)


def _planes(samples: Samples, points: Tensor, frames: Tensor) -> Tensor:
    """Points (E, 3, P) float32 at the samples."""
    return samples.gather(points, frames).mT.contiguous()


def _share(samples: Samples, weight: Tensor, frames: Tensor) -> Tensor:
    """Weights at the samples over the mean of those above zero; zero where there is no sample."""
    found = samples.gather(weight, frames) * samples.valid[frames]
    mean = found[found > 0].mean() if bool((found > 0).any()) else 1.0
    return found / mean

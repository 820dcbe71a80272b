"""What the alignment of a clip gives, and what a user must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.fast import Noise
from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.spanning_tree import Chain
from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import AlignmentError

# Points that disagree by more, over their distance, are hardly points of one world.
_DISAGREEMENT = 0.1


@dataclass(frozen=True)
class AlignmentReport:
    """How an alignment went.

    Attributes:
        method: fast or adam.
        losses: the objectives at the end, unweighted (ga, cma, cts, and pts if smoothed), and
            the weighted total of the first three; cma is the sum of both directions, and the
            mean scale of the pairs is 0.5.
        iterations: steps made, over both stages.
        stop_reason: why they ended.
        seconds: wall time.
        notes: what a user must know: pairs left out, frames without static pixels, no parallax.
    """

    method: str
    losses: Mapping[str, float]
    iterations: int
    stop_reason: str
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PairAlignment:
    """A clip of N frames in one world; the first camera is its origin, its unit is free.

    Attributes:
        T_world_cam: (N, 4, 4) float64.
        intrinsics: of all frames.
        depth: (N, H, W) float32 z-depth, NaN where no pair knows any.
        dynamic_mask: (N, H, W) bool, the mask of frame n on the pixels of frame n.
        report: how it went.
    """

    T_world_cam: Tensor
    intrinsics: Intrinsics
    depth: Tensor
    dynamic_mask: Tensor
    report: AlignmentReport


def notes(
    pairs: Pairs, chain: Chain, noise: Noise, crowded_out: tuple[int, ...], min_baseline: float
) -> tuple[str, ...]:
    """Sentences on what the result does not rest on.

    Args:
        pairs: predictions.
        chain: poses and depths at the samples.
        noise: disagreement of the points at the end.
        crowded_out: frames with too few static pixels.
        min_baseline: movement over the depth below which there is no parallax.
    """
    found = list(pairs.notes)
    for frame in crowded_out:
        found.append(
            f"frame {frame} has too few static pixels; its pose rests on all of its pixels and "
            "is only as good as the network's points of what moves"
        )
    if pairs.matching is None:
        found.append(
            "no matching was given; the masks hold only points that contradict the alignment"
        )
    if pairs.num_frames > 1 and _spread(chain) < min_baseline:
        found.append(
            f"the camera centres differ by {_spread(chain):.2g} of the depth only: the camera "
            "stands or turns, and the shape of its path means nothing"
        )
    if max(noise.other_along, noise.other_across) > _DISAGREEMENT:
        found.append(
            f"the pairs' points disagree by {noise.other_along:.2g} along and "
            f"{noise.other_across:.2g} across the ray, over the distance; the result is unreliable"
        )
    return tuple(found)


def check_finite(chain: Chain) -> None:
    """Refuse a result with a number that is none.

    Raises:
        AlignmentError: it has one.
    """
    parts = {"poses": chain.T_world_cam, "scales": chain.log_scale, "focal": chain.focal_px}
    for name, values in parts.items():
        if not bool(values.isfinite().all()):
            raise AlignmentError(
                f"the {name} of the alignment are not finite; the pairs' points contradict each "
                "other beyond what the steps can reach"
            )


def _spread(chain: Chain) -> float:
    """Largest distance from the mean camera centre, over the median depth."""
    centre = chain.T_world_cam[:, :3, 3]
    away = torch.linalg.vector_norm(centre - centre.mean(dim=0), dim=-1).max()
    return float(away / chain.log_depth.nanmedian().exp())

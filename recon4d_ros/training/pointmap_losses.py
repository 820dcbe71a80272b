"""Losses of pointmaps with confidence.

Source: DUSt3R, arXiv 2312.14132, equations 2 to 4; POMATO, arXiv 2504.05692, sections 3.2 and 3.3
(the matching pointmap, and windows in one unit per clip and per frame).
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.networks.pomato import PairOutput
from recon4d_ros.training.masked import masked_mean
from recon4d_ros.training.pointmap_targets import PointmapTargets

_LEAST_UNIT = 1e-6


def pointmap_losses(
    said: PairOutput, true: PointmapTargets, group: int, alpha: float
) -> dict[str, Tensor]:
    """Loss () of each of the three maps, in the mean distance of the points as the unit.

    The unit is one for `group` successive pairs and the same for all three maps of a pair. The
    published loss gives the matching map one of its own; then nothing would hold heads 2 and 3,
    whose difference tells what moves, to one scale.

    Args:
        said: P pairs, float32.
        true: the same pairs.
        group: pairs with one unit, 1 or the length of a window.
        alpha: weight of the logarithm of the confidence.
    """
    unit_said = units(said.points_1, said.points_2_in_1, true, group)
    unit_true = units(true.points_1, true.points_2_in_1, true, group)
    maps = {
        "points_1": (said.points_1, said.conf_1, true.points_1),
        "points_2": (said.points_2_in_1, said.conf_2, true.points_2_in_1),
        "matching": (said.matching_2_in_1, said.conf_matching, true.matching_2_in_1),
    }
    return {
        name: confident_loss(points / unit_said, confidence, target / unit_true, alpha)
        for name, (points, confidence, target) in maps.items()
    }


def confident_loss(points: Tensor, confidence: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Mean () over known pixels of C ||x - X|| - alpha log C.

    Args:
        points: (P, H, W, 3) x.
        confidence: (P, H, W) C, above 1.
        target: (P, H, W, 3) X, NaN where unknown.
        alpha: as above.
    """
    known = target.isfinite().all(dim=-1)
    # A harmless target keeps the gradient finite where none is known.
    difference = points - torch.where(known[..., None], target, points.detach() + 1.0)
    distance = torch.linalg.vector_norm(difference, dim=-1)
    return masked_mean(confidence * distance - alpha * confidence.log(), known)


def units(points_1: Tensor, points_2: Tensor, true: PointmapTargets, group: int) -> Tensor:
    """Mean distance (P, 1, 1, 1) from the camera of the known points of both maps.

    It is taken over `group` successive pairs and repeated for each.
    """
    total, count = points_1.new_zeros(len(points_1)), points_1.new_zeros(len(points_1))
    for points, target in ((points_1, true.points_1), (points_2, true.points_2_in_1)):
        known = target.isfinite().all(dim=-1)
        distance = torch.linalg.vector_norm(torch.where(known[..., None], points, 1.0), dim=-1)
        total = total + (distance * known).sum(dim=(1, 2))
        count = count + known.sum(dim=(1, 2))
    total, count = (torch.unflatten(part, 0, (-1, group)).sum(dim=1) for part in (total, count))
    unit = (total / count.clamp(min=1)).clamp(min=_LEAST_UNIT)
    return unit.repeat_interleave(group)[:, None, None, None]

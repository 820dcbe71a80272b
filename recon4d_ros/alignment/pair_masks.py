"""Which pixels move, by what pairs say of them: points at two times, or points out of place.

Source: POMATO, arXiv 2504.05692, section 3.3: a displacement of more than three medians. It is
measured in units of its noise, along the ray and across it, above a floor; the pairs of a frame
are joined so that one noisy pair flags nothing alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.config import MotionConfig
from recon4d_ros.geometry.displacement import displacement

# Squared displacement over its threshold with which a single pair is believed.
LOUD = 4.0


def pair_evidence(points: Tensor, moved: Tensor, weight: Tensor, config: MotionConfig) -> Tensor:
    """Squared displacement over its threshold (E, H, W); above 1 speaks for motion, NaN for none.

    Args:
        points: (E, H, W, 3) in one camera per pair.
        moved: (E, H, W, 3) the same surface points at another time, or where they should be.
        weight: (E, H, W) pixels of weight zero are unknown.
        config: factor over the median, and the noise that is always granted.

    Raises:
        GeometryError: wrong shapes.
    """
    known = torch.where((weight > 0).unsqueeze(-1), points, torch.nan)
    return displacement(known, moved, config.matching_floor).excess(config.matching_factor)


def joined_masks(evidence: Tensor, pairs: Pairs) -> Tensor:
    """Masks (N, H, W) bool of all frames.

    The points of pair (i, j) that show the pixels of j decide on frame j. A pixel moves when two
    pairs say so, or one says it loudly, or the only one that knows it does.

    Args:
        evidence: (E, H, W), see `pair_evidence`.
        pairs: the pairs it is of.
    """
    frames = range(pairs.num_frames)
    return torch.stack([voted(evidence[pairs.edges[:, 1] == frame]) for frame in frames])


def voted(evidence: Tensor) -> Tensor:
    """Mask (H, W) bool of one frame by the evidence (E, H, W) of its pairs, if any."""
    count = (evidence > 1).sum(dim=0)
    known = evidence.isfinite().sum(dim=0)
    return (count >= 2) | ((count == 1) & (known == 1)) | (evidence > LOUD).any(dim=0)


def matched_masks(pairs: Pairs, config: MotionConfig) -> Tensor:
    """Masks (N, H, W) bool by pointmap matching; nothing moves where no pair matches pointmaps."""
    if pairs.matching is None:
        return torch.zeros(pairs.num_frames, *pairs.size, dtype=torch.bool)
    weight = torch.minimum(pairs.second.weight, pairs.matching.weight)
    evidence = pair_evidence(pairs.second.points, pairs.matching.points, weight, config)
    return joined_masks(evidence, pairs)

"""What a network's pointmap matching says about which pixels move.

Head 2 gives the points of a frame at its own time, head 3 the same surface points at the time of
another frame, both in one camera: where they differ by more than the noise, the surface moved.

Source: POMATO, arXiv 2504.05692, section 3.3 (more than three times the median difference). The
noise of each direction, its floor and the absolute test are ours, see
docs/adr/0005-pomato-streaming.md.
"""

from __future__ import annotations

import numpy as np
import torch

from recon4d_ros.config import MotionConfig
from recon4d_ros.datatypes import Matching
from recon4d_ros.geometry.displacement import displacement
from recon4d_ros.motion.epipolar_pair import PairEvidence

# Points so noisy, over their distance, say nothing of motion.
MAX_ACROSS, MAX_ALONG = 0.01, 0.1
# Share of the median confidence (what exceeds 1) from which on a pixel votes.
MIN_CONFIDENCE_SHARE = 0.3
# Both maps come from a network that knows depth: such a pair needs no second one to be believed.
LOUDNESS = 2.0
# Distances over the bound beyond this say no more, and their square stays finite.
MAX_RATIO = 1e6


def paper_evidence(matching: Matching, config: MotionConfig) -> PairEvidence:
    """Vote of one pair by the paper's own rule: farther than so many medians of all distances.

    It has no floor and no noise along the ray, so it flags some pixels of a wholly static pair,
    too, and everything is static where more than half of the view moves.
    """
    distance = (matching.matching - matching.points).norm(dim=-1)
    known = distance.isfinite()
    median = distance[known].median() if bool(known.any()) else torch.ones(())
    bound = (config.matching_factor * median).clamp_min(torch.finfo(torch.float32).tiny)
    evidence = torch.where(known, distance / bound, 0.0).clamp_max(MAX_RATIO) ** 2
    return PairEvidence(matching.source, matching.target, evidence.numpy(), known.numpy())


def matching_evidence(matching: Matching, config: MotionConfig) -> PairEvidence | None:
    """Vote of one pair on the pixels of its source; None when its points are too noisy for one."""
    found = displacement(matching.points, matching.matching, config.matching_floor)
    if not (found.sigma_across <= MAX_ACROSS and found.sigma_along <= MAX_ALONG):
        return None
    known = found.squared.isfinite()
    excess = matching.confidence - 1.0
    decided = known & (excess >= MIN_CONFIDENCE_SHARE * excess[known].median())
    excess_of_motion = found.excess(config.matching_factor).numpy()
    evidence = np.nan_to_num(np.asarray(excess_of_motion, dtype=np.float32))
    return PairEvidence(matching.source, matching.target, evidence, decided.numpy(), LOUDNESS)

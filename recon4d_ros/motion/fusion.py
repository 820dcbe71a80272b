"""Joining the votes of several pairs, and of other frames, into one belief per pixel.

A plain union multiplies false positives: a share of 0.3 % per pair becomes 3 % with ten pairs.
So evidence is summed as logarithms, bounded both ways: one pair can shout only so loud, and since
a thing may rest in one pair and move in another, silence speaks less loud than motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.datatypes import FlowField
from recon4d_ros.motion.epipolar_pair import PairEvidence

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Bounds of one pair's vote and of the belief, in units of log(residual^2 / threshold^2).
MOTION_VOTE = 2.0
REST_VOTE = 0.4
# Share of that logarithm in a vote for rest: what moves a little speaks for rest a little.
REST_SHARE = 0.1
BELIEF_BOUND = 6.0
# A moving part holds at least one pixel believed to move as if two pairs had shouted so.
SEED_BELIEF = 3.5


@dataclass(frozen=True, eq=False)
class Votes:
    """What some pairs say together of the pixels of one frame.

    Attributes:
        belief: (H, W) float32, > 0 speaks for motion.
        evidence: (H, W) float32, the largest squared residual over its threshold.
        decided: (H, W) bool, at least one pair could vote.
        unrest: (H, W) float32, on how many sides, past and later, frames were looked at and do
            not show an undecided pixel where it would be at rest.
    """

    belief: Floats
    evidence: Floats
    decided: Bools
    unrest: Floats

    def louder(self, num_pairs: int, num_judged: int) -> Votes:
        """The judged pairs speak for those that were left out, too."""
        factor = np.float32(num_pairs / max(num_judged, 1))
        return replace(self, belief=factor * self.belief)


def join(pairs: Sequence[PairEvidence], size: tuple[int, int]) -> Votes:
    """Votes of pairs that share their source frame; none at all leave all undecided."""
    none = np.zeros(size, np.float32)
    votes = Votes(none, none, np.zeros(size, np.bool_), none)
    for pair in pairs:
        votes = add(votes, _votes_of(pair))
    return votes


def add(one: Votes, other: Votes) -> Votes:
    """Votes of both."""
    return Votes(
        one.belief + other.belief,
        np.maximum(one.evidence, other.evidence),
        one.decided | other.decided,
        one.unrest + other.unrest,
    )


def remember(votes: Votes, belief_there: Floats, there: FlowField, memory: float) -> Votes:
    """Votes that also heed what is believed of the same surface in another frame.

    Args:
        votes: of this frame.
        belief_there: (H, W) belief of the other frame.
        there: flow from this to the other frame.
        memory: share of the belief that is handed on.
    """
    belief = votes.belief + memory * carried(belief_there, there)
    return replace(votes, belief=np.clip(belief, -BELIEF_BOUND, BELIEF_BOUND))


def carried(belief_there: Floats, there: FlowField) -> Floats:
    """Belief (H, W) of another frame, at the pixels that see the same surface; elsewhere 0.

    Args:
        belief_there: (H, W) of the other frame.
        there: flow from this to the other frame.
    """
    flow = there.flow.numpy()
    height, width = flow.shape[:2]
    u = flow[..., 0] + np.arange(width, dtype=np.float32)
    v = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    moved = cv2.remap(belief_there, u, v, cv2.INTER_LINEAR)
    return np.where(there.valid.numpy(), moved, np.float32(0))


def hysteresis(votes: Votes) -> Bools:
    """Pixels believed to move, in connected parts that hold a strong belief."""
    weak = votes.belief > 0
    return grown(weak & (votes.belief > SEED_BELIEF), weak)


def grown(seeds: Bools, weak: Bools) -> Bools:
    """The connected parts of the weak pixels that hold a seed."""
    count, labels = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    seeded = np.zeros(count, np.bool_)
    seeded[labels[weak & seeds]] = True
    return np.asarray(seeded[labels] & weak)


def union(votes: Votes) -> Bools:
    """Pixels that any pair calls moving."""
    return np.asarray(votes.decided & (votes.evidence > 1))


def _votes_of(pair: PairEvidence) -> Votes:
    evidence = np.where(pair.decided, pair.evidence, 0).astype(np.float32)
    vote = np.log(np.clip(evidence, np.exp(-REST_VOTE / REST_SHARE), np.exp(MOTION_VOTE)))
    vote = np.where(pair.decided, np.maximum(vote, REST_SHARE * vote), np.float32(0))
    vote *= np.float32(pair.loudness)
    return Votes(vote, evidence, pair.decided, np.zeros_like(vote))

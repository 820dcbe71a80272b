"""Which stored keyframes may show the place that a new one shows; a bag of binary words.

No vocabulary is learned: a word is a fixed choice of bits of an ORB descriptor, which two views of
one point have in common far more often than two points do (locality-sensitive hashing: Gionis,
Indyk and Motwani, VLDB 1999). Words that all keyframes have in common count for little (Sivic and
Zisserman, Video Google, ICCV 2003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore

_TABLES = 16
_WORD_BITS = 12
# Fixed for ever, so that equal input gives equal output.
_SEED = 0


def _chosen_bits() -> NDArray[np.int64]:
    """(tables, bits) positions in a descriptor of 256 bits."""
    order = np.random.default_rng(_SEED).permutation(256)
    return order[: _TABLES * _WORD_BITS].reshape(_TABLES, _WORD_BITS)


_BITS = _chosen_bits()


def words(descriptors: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Distinct words (W,), ascending, of ORB descriptors (P, 32)."""
    bits = np.unpackbits(descriptors, axis=1)[:, _BITS]
    value = bits @ (1 << np.arange(_WORD_BITS))
    number = value + (np.arange(_TABLES) << _WORD_BITS)
    return np.unique(number).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Places:
    """The words of the stored keyframes.

    Attributes:
        words: of each keyframe, by its frame number.
    """

    words: Mapping[int, NDArray[np.uint16]] = field(default_factory=dict)

    def of(self, store: KeyframeStore) -> Places:
        """The same for another store; only keyframes that are new to it are described."""
        known = self.words
        return Places(
            {
                kf.index: known[kf.index] if kf.index in known else words(kf.descriptors)
                for kf in store.keyframes
            }
        )

    @property
    def num_bytes(self) -> int:
        """Memory of all words."""
        return sum(each.nbytes for each in self.words.values())


def candidates(
    query: Keyframe, store: KeyframeStore, places: Places, min_gap: int, count: int
) -> tuple[Keyframe, ...]:
    """At most `count` keyframes of the query's submap that resemble it most, the best first.

    The geometric check decides, so the number is fixed and no likeness is too small.

    Args:
        query: the new keyframe, in the store.
        store: all keyframes.
        places: their words.
        min_gap: frames; keyframes nearer in time are neighbours, not places found again.
        count: bound.
    """
    old = [
        kf
        for kf in store.keyframes
        if kf.submap == query.submap and query.index - kf.index >= min_gap
    ]
    if not old or len(query.descriptors) == 0:
        return ()
    likeness = _likeness(places.words[query.index], [places.words[kf.index] for kf in old], places)
    # Of equals the newest first: the light has changed least since.
    order = sorted(range(len(old)), key=lambda row: (-likeness[row], -row))[:count]
    return tuple(old[row] for row in order if likeness[row] > 0)


def _likeness(
    query: NDArray[np.uint16], others: list[NDArray[np.uint16]], places: Places
) -> NDArray[np.float64]:
    """(M,) cosine of the weighted words."""
    rarity = _rarity(places)
    own = rarity[query].sum()
    own_rarity = np.zeros_like(rarity)
    own_rarity[query] = rarity[query]
    shared = np.array([own_rarity[other].sum() for other in others])
    size = np.array([rarity[other].sum() for other in others])
    likeness: NDArray[np.float64] = shared / np.sqrt(np.maximum(own * size, 1e-12))
    return likeness


def _rarity(places: Places) -> NDArray[np.float64]:
    """Squared weight of every word: logarithm of the share of keyframes that have it."""
    held = np.zeros(_TABLES << _WORD_BITS)
    for each in places.words.values():
        held[each] += 1.0
    total = len(places.words)
    weight = np.log((total + 1.0) / np.maximum(held, 1.0))
    squared: NDArray[np.float64] = weight**2
    return squared

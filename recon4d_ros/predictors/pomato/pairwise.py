"""The pairwise model on a stream: each new frame against a few past ones and the keyframe."""

from __future__ import annotations

from collections.abc import Collection

from recon4d_ros.networks.pomato import Features, Pointmap
from recon4d_ros.predictors.pomato.edge import RawEdge
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.temporal import Held

# Partners of a new frame, in frames before it: near ones for fast motion, far ones for slow.
OFFSETS = (1, 3, 7)


def partners(index: int, key: int, known: Collection[int]) -> list[int]:
    """Frames that a new one is paired with: the keyframe first, then the nearest."""
    past = [index - offset for offset in OFFSETS]
    return [key, *(frame for frame in past if frame in known and frame != key)]


class PairwiseModel:
    """Decodes pairs in batches and evaluates their heads; keeps no state."""

    def __init__(self, engine: Engine) -> None:
        """Use a pairwise network."""
        self._engine = engine

    def alone(self, index: int, features: Features) -> tuple[RawEdge, None]:
        """A frame paired with itself: its own map (head 1)."""
        tokens, _ = self._engine.decode(features, features)
        points, conf = self._engine.head(1, tokens)
        return RawEdge(index, index, Pointmap(points[0], conf[0]), None), None

    def arrived(
        self, index: int, features: Features, held: Held, matching: bool
    ) -> tuple[list[RawEdge], None]:
        """A new frame seen from the keyframe and from its partners, in one batch."""
        others = partners(index, held.key, held.features)
        first = Features.cat([held.features[other] for other in others])
        second = Features(features.tokens.expand(len(others), -1, -1), features.grid)
        _, tokens = self._engine.decode(first, second)
        now = self._engine.head(2, tokens)
        then = self._engine.head(3, tokens) if matching else None
        return RawEdge.of_batch([index] * len(others), others, now, then), None

"""The temporal model on a stream: a ring of decoded pairs against one held keyframe.

A pair (keyframe, frame) never changes while the keyframe is held, so its tokens are kept; a new
frame costs one encoding, one pair and the fine part of one frame of each head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recon4d_ros.networks.pomato import Features, HookTokens
from recon4d_ros.predictors.pomato.edge import RawEdge
from recon4d_ros.predictors.pomato.engine import Engine


@dataclass(frozen=True, eq=False)
class Ring:
    """The latest frames, each decoded as second view of a pair with the keyframe.

    Attributes:
        key: number of the keyframe; it may be older than the ring.
        indices: frame numbers, oldest first.
        tokens: of branch 2, one pair each, on the device.
    """

    key: int
    indices: tuple[int, ...]
    tokens: tuple[HookTokens, ...]

    def pushed(self, index: int, tokens: HookTokens, length: int) -> Ring:
        """With one more frame; the oldest beyond `length` leaves."""
        indices, held = (*self.indices, index), (*self.tokens, tokens)
        return Ring(self.key, indices[-length:], held[-length:])


@dataclass(frozen=True, eq=False)
class Held:
    """What a new frame is decoded with.

    Attributes:
        key: number of the keyframe.
        features: of the keyframe and of past frames, oldest first.
        ring: of the temporal model.
    """

    key: int
    features: Mapping[int, Features]
    ring: Ring | None


class TemporalModel:
    """Decodes frames against a keyframe and evaluates heads on the ring; keeps no state."""

    def __init__(self, engine: Engine, length: int) -> None:
        """Use a network with windows of `length` frames."""
        self._engine = engine
        self._length = length

    def alone(self, index: int, features: Features) -> tuple[RawEdge, Ring]:
        """A frame that is its own keyframe, and the ring that begins with it."""
        ring = self.rekeyed({index: features}, index, (index,))
        (edge,) = self.edges(ring, (index,), matching=False)
        return edge, ring

    def arrived(
        self, index: int, features: Features, held: Held, matching: bool
    ) -> tuple[list[RawEdge], Ring]:
        """A new frame seen from the keyframe: one pair is decoded."""
        assert held.ring is not None
        _, tokens = self._engine.decode(held.features[held.key], features)
        ring = held.ring.pushed(index, tokens, self._length)
        return self.edges(ring, (index,), matching), ring

    def rekeyed(self, features: Mapping[int, Features], key: int, indices: Sequence[int]) -> Ring:
        """The ring with all of its frames decoded anew, against another keyframe."""
        frames = Features.cat([features[index] for index in indices])
        _, tokens = self._engine.decode(features[key], frames)
        each = tuple(tokens[[row]] for row in range(len(indices)))
        return Ring(key, tuple(indices), each)

    def edges(self, ring: Ring, wanted: Sequence[int], matching: bool) -> list[RawEdge]:
        """What the heads say of some frames of the ring.

        A ring that is not full is filled up by repeating its last frame, as in the reference.

        Args:
            ring: the frames.
            wanted: frame numbers.
            matching: head 3 is needed too.
        """
        num_padding = self._length - len(ring.indices)
        tokens = HookTokens.cat([*ring.tokens, *ring.tokens[-1:] * num_padding])
        rows = [ring.indices.index(index) for index in wanted]
        now = self._engine.head(2, tokens, rows)
        then = self._engine.head(3, tokens, rows) if matching else None
        keys = [ring.key] * len(rows)
        return RawEdge.of_batch(wanted, keys, now, then, num_padding)

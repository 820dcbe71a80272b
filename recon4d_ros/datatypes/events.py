"""Discontinuities of the map and of the tracking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class EventKind(Enum):
    """Discontinuities that are published, never hidden.

    REFUTED takes back: what was handed out in that submap is wrong, for its poses rested on
    something that moves. Another submap begins.
    """

    INITIALISED = "initialised"
    LOST = "lost"
    RELOCALISED = "relocalised"
    REFUTED = "refuted"
    NEW_SUBMAP = "new_submap"
    MAP_CORRECTION = "map_correction"
    RESET = "reset"


@dataclass(frozen=True, eq=False)
class MapCorrection:
    """How a submap has moved: a similarity for every time, between those of its anchors.

    Whatever was given in map coordinates at frame i lies, from now on, where the similarity of i
    moves it: `geometry.sim3.interpolate(indices, S_new_old, i)`. Lengths grow by its scale.

    Attributes:
        submap: number of the submap; others have not moved.
        indices: (M,) int64 frame numbers of the anchors, ascending.
        stamps_ns: (M,) int64 their stamps.
        S_new_old: (M, 4, 4) float64, map before to map after. The last one also moves everything
            later, the present pose among it.
    """

    submap: int
    indices: Tensor
    stamps_ns: Tensor
    S_new_old: Tensor


@dataclass(frozen=True)
class MapEvent:
    """A discontinuity of the map or of the tracking.

    `correction` comes with MAP_CORRECTION and with no other kind.
    """

    kind: EventKind
    stamp_ns: int
    submap: int
    message: str
    correction: MapCorrection | None = None

"""How far a run is, by steps and by the clock, and the learning rate that belongs to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The one-cycle rate begins and ends at these parts of its peak.
_FIRST_PART = 1.0 / 25.0
_LAST_PART = 1e-4


@dataclass(frozen=True)
class Extent:
    """What ends a run; 0 sets no bound, and whichever is reached first decides.

    Attributes:
        steps: number of steps.
        seconds: time of training, over all resumptions.
    """

    steps: int
    seconds: float

    def share(self, step: int, elapsed_s: float) -> float:
        """How much of the run is over before this step; 1 or more ends it."""
        by_steps = step / self.steps if self.steps else 0.0
        by_clock = elapsed_s / self.seconds if self.seconds else 0.0
        return max(by_steps, by_clock)


def one_cycle(share: float, peak: float, warm_up: float) -> float:
    """Learning rate of a share [0, 1] of a run: up in `warm_up` of it, then down, on cosines.

    Since the share may be that of the clock, a slow machine ends the descent as a fast one does.

    Source: Smith and Topin, Super-Convergence, arXiv 1708.07120.
    """
    if share < warm_up:
        return peak * _between(_FIRST_PART, 1.0, share / warm_up)
    return peak * _between(1.0, _LAST_PART, min(1.0, (share - warm_up) / (1.0 - warm_up)))


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))

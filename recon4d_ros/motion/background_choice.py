"""Which of two motions is the background's, where the tracks contradict the larger one.

A robust fit takes the motion of most pixels for the background's. A thing that covers more than
half of the view is then at rest and the world moves around it; no flow can tell, but tracks whose
mobility comes from what things look like can. They need not be right one by one: it is enough
that what the majority's motion leaves over moves less, in the mean, than what it explains.

Source: C4D (ICCV 2025), sections 3.3 and 3.4 (static points come from mobility) and 8.5 (try both
labellings) of its specification.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.motion.epipolar_pair import PairEvidence
from recon4d_ros.motion.track_votes import MOVING, SeenTracks

Bools: TypeAlias = NDArray[np.bool_]

# Mean mobility by which the smaller part must fall short of the larger one to be the background,
# and by which a background that was chosen must exceed the rest, in the mean over the last frames,
# to be given up.
LEAST_CONTRADICTION = 0.1
# Frames over which the mean of what speaks against a choice is taken: about those that one window
# settles. The tracks of one window in a dozen name a thing the background, weakly.
MEMORY = 4
# Tracks that each of two parts needs to be heard.
MIN_TRACKS = 30
# Share of the view below which what is left over is a thing, whatever its tracks say.
MIN_SHARE = 0.2


class BackgroundChoice:
    """Remembers whether the larger motion was overruled."""

    def __init__(self) -> None:
        """Believe the majority."""
        self.is_overruled = False
        self._against = 0.0

    def choose(
        self, pairs: Iterable[PairEvidence], seen: SeenTracks, believed: Bools | None
    ) -> Bools | None:
        """Pixels (H, W) to fit the background to; None where the majority is believed.

        Args:
            pairs: of the frame, fitted to all pixels.
            seen: tracks of the frame.
            believed: (H, W) what was the background in the frame before.
        """
        left_over = [pair.unexplained for pair in pairs if pair.unexplained is not None]
        claims = {contradiction(part, seen): part for part in left_over if _is_large(part)}
        if claims and max(claims) > LEAST_CONTRADICTION:
            self.is_overruled, self._against = True, 0.0
            return claims[max(claims)]
        if not self.is_overruled or believed is None:
            return None
        rest = ~believed
        against = max(contradiction(rest, seen), 0.0)
        self._against += (against - self._against) / MEMORY
        self.is_overruled = _is_large(rest) and self._against < LEAST_CONTRADICTION
        return believed if self.is_overruled else None


def contradiction(part: Bools, seen: SeenTracks) -> float:
    """How much less a part (H, W) of the view moves than the rest, by its tracks.

    -1 where either has few tracks or the rest does not move in their mean: not to know that
    something rests is no word against it.
    """
    inside = part[seen.uv[:, 1], seen.uv[:, 0]]
    if min(inside.sum(), (~inside).sum()) < MIN_TRACKS:
        return -1.0
    rest = float(seen.mobility[~inside].mean())
    return rest - float(seen.mobility[inside].mean()) if rest > MOVING else -1.0


def _is_large(part: Bools) -> bool:
    return bool(part.mean() >= MIN_SHARE)

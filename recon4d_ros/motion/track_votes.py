"""What tracked points say of which things move, and for how long a thing that stops is one.

Source: C4D (ICCV 2025), sections 3.4 (votes of mobility) and 8.4 (stop and go) of its
specification.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.datatypes import Tracks
from recon4d_ros.motion.fusion import SEED_BELIEF, Votes

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Ids: TypeAlias = NDArray[np.int64]

MOVING = 0.5
# Share of the way to a new mobility: motion is believed fast, rest slowly.
RISE, DECAY = 0.5, 0.2
# A track that moved counts as moving for so many frames more, with at least this mobility.
HOLD_FRAMES = 10
HELD_MOBILITY = 0.75
MAX_TRACKS = 4096
# A pixel follows the nearest track within reach, unless their depths differ by more than this.
REACH_PX = 20.0
SAME_DEPTH = 0.1
# A part moves by the word of so many tracks; a small one rests by the word of so many.
MIN_MOVING_TRACKS, MIN_MOVING_MEAN = 3, 0.6
MIN_RESTING_TRACKS, MAX_RESTING_MEAN, MAX_RESTING_AREA = 5, 0.2, 0.002
# Tracks are not asked for motion when they call more than so much of what the pairs saw at rest
# moving, or less than so much of what the pairs saw moving; as far as so many tracks lie there.
MAX_FALSE_SHARE, MIN_FOUND_SHARE, MIN_JUDGED_TRACKS = 0.08, 0.5, 10


@dataclass(frozen=True, eq=False)
class SeenTracks:
    """Tracks visible in one frame.

    Attributes:
        uv: (N, 2) int64 px of the dense grid.
        mobility: (N,) in [0, 1].
    """

    uv: Ids
    mobility: Floats


class MobilityFilter:
    """Mobility of each track over time; bounded by `MAX_TRACKS`."""

    def __init__(self) -> None:
        """Know no track."""
        self.reset()

    def reset(self) -> None:
        """Forget all tracks."""
        self._ids: Ids = np.empty(0, np.int64)
        self._mobility: Floats = np.empty(0, np.float32)
        self._moved: Ids = np.empty(0, np.int64)
        self._seen: Ids = np.empty(0, np.int64)

    def update(self, frame: int, ids: Ids, mobility: Floats) -> None:
        """Take over what a frame says of tracks (N,) it sees; frames come in order."""
        self._add(ids[~np.isin(ids, self._ids)], frame)
        place = np.searchsorted(self._ids, ids)
        before = self._mobility[place]
        share = np.where(mobility > before, np.float32(RISE), np.float32(DECAY))
        self._mobility[place] = now = before + share * (mobility - before)
        self._moved[place] = np.where(
            (now > MOVING) & (mobility > MOVING), frame, self._moved[place]
        )
        self._seen[place] = frame
        self._keep_newest()

    def held(self, frame: int, ids: Ids) -> Floats:
        """Mobility (N,) of tracks, 0 for unknown ones; raised for those that moved lately."""
        if len(self._ids) == 0:
            return np.zeros(len(ids), np.float32)
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        known = self._ids[place] == ids
        lately = np.abs(frame - self._moved[place]) <= HOLD_FRAMES
        mobility = np.maximum(self._mobility[place], np.where(lately, HELD_MOBILITY, 0))
        return np.where(known, mobility, 0).astype(np.float32)

    def _add(self, ids: Ids, frame: int) -> None:
        order = np.argsort(np.concatenate([self._ids, ids]))
        self._ids = np.concatenate([self._ids, ids])[order]
        new = np.zeros(len(ids), np.float32)
        self._mobility = np.concatenate([self._mobility, new])[order]
        never = np.full(len(ids), -(1 << 40))
        self._moved = np.concatenate([self._moved, never])[order]
        self._seen = np.concatenate([self._seen, np.full(len(ids), frame)])[order]

    def _keep_newest(self) -> None:
        if len(self._ids) <= MAX_TRACKS:
            return
        kept = np.sort(np.argsort(self._seen, kind="stable")[-MAX_TRACKS:])
        self._ids, self._mobility = self._ids[kept], self._mobility[kept]
        self._moved, self._seen = self._moved[kept], self._seen[kept]


def visible(tracks: Tracks, row: int) -> tuple[Ids, Floats, Floats]:
    """Ids (N,), positions (N, 2) px of the frame and mobility (N,) of what one frame sees."""
    uv, mobility = tracks.uv[row].numpy(), tracks.mobility[row].numpy()
    seen = np.isfinite(uv).all(axis=-1) & (tracks.visibility[row].numpy() > MOVING)
    return tracks.ids.numpy()[seen], uv[seen], mobility[seen]


def on_grid(uv: Floats, from_size: tuple[int, int], size: tuple[int, int]) -> Ids:
    """Nearest grid pixels (N, 2) of positions in a frame of another (height, width)."""
    scale = np.array([size[1] / from_size[1], size[0] / from_size[0]])
    rounded = np.rint((uv + 0.5) * scale - 0.5).astype(np.int64)
    return np.asarray(np.clip(rounded, 0, np.array([size[1] - 1, size[0] - 1])), np.int64)


def with_tracks(votes: Votes, seen: SeenTracks, depth: Floats | None, scale: float) -> Votes:
    """Votes by which parts of the image move that several moving tracks lie on.

    Args:
        votes: of the pairs.
        seen: tracks of the frame.
        depth: (H, W), NaN where unknown; None when nothing is known.
        scale: long side of the grid over the reference side.
    """
    if (seen.mobility > MOVING).sum() < MIN_MOVING_TRACKS or _contradict(votes, seen):
        return votes
    near, nearest = _nearest(seen.uv, votes.decided.shape, REACH_PX * scale)
    if depth is not None:
        own = depth[seen.uv[:, 1], seen.uv[:, 0]][nearest]
        near &= ~(np.abs(depth - own) > SAME_DEPTH * own)  # unknown depths may be the same
    wanted = near & (seen.mobility[nearest] > MOVING)
    count, labels = cv2.connectedComponents(wanted.astype(np.uint8), connectivity=8)
    number, mean = _by_part(labels, count, seen)
    moves = (number >= MIN_MOVING_TRACKS) & (mean > MIN_MOVING_MEAN)
    moves[0] = False
    moving = moves[labels]
    loud = np.float32(1.1 * SEED_BELIEF)
    return replace(
        votes,
        belief=np.where(moving, np.maximum(votes.belief, loud), votes.belief),
        evidence=np.where(moving, np.maximum(votes.evidence, 2), votes.evidence),
        decided=votes.decided | moving,
    )


def _contradict(votes: Votes, seen: SeenTracks) -> bool:
    """Whether the tracks disagree with the pairs where those can see: then they are no judges.

    What moves along the epipolar lines, unseen by the pairs, covers little of the view.
    """
    at = seen.uv[:, 1], seen.uv[:, 0]
    belief, calls = np.where(votes.decided[at], votes.belief[at], 0), seen.mobility > MOVING
    rests, moves = belief < 0, belief > 0
    invented = _share(calls[rests], 0.0) > MAX_FALSE_SHARE
    return invented or _share(calls[moves], 1.0) < MIN_FOUND_SHARE


def _share(calls: Bools, of_few: float) -> float:
    return float(calls.mean()) if len(calls) >= MIN_JUDGED_TRACKS else of_few


def without_resting(mask: Bools, seen: SeenTracks) -> Bools:
    """Without the small parts that tracks call still."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    number, mean = _by_part(labels, count, seen)
    small = stats[:, cv2.CC_STAT_AREA] < MAX_RESTING_AREA * mask.size
    rests = small & (number >= MIN_RESTING_TRACKS) & (mean < MAX_RESTING_MEAN)
    rests[0] = True
    return np.asarray(~rests[labels])


def _nearest(uv: Ids, shape: tuple[int, ...], reach_px: float) -> tuple[Bools, Ids]:
    """Whether a track lies within reach of each pixel (H, W), and which one is nearest."""
    elsewhere = np.ones(shape, np.uint8)
    elsewhere[uv[:, 1], uv[:, 0]] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        elsewhere, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    track_of = np.zeros(int(labels.max()) + 1, np.int64)
    track_of[labels[uv[:, 1], uv[:, 0]]] = np.arange(len(uv))
    return np.asarray(distance <= reach_px), track_of[labels]


def _by_part(labels: NDArray[Any], count: int, seen: SeenTracks) -> tuple[Ids, Floats]:
    """Number of tracks in each labelled part, and their mean mobility."""
    part = labels[seen.uv[:, 1], seen.uv[:, 0]]
    number = np.bincount(part, minlength=count)
    total = np.bincount(part, weights=seen.mobility, minlength=count)
    return number, (total / np.maximum(number, 1)).astype(np.float32)

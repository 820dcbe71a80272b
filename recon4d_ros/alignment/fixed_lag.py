"""Poses and scales of a stream of pairs, with bounded time and memory: the fixed-lag design.

Every pair becomes one weighed similarity between two frames (pair_similarity.py). The frames of
the last few steps are moved until those similarities and a steady course (CTS of second order)
agree best; older ones stand still, as what was handed out as final must. Scale rests on every
partner that a frame has, among them several keyframes, never on the last frame alone.

Source of the objectives: C4D (ICCV 2025), section 4; what is kept and for how long is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.alignment import lag_window, pair_similarity, similarity
from recon4d_ros.alignment.frame_depth import Array, FrameDepth, PixelGrid, lower_median
from recon4d_ros.alignment.lag_window import Link
from recon4d_ros.alignment.pair_similarity import PairSamples
from recon4d_ros.config import FixedLagConfig
from recon4d_ros.datatypes import Intrinsics, PairPointmaps
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import sim3

# Frames back to the neighbours that a frame is paired with.
_OFFSETS = (1, 4)
# Depth maps of a frame that are joined: each costs a tenth of a frame's time, and twice as many
# lowered the error of noisy streams by 4 % at most.
_MAPS = 2
# Pixels of weight and share of them that agree, below which a pair says nothing of the pose.
_MIN_PIXELS, _MIN_AGREEMENT = 30, 0.15


@dataclass(frozen=True, eq=False)
class LagFrame:
    """One frame of the stream.

    Attributes:
        index: frame number.
        S_map_cam: (4, 4) float64, from the camera and the frame's own unit to the map.
        depth: what is known of its depth, in the frame's own unit.
        agreement: share of the static pixels of its pairs that agree with the pose; 1 for the
            first frame, which has none.
    """

    index: int
    S_map_cam: Tensor
    depth: FrameDepth
    agreement: float

    @property
    def T_map_cam(self) -> Tensor:
        """(4, 4) float64 pose."""
        return sim3.split(self.S_map_cam)[1]

    @property
    def scale(self) -> float:
        """Map units per unit of `depth`."""
        return float(sim3.split(self.S_map_cam)[0])

    def depth_map(self) -> Tensor:
        """(H, W) float32 z-depth in map units, NaN where unknown."""
        return torch.from_numpy(self.depth.map() * np.float32(self.scale))


class FixedLag:
    """Places one frame after the other by its pairs with earlier ones.

    All that is kept: `size` recent frames, `num_keyframes` older ones, and the links between them.
    """

    def __init__(self, config: FixedLagConfig, intrinsics: Intrinsics) -> None:
        """Start with an empty map.

        Args:
            config: bounds and weights.
            intrinsics: of the grid of the pointmaps.
        """
        self._config = config
        self._focal_px = intrinsics.fx
        self._grid = PixelGrid.of(intrinsics.size, config.num_samples)
        self._rays = self._grid.rays(intrinsics)
        self._frames: dict[int, LagFrame] = {}
        self._keyframes: list[int] = []
        self._links: list[Link] = []

    def partners(self, index: int) -> tuple[int, ...]:
        """Earlier frames that frame `index` should be paired with, both ways round.

        Neighbours, and one of the keyframes before them in turn, so that a pair costs a network
        as little as can be and the scale of recent frames still rests on several keyframes.
        """
        near = [index - offset for offset in _OFFSETS]
        anchors = [frame for frame in self._keyframes if frame < min(near)]
        anchors = anchors[-self._config.num_anchors :]
        wanted = [*near, anchors[index % len(anchors)]] if anchors else near
        return tuple(frame for frame in dict.fromkeys(wanted) if frame in self._frames)

    @property
    def frames(self) -> Mapping[int, LagFrame]:
        """The frames that are kept, by number."""
        return self._frames

    def push(
        self,
        index: int,
        pairs: Sequence[PairPointmaps],
        moving: Mapping[int, Tensor] | None = None,
    ) -> LagFrame:
        """Place a frame; the recent ones move along.

        Args:
            index: the next frame number; numbers grow.
            pairs: of this frame with earlier ones, either way round; for the very first frame of
                a stream none, for it is placed together with the second.
            moving: (H, W) bool masks of the frames of which one is known.

        Raises:
            AlignmentError: pairs of other frames, or too few pixels of all pairs agree on a pose.
        """
        if not pairs:
            raise AlignmentError(
                f"frame {index} has no pair; expected pairs with one of {sorted(self._frames)}"
            )
        for pair in pairs:
            if index not in (pair.first, pair.second) or max(pair.first, pair.second) > index:
                raise AlignmentError(
                    f"a pair of frames {pair.first} and {pair.second} came with frame {index}; "
                    f"expected pairs of {index} with earlier frames"
                )
        frames, units = self._with_depth(index, pairs)
        links = self._measured(index, pairs, frames, units, moving or {})
        newest = self._placed(index, frames[index], links)
        self._frames = {**frames, index: newest}
        self._links += links
        self._settle(index)
        self._forget(index)
        return self._frames[index]

    # ---------------------------------------------------------------- what the pairs say
    def _with_depth(
        self, index: int, pairs: Sequence[PairPointmaps]
    ) -> tuple[dict[int, LagFrame], list[float]]:
        """All frames with what the pairs say of their own pixels, and the pairs' units.

        A unit is told in that of the pair's first frame, NaN where nothing tells it.
        """
        frames, units = dict(self._frames), list[float]()
        for pair, z in zip(pairs, self._own_depths(pairs), strict=True):
            known, maps = frames.get(pair.first), (pair.points_1, pair.confidence_1)
            if known is None:
                unit = 1.0 / float(lower_median(z))
                depth = FrameDepth.of(*maps, unit, self._grid)
                frames[pair.first] = LagFrame(pair.first, torch.from_numpy(np.eye(4)), depth, 1.0)
            else:
                unit = float(lower_median(known.depth.sampled / z))
                if known.depth.num_maps < _MAPS and math.isfinite(unit):
                    depth = known.depth.joined(*maps, unit)
                    frames[pair.first] = replace(known, depth=depth)
            units.append(unit)
        return frames, units

    def _own_depths(self, pairs: Sequence[PairPointmaps]) -> Array:
        """Depths (E, P) of the first frames by the pairs, NaN where not to be used.

        Raises:
            AlignmentError: a frame that comes new has none.
        """
        z = self._grid.take([pair.points_1 for pair in pairs])[..., 2]
        sure = _weight(self._grid.take([pair.confidence_1 for pair in pairs])) > 0
        depths: Array = np.where((z > 0) & (z < np.inf) & sure, z, np.float32(np.nan))
        for pair, own in zip(pairs, depths, strict=True):
            if pair.first not in self._frames and np.isnan(own).all():
                raise AlignmentError(
                    f"frame {pair.first} has no pixel of a finite depth above zero and a "
                    "confidence above 1; expected a pointmap in its own camera and confidences "
                    "of the DUSt3R family"
                )
        return depths

    def _measured(
        self,
        index: int,
        pairs: Sequence[PairPointmaps],
        frames: Mapping[int, LagFrame],
        units: Sequence[float],
        moving: Mapping[int, Tensor],
    ) -> list[Link]:
        """Links of the pairs whose second frame has a depth."""
        usable = [row for row, pair in enumerate(pairs) if pair.second in frames]
        usable = [row for row in usable if math.isfinite(units[row])]
        samples = self._samples([pairs[row] for row in usable], frames, moving)
        seen = (samples.weight > 0).sum(axis=1) >= _MIN_PIXELS
        if not seen.any():
            raise AlignmentError(
                f"no pair of frame {index} has {_MIN_PIXELS} static pixels of known depth; give "
                "pairs with other frames or mask less"
            )
        kept = [row for row, enough in zip(usable, seen, strict=True) if enough]
        ends = [(pairs[row].first, pairs[row].second) for row in kept]
        scaling = np.stack([np.diag([units[row]] * 3 + [1.0]) for row in kept])
        place = self._expected(index)
        first, second = (
            np.stack([place[frame] for frame in side]) for side in zip(*ends, strict=True)
        )
        start = similarity.inverse(first @ scaling) @ second
        found = pair_similarity.measure(samples.at(seen), start)
        links = [
            Link(*pair, S, information, float(agreement))
            for pair, S, information, agreement in zip(
                ends, scaling @ found.S, found.information, found.agreement, strict=True
            )
            if agreement >= _MIN_AGREEMENT
        ]
        if not links:
            raise AlignmentError(
                f"less than {_MIN_AGREEMENT:.0%} of the static pixels of frame {index} agree on a "
                "pose with any partner; it cannot be placed"
            )
        return links

    def _samples(
        self,
        pairs: Sequence[PairPointmaps],
        frames: Mapping[int, LagFrame],
        moving: Mapping[int, Tensor],
    ) -> PairSamples:
        """Pixels of the second frames; moving ones have no weight."""
        depth = np.stack([frames[pair.second].depth.sampled for pair in pairs])
        target = _planes(self._grid.take([pair.points_2 for pair in pairs]))
        weight = _weight(self._grid.take([pair.confidence_2 for pair in pairs]))
        use = (depth > 0) & np.isfinite(target).all(axis=1)
        for row, pair in enumerate(pairs):
            if pair.second in moving:
                use[row] &= ~self._grid.take([moving[pair.second]])[0]
        matches = [pair.matching_2 for pair in pairs if pair.matching_2 is not None]
        matched = None
        if len(matches) == len(pairs):
            x, y, z = _planes(self._grid.take(matches)).swapaxes(0, 1)
            use &= (z > 0) & np.isfinite(x + y + z)
            matched = np.stack([x, y], axis=1) / np.where(use, z, np.float32(1))[:, None]
            matched = np.where(use[:, None], matched, np.float32(0))
        return PairSamples(
            source=self._rays * np.where(use, depth, np.float32(1))[:, None],
            target=np.where(use[:, None], target, np.float32(1)),
            matched=matched,
            weight=np.where(use, weight, np.float32(0)),
            focal_px=self._focal_px,
        )

    # ---------------------------------------------------------------- where the frames lie
    def _expected(self, index: int) -> dict[int, NDArray[np.float64]]:
        """Where the frames are, and where a new one should be: as far on as the last one was."""
        place = {frame: known.S_map_cam.numpy() for frame, known in self._frames.items()}
        last, before = (place.get(index - back) for back in (1, 2))
        if last is None:  # at first, in the origin
            return place | {index: np.eye(4), index - 1: np.eye(4)}
        if before is None:
            return place | {index: last}
        return place | {index: last @ similarity.inverse(before) @ last}

    def _placed(self, index: int, frame: LagFrame, links: Sequence[Link]) -> LagFrame:
        """First guess: by the link that most pixels agree with."""
        best = max(links, key=lambda link: link.agreement)
        if not self._frames:  # two frames make the map: the first one is its origin
            self._keyframes = [min(best.first, best.second)]
            self._frames = {self._keyframes[0]: frame}
        forward = best.second == index
        partner = self._frames[best.first if forward else best.second]
        S = best.S_first_second if forward else similarity.inverse(best.S_first_second)
        return replace(
            frame,
            agreement=best.agreement,
            S_map_cam=torch.from_numpy(partner.S_map_cam.numpy() @ S),
        )

    def _settle(self, index: int) -> None:
        """Move the recent frames until links and a steady course agree."""
        order = sorted(self._frames)
        free = [frame > max(index - self._config.lag, order[0]) for frame in order]
        S = np.stack([self._frames[frame].S_map_cam.numpy() for frame in order])
        S = lag_window.solve(order, S, free, self._links, self._config)
        for row, frame in enumerate(order):
            if free[row]:
                S_map_cam = torch.from_numpy(S[row].copy())
                self._frames[frame] = replace(self._frames[frame], S_map_cam=S_map_cam)

    def _forget(self, index: int) -> None:
        """Make a keyframe now and then; drop frames beyond the bounds and their links."""
        if index - self._keyframes[-1] >= self._config.keyframe_interval:
            self._keyframes.append(index)
        self._keyframes = self._keyframes[-self._config.num_keyframes :]
        kept = {frame for frame in self._frames if frame > index - self._config.size}
        kept |= set(self._keyframes)
        self._frames = {frame: known for frame, known in self._frames.items() if frame in kept}
        recent = index - self._config.lag
        self._links = [
            link
            for link in self._links
            if max(link.first, link.second) > recent and {link.first, link.second} <= kept
        ]


def _planes(points: Array) -> Array:
    """Points (E, P, 3) as (E, 3, P): sums along a short last axis are slow."""
    return np.ascontiguousarray(points.swapaxes(1, 2))


def _weight(confidence: Array) -> Array:
    """Logarithm; zero for what is no confidence of DUSt3R's family, which exceeds 1."""
    sure = (confidence > 1) & (confidence < np.inf)
    return np.asarray(np.log(np.where(sure, confidence, np.float32(1))))

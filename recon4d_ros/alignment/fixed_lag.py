"""Poses and scales of a stream of pairs, with bounded time and memory: the fixed-lag design.

Every pair becomes one weighed similarity between two frames (pair_similarity.py). The frames of
the last few steps are moved until those similarities and a steady course (CTS of second order)
agree best; older ones stand still, as what was handed out as final must. Scale rests on every
partner that a frame has, among them several keyframes, never on the last frame alone.

Source of the objectives: C4D (ICCV 2025), section 4; what is kept and for how long is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.alignment import lag_window, pair_similarity, similarity
from recon4d_ros.alignment.frame_depth import FrameDepth, PixelSamples, sampled_rays
from recon4d_ros.alignment.lag_window import Link
from recon4d_ros.alignment.pair_similarity import PairSamples
from recon4d_ros.config import FixedLagConfig
from recon4d_ros.datatypes import Intrinsics, PairPointmaps
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import sim3

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
        return self.depth.map() * self.scale


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
        self._rays = sampled_rays(intrinsics, config.num_samples).mT
        self._frames: dict[int, LagFrame] = {}
        self._keyframes: list[int] = []
        self._links: list[Link] = []

    def partners(self, index: int) -> tuple[int, ...]:
        """Earlier frames that frame `index` should be paired with, both ways round."""
        near = [index - offset for offset in (1, 3, 7)]
        anchors = [frame for frame in self._keyframes if frame < index - 7]
        wanted = [*near, *anchors[-self._config.num_anchors :]]
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
        frames = self._with_depth(index, pairs)
        links = self._measured(index, pairs, frames, moving or {})
        newest = self._placed(index, frames[index], links)
        self._frames = {**frames, index: newest}
        self._links += links
        self._settle(index)
        self._forget(index)
        return self._frames[index]

    # ---------------------------------------------------------------- what the pairs say
    def _with_depth(self, index: int, pairs: Sequence[PairPointmaps]) -> dict[int, LagFrame]:
        """All frames with what the pairs say of their own pixels."""
        frames = dict(self._frames)
        for pair in pairs:
            if index not in (pair.first, pair.second) or max(pair.first, pair.second) > index:
                raise AlignmentError(
                    f"a pair of frames {pair.first} and {pair.second} came with frame {index}; "
                    f"expected pairs of {index} with earlier frames"
                )
            known = frames.get(pair.first)
            if known is None:
                first = FrameDepth.of(pair.points_1, pair.confidence_1)
                frames[pair.first] = LagFrame(pair.first, _scaling(1.0), first, 1.0)
            else:
                depth = known.depth.joined(pair.points_1, pair.confidence_1)
                frames[pair.first] = replace(known, depth=depth)
        return frames

    def _measured(
        self,
        index: int,
        pairs: Sequence[PairPointmaps],
        frames: Mapping[int, LagFrame],
        moving: Mapping[int, Tensor],
    ) -> list[Link]:
        """Links of the pairs whose second frame has a depth."""
        usable = [pair for pair in pairs if pair.second in frames]
        samples = [
            PixelSamples.of(
                pair, frames[pair.second].depth, moving.get(pair.second), self._config.num_samples
            )
            for pair in usable
        ]
        kept = [
            (pair, sample)
            for pair, sample in zip(usable, samples, strict=True)
            if int((sample.weight > 0).sum()) >= _MIN_PIXELS
        ]
        if not kept:
            raise AlignmentError(
                f"no pair of frame {index} has {_MIN_PIXELS} static pixels of known depth; give "
                "pairs with other frames or mask less"
            )
        units = [_scaling(frames[pair.first].depth.unit_of(pair.points_1)) for pair, _ in kept]
        expected = {
            **self._expected(index),
            **{i: each.S_map_cam for i, each in self._frames.items()},
        }
        start = torch.stack(
            [
                _inverse(expected[pair.first] @ unit) @ expected[pair.second]
                for (pair, _), unit in zip(kept, units, strict=True)
            ]
        )
        found = pair_similarity.measure(self._stacked([sample for _, sample in kept]), start)
        links = [
            Link(pair.first, pair.second, unit @ S, information, agreement)
            for (pair, _), unit, S, information, agreement in zip(
                kept, units, found.S, found.information, found.agreement, strict=True
            )
            if agreement >= _MIN_AGREEMENT
        ]
        if not links:
            raise AlignmentError(
                f"less than {_MIN_AGREEMENT:.0%} of the static pixels of frame {index} agree on a "
                "pose with any partner; it cannot be placed"
            )
        return links

    def _stacked(self, samples: Sequence[PixelSamples]) -> PairSamples:
        matched = [sample.matched.mT for sample in samples if sample.matched is not None]
        return PairSamples(
            source=torch.stack([self._rays * sample.depth for sample in samples]),
            target=torch.stack([sample.target.mT for sample in samples]).contiguous(),
            matched=torch.stack(matched) if len(matched) == len(samples) else None,
            weight=torch.stack([sample.weight for sample in samples]),
            focal_px=self._focal_px,
        )

    # ---------------------------------------------------------------- where the frames lie
    def _expected(self, index: int) -> dict[int, Tensor]:
        """Where a new frame should be: as far on as the last one was; at first, in the origin."""
        last, before = (self._frames.get(index - back) for back in (1, 2))
        origin = torch.eye(4, dtype=torch.float64)
        if last is None:
            return {index: origin, index - 1: origin}
        if before is None:
            return {index: last.S_map_cam}
        return {index: last.S_map_cam @ (_inverse(before.S_map_cam) @ last.S_map_cam)}

    def _placed(self, index: int, frame: LagFrame, links: Sequence[Link]) -> LagFrame:
        """First guess: by the link that most pixels agree with."""
        best = max(links, key=lambda link: float(link.agreement))
        if not self._frames:  # two frames make the map: the first one is its origin
            self._keyframes = [min(best.first, best.second)]
            self._frames = {self._keyframes[0]: frame}
        forward = best.second == index
        partner = self._frames[best.first if forward else best.second]
        S = best.S_first_second if forward else _inverse(best.S_first_second)
        agreement = max(float(link.agreement) for link in links)
        return replace(frame, agreement=agreement, S_map_cam=partner.S_map_cam @ S)

    def _settle(self, index: int) -> None:
        """Move the recent frames until links and a steady course agree."""
        order = sorted(self._frames)
        free = [frame > max(index - self._config.lag, order[0]) for frame in order]
        S = torch.stack([self._frames[frame].S_map_cam for frame in order])
        S = lag_window.solve(order, S, free, self._links, self._config)
        for row, frame in enumerate(order):
            if free[row]:
                self._frames[frame] = replace(self._frames[frame], S_map_cam=S[row])

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


def _scaling(factor: float) -> Tensor:
    """(4, 4) float64 similarity that only changes the unit."""
    return torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))


def _inverse(S: Tensor) -> Tensor:
    return torch.from_numpy(similarity.inverse(S.numpy()))

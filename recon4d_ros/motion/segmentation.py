"""Masks of what moves: provisional from past partners, final with future ones.

Source of the frame: epipolar masks from flow over several partners, as in C4D (ICCV 2025); the
background's parallax, the contrast test and the memory are ours (docs/adr/0003-motion-masks.md).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.config import MotionConfig
from recon4d_ros.datatypes import (
    DynamicMask,
    FlowField,
    Frame,
    FramePrediction,
    Matching,
    Tracks,
    WindowPrediction,
)
from recon4d_ros.motion.background_choice import BackgroundChoice
from recon4d_ros.motion.cleanup import clean_up, tidy
from recon4d_ros.motion.epipolar_pair import REFERENCE_SIDE_PX, PairEvidence, pair_evidence
from recon4d_ros.motion.fusion import Votes, add, carried, grown, hysteresis, join, remember, union
from recon4d_ros.motion.known_depth import KnownDepths, Views
from recon4d_ros.motion.matching import matching_evidence, paper_evidence
from recon4d_ros.motion.outline import to_edges
from recon4d_ros.motion.partners import later_flows, nearest_and_farthest, past_flows
from recon4d_ros.motion.track_votes import (
    MobilityFilter,
    SeenTracks,
    on_grid,
    visible,
    with_tracks,
    without_resting,
)
from recon4d_ros.motion.uncovered import Image, coarse_image, resting_behind

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Bounds on what is kept between calls. A frame that is finalised later than that is judged from
# its window alone.
MAX_FRAMES = 32
MAX_PAIRS = 64
NUM_WORKERS = 2
# What the image's edges make of the belief must exceed this: where nothing was decided, and where
# colours tell nothing, rest is more likely. What is thinner than the radius is no thing.
LEAST_DRAWN = 0.4
THIN_PX = 1.6

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Correspondences that a prediction brings; a matching belongs to a flow of the same pair."""

    flows: tuple[FlowField, ...]
    matchings: Mapping[tuple[int, int], Matching]
    views: Views

    @staticmethod
    def of(prediction: FramePrediction | WindowPrediction, views: Views) -> _Evidence:
        matchings = {(each.source, each.target): each for each in prediction.matchings}
        return _Evidence(prediction.flows, matchings, views)


class Segmenter:
    """Decides which pixels move; keeps a bounded memory of past frames.

    The mask of a frame depends on its flows and on those of frames before it; the final mask also
    on its flows to later frames of the window, nothing else.
    """

    def __init__(self, config: MotionConfig) -> None:
        """Start without memory."""
        self._config = config
        self._fuse = {"hysteresis": hysteresis, "union": union}[config.fusion]
        self._arrivals: OrderedDict[int, Votes] = OrderedDict()
        # What final masks believe beyond what was believed on arrival.
        self._learnt: OrderedDict[int, Floats] = OrderedDict()
        self._pairs: OrderedDict[tuple[int, int], PairEvidence | None] = OrderedDict()
        self._images: OrderedDict[int, Image] = OrderedDict()
        self._depths = KnownDepths(MAX_FRAMES)
        self._mobility = MobilityFilter()
        self._choice = BackgroundChoice()
        # Pairs are judged side by side: most of the work is in OpenCV and numpy, outside the GIL.
        self._workers = ThreadPoolExecutor(NUM_WORKERS, "motion")

    def segment_frame(
        self, prediction: FramePrediction, frame: Frame | None = None
    ) -> DynamicMask:
        """Provisional mask (T = 1) of a frame on its arrival, from past partners.

        Args:
            prediction: of the frame.
            frame: its image, whose edges the mask follows; without it the mask is as coarse as
                the flow.
        """
        index = prediction.index
        self._forget_from(index)
        self._look_at((frame,) if frame else (), prediction.intrinsics.size)
        evidence = _Evidence.of(prediction, Views.of_frame(prediction))
        votes = self._arrive(index, evidence, prediction.intrinsics.size)
        self._depths.keep(prediction, votes.belief > 0)
        shown = {} if frame is None else {index: frame}
        if prediction.tracks is None:
            return self._mask({index: votes}, shown, {}, None)
        ids, _, mobility = visible(prediction.tracks, 0)
        self._mobility.update(index, ids, mobility)
        seen = self._seen(prediction.tracks, (index,), shown, votes.decided.shape)
        return self._mask({index: votes}, shown, seen, prediction.depth.numpy())

    def segment(
        self,
        prediction: WindowPrediction,
        indices: Sequence[int] | None = None,
        frames: Sequence[Frame] = (),
    ) -> DynamicMask:
        """Masks of frames of a window, from past partners and later ones inside the window.

        Args:
            prediction: the window.
            indices: frames wanted, oldest first; all of the window if None.
            frames: images, whose edges the masks follow.
        """
        size = prediction.intrinsics.size
        self._look_at(frames, size)
        evidence = _Evidence.of(prediction, Views.of_window(prediction))
        for index in prediction.indices:
            if index not in self._arrivals:
                self._arrive(index, evidence, size)
        wanted = prediction.indices if indices is None else tuple(indices)
        self._judge_later(evidence, wanted)
        shown = {frame.index: frame for frame in frames if frame.index in wanted}
        seen = self._seen(prediction.tracks, prediction.indices, shown, size)
        votes = {i: self._final(i, evidence, size, seen.get(i)) for i in wanted}
        if self._choice.is_overruled:
            self._look_ahead(prediction.indices, wanted[-1], evidence, size)
        return self._mask(votes, shown, seen, None)  # its points lie in another camera

    @property
    def overrules_majority(self) -> bool:
        """Whether the larger motion of the view was found not to be the background's."""
        return self._choice.is_overruled

    def reset(self) -> None:
        """Forget all frames."""
        self._arrivals.clear()
        self._learnt.clear()
        self._pairs.clear()
        self._images.clear()
        self._depths.reset()
        self._mobility.reset()
        self._choice = BackgroundChoice()

    def _arrive(self, index: int, evidence: _Evidence, size: tuple[int, int]) -> Votes:
        """Votes of the past partners, with what the nearest of them was believed to be."""
        believed, past = self._believed(index, evidence.flows), past_flows(index, evidence.flows)
        if believed is None:
            pairs = self._judged(nearest_and_farthest(past), evidence)
            votes = self._with_memory(_heard(past, pairs, size), past, max, self._beliefs)
        else:
            votes = self._of_background(index, believed, evidence, size)
        votes = self._with_uncovered(index, votes, past)
        return _keep(self._arrivals, index, votes, MAX_FRAMES)

    def _final(
        self, index: int, evidence: _Evidence, size: tuple[int, int], seen: SeenTracks | None
    ) -> Votes:
        """Votes of the arrival and of later partners, and what is known of both sides by now."""
        later = later_flows(index, evidence.flows)
        judged = nearest_and_farthest(later)
        pairs = [self._pairs[flow.source, flow.target] for flow in judged]
        region = None if seen is None else self._chosen(index, pairs, seen, evidence)
        if region is not None:
            votes = self._of_background(index, region, evidence, size)
            return _keep(self._arrivals, index, votes, MAX_FRAMES)
        arrived = self._arrivals[index]
        votes = add(arrived, _heard(later, pairs, size))
        votes = self._with_memory(votes, later, max, self._beliefs)  # the farthest knows most
        votes = self._with_memory(votes, past_flows(index, evidence.flows), max, self._learnt)
        votes = self._with_uncovered(index, votes, later)
        _keep(self._learnt, index, votes.belief - arrived.belief, MAX_FRAMES)
        return votes

    def _chosen(
        self,
        index: int,
        pairs: Iterable[PairEvidence | None],
        seen: SeenTracks,
        evidence: _Evidence,
    ) -> Bools | None:
        """(H, W) the background of a frame where the majority's motion is not its motion."""
        before = self._choice.is_overruled
        believed = self._believed(index, evidence.flows)
        region = self._choice.choose(_voting(pairs), seen, believed)
        if self._choice.is_overruled != before:
            self._believe_nothing()  # what was believed took the thing for the background
        return region

    @property
    def _beliefs(self) -> dict[int, Floats]:
        return {index: votes.belief for index, votes in self._arrivals.items()}

    def _believe_nothing(self) -> None:
        self._learnt.clear()
        for index, votes in self._arrivals.items():
            self._arrivals[index] = join((), votes.belief.shape)

    def _of_background(
        self, index: int, region: Bools, evidence: _Evidence, size: tuple[int, int]
    ) -> Votes:
        """Votes of all pairs of a frame whose background is known, and of the frame before."""
        votes = join((), size)
        for side in (past_flows(index, evidence.flows), later_flows(index, evidence.flows)):
            pairs = self._workers.map(
                lambda flow: pair_evidence(flow, self._config, region=region),
                nearest_and_farthest(side),
            )
            votes = add(votes, _heard(side, pairs, size))
        return self._with_memory(votes, past_flows(index, evidence.flows), max, self._beliefs)

    def _look_ahead(
        self, indices: Sequence[int], settled: int, evidence: _Evidence, size: tuple[int, int]
    ) -> None:
        """Hand the background that was chosen on to the frames that are not final yet."""
        for index in indices:
            believed = self._believed(index, evidence.flows)
            if index > settled and believed is not None:
                self._arrivals[index] = self._of_background(index, believed, evidence, size)

    def _believed(self, index: int, flows: Iterable[FlowField]) -> Bools | None:
        """(H, W) the background, as the nearest frame before knew it; None for the majority's."""
        if not self._choice.is_overruled:
            return None
        known = {f.target: f for f in past_flows(index, flows) if f.target in self._arrivals}
        if not known:
            return None
        nearest = max(known)
        return carried(self._arrivals[nearest].belief, known[nearest]) < 0

    def _with_memory(
        self,
        votes: Votes,
        flows: Iterable[FlowField],
        choose: Callable[[Iterable[int]], int],
        known: Mapping[int, Floats],
    ) -> Votes:
        """Votes that also heed what is known of the partner that is chosen."""
        there = {flow.target: flow for flow in flows if flow.target in known}
        if not there:
            return votes
        target = choose(there)
        return remember(votes, known[target], there[target], self._config.memory)

    def _with_uncovered(self, index: int, votes: Votes, side: list[FlowField]) -> Votes:
        """Votes that also heed what the partners of one side show beside the moving things."""
        pairs = nearest_and_farthest(side)
        partners = [(f, self._images[f.target]) for f in pairs if f.target in self._images]
        if index not in self._images or not partners or self._config.fusion == "union":
            return votes
        scale = max(votes.decided.shape) / REFERENCE_SIDE_PX
        return resting_behind(votes, self._images[index], partners, scale)

    def _judge_later(self, evidence: _Evidence, wanted: Sequence[int]) -> None:
        """Judge the pairs with later partners that no earlier window has judged."""
        flows = evidence.flows
        later = [flow for i in wanted for flow in nearest_and_farthest(later_flows(i, flows))]
        new = [flow for flow in later if (flow.source, flow.target) not in self._pairs]
        bound = max(MAX_PAIRS, len(later))
        for flow, pair in zip(new, self._judged(new, evidence), strict=True):
            _keep(self._pairs, (flow.source, flow.target), pair, bound)

    def _judged(
        self, flows: Sequence[FlowField], evidence: _Evidence
    ) -> Iterable[PairEvidence | None]:
        return self._workers.map(partial(self._judge, evidence=evidence), flows)

    def _judge(self, flow: FlowField, evidence: _Evidence) -> PairEvidence | None:
        """By the matched pointmaps where there are some: they know depth, too."""
        matching = evidence.matchings.get((flow.source, flow.target))
        if matching is None:
            return pair_evidence(flow, self._config, self._depths.ask(flow, evidence.views))
        literal = self._config.fusion == "union"
        return (paper_evidence if literal else matching_evidence)(matching, self._config)

    def _look_at(self, frames: Iterable[Frame], size: tuple[int, int]) -> None:
        for frame in frames:
            if frame.index not in self._images:
                seen = coarse_image(frame.rgb.numpy(), size)
                _keep(self._images, frame.index, seen, MAX_FRAMES)

    def _forget_from(self, index: int) -> None:
        """Drop what is known of a number that comes anew, after its first frame was dropped."""
        for pair in [pair for pair in self._pairs if max(pair) >= index]:
            del self._pairs[pair]
        for held in (self._arrivals, self._learnt, self._images):
            for later in [known for known in held if known >= index]:
                del held[later]
        self._depths.forget_from(index)

    def _mask(
        self,
        votes: Mapping[int, Votes],
        shown: Mapping[int, Frame],
        seen: Mapping[int, SeenTracks],
        depth: NDArray[np.float32] | None,
    ) -> DynamicMask:
        masks = [
            self._moving(vote, shown.get(index), seen.get(index), depth)
            for index, vote in votes.items()
        ]
        return DynamicMask(
            tuple(votes),
            torch.from_numpy(np.stack(masks)),
            torch.from_numpy(np.stack([vote.evidence for vote in votes.values()])),
            torch.from_numpy(np.stack([vote.decided for vote in votes.values()])),
        )

    def _moving(
        self,
        votes: Votes,
        frame: Frame | None,
        seen: SeenTracks | None,
        depth: NDArray[np.float32] | None,
    ) -> Bools:
        scale = max(votes.decided.shape) / REFERENCE_SIDE_PX
        if seen is None:
            return self._drawn(votes, frame, scale)
        votes = with_tracks(votes, seen, depth, scale)
        return without_resting(self._drawn(votes, frame, scale), seen)

    def _drawn(self, votes: Votes, frame: Frame | None, scale: float) -> Bools:
        moving, least = self._fuse(votes), self._config.min_area_px
        if frame is None or self._config.fusion == "union":
            return clean_up(moving, votes.decided, least, scale)
        belief = to_edges(votes, frame.rgb.numpy(), scale)
        return tidy(grown(moving, belief > LEAST_DRAWN), THIN_PX, least, scale)

    def _seen(
        self,
        tracks: Tracks | None,
        indices: Sequence[int],
        shown: Mapping[int, Frame],
        shape: tuple[int, ...],
    ) -> dict[int, SeenTracks]:
        """Tracks of each frame that is shown; one that moved lately moves."""
        seen: dict[int, SeenTracks] = {}
        if tracks is None:
            return seen
        for index, frame in shown.items():
            ids, uv, mobility = visible(tracks, indices.index(index))
            at = on_grid(uv, frame.size, (shape[0], shape[1]))
            seen[index] = SeenTracks(at, np.maximum(mobility, self._mobility.held(index, ids)))
        return seen


def _heard(
    side: list[FlowField], pairs: Iterable[PairEvidence | None], size: tuple[int, int]
) -> Votes:
    """Votes of the judged pairs of the flows to one side, for those that were left out, too."""
    return join(_voting(pairs), size).louder(len(side), len(nearest_and_farthest(side)))


def _voting(pairs: Iterable[PairEvidence | None]) -> list[PairEvidence]:
    return [pair for pair in pairs if pair is not None]


def _keep(store: OrderedDict[Key, Value], key: Key, value: Value, bound: int) -> Value:
    """Store a value, dropping the oldest ones beyond the bound."""
    store[key] = value
    while len(store) > bound:
        store.popitem(last=False)
    return value

"""Where points go when dense flow is followed from frame to frame.

A point tracker that starts from this need not search: it has to mend and to judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.config import FlowConfig
from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.predictors.flow import Flow, Grey, Valid, consistent

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_CHECK = FlowConfig()
# Finest scale of the search and iterations of its refinement. The coarse one takes a fifth of the
# time; of points chained over 12 frames it leaves 6 % fewer within the usual thresholds.
_FINE, _COARSE = (0, 1), (1, 2)


@dataclass(frozen=True, eq=False)
class FlowStep:
    """Flow between two frames that follow each other, both ways.

    Attributes:
        onwards: (H, W, 2) float32 px, from the earlier frame to the later one.
        onwards_valid: (H, W) bool, it agrees with the way back.
        backwards: from the later frame to the earlier one.
        backwards_valid: likewise.
    """

    onwards: Flow
    onwards_valid: Valid
    backwards: Flow
    backwards_valid: Valid

    @classmethod
    def between(cls, earlier: Grey, later: Grey, *, is_fine: bool = True) -> FlowStep:
        """Search it between grey images (H, W) uint8 of one size."""
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        finest_scale, refinements = _FINE if is_fine else _COARSE
        search.setFinestScale(finest_scale)
        search.setVariationalRefinementIterations(refinements)
        nothing = np.empty(0, np.float32)
        there = np.asarray(search.calc(earlier, later, nothing), np.float32)
        back = np.asarray(search.calc(later, earlier, nothing), np.float32)
        return cls(there, consistent(there, back, _CHECK), back, consistent(back, there, _CHECK))

    def reversed(self) -> FlowStep:
        """As seen when time runs the other way."""
        return FlowStep(self.backwards, self.backwards_valid, self.onwards, self.onwards_valid)


def follow(steps: Sequence[FlowStep], queries: Array) -> tuple[Array, Mask]:
    """Follow points through a clip, onwards and backwards from their queries.

    Args:
        steps: the T - 1 of a clip of T frames.
        queries: (N, 3) frame number in the clip, x and y px.

    Returns:
        (T, N, 2) px, and (T, N) bool: no step on the way failed the check.
    """
    turned = [step.reversed() for step in steps[::-1]]
    first = np.concatenate([len(steps) - queries[:, :1], queries[:, 1:]], axis=1)
    uv, seen = _followed_onwards(steps, queries)
    past_uv, past_seen = _followed_onwards(turned, first)
    is_before = np.arange(len(uv))[:, None] < queries[:, 0]
    uv = np.where(is_before[..., None], past_uv[::-1], uv)
    return uv, np.where(is_before, past_seen[::-1], seen)


def _followed_onwards(steps: Sequence[FlowStep], queries: Array) -> tuple[Array, Mask]:
    """As `follow`, from each query's frame on; before it a point stands and is seen."""
    uv = np.tile(queries[:, 1:], (len(steps) + 1, 1, 1))
    seen = np.ones(uv.shape[:2], bool)
    for frame, step in enumerate(steps, start=1):
        going = queries[:, 0] < frame
        before = uv[frame - 1, going]
        uv[frame, going] = before + _sampled(step.onwards, before)
        is_valid = _sampled(step.onwards_valid.astype(np.float32), before) > 0.5
        seen[frame, going] = seen[frame - 1, going] & is_valid
    return uv, seen


def _sampled(image: NDArray[np.float32], uv: Array) -> Array:
    """Bilinear samples (N, ...) of an image at (N, 2) px, the border's value beyond it."""
    places = uv.astype(np.float32)[:, None]
    if len(places) == 0:
        return np.zeros((0, *image.shape[2:]))
    options = (cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    return np.asarray(
        cv2.remap(image, places, np.empty(0, np.float32), *options)[:, 0], np.float64
    )


def guessed_tracks(rgb: Tensor, queries: Tensor, *, is_fine: bool = True) -> TrackState:
    """What a network that starts from chained flow is given for whole clips.

    Args:
        rgb: (B, T, H, W, 3) uint8.
        queries: (B, N, 3) frame, x, y px.
        is_fine: of the flow; in training its time counts more than its errors.

    Returns:
        A state on the device of the queries.
    """
    followed = [
        follow(flow_steps([grey(i) for i in clip], is_fine=is_fine), asked.double().cpu().numpy())
        for clip, asked in zip(rgb.cpu(), queries, strict=True)
    ]
    uv, seen = (
        torch.from_numpy(np.stack(parts)).to(queries.device)
        for parts in zip(*followed, strict=True)
    )
    return TrackState.guessed(uv.float(), seen)


def flow_steps(images: Sequence[Grey], *, is_fine: bool = True) -> list[FlowStep]:
    """Flow between each image and the next."""
    return [FlowStep.between(*pair, is_fine=is_fine) for pair in itertools.pairwise(images)]


def grey(image: Tensor) -> Grey:
    """(H, W) uint8 of a colour image (H, W, 3) uint8."""
    return np.asarray(cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2GRAY), np.uint8)

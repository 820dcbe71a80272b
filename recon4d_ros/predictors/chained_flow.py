"""Where points go when dense flow is followed from frame to frame.

A point tracker that starts from this need not search: it has to mend and to judge.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recon4d_ros.config import FlowConfig
from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.predictors.flow import Flow, Grey, Valid, consistent, dense_inverse_search

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Down to full resolution. A search down to half of it would take a fifth of the time; of points
# chained over 12 frames it leaves 6 % fewer within the usual thresholds.
_FLOW = FlowConfig()
_OF_THREAD = threading.local()


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
    def between(cls, earlier: Grey, later: Grey) -> FlowStep:
        """Search it between grey images (H, W) uint8 of one size."""
        search = _search_of_thread()
        nothing = np.empty(0, np.float32)
        there = np.asarray(search.calc(earlier, later, nothing), np.float32)
        back = np.asarray(search.calc(later, earlier, nothing), np.float32)
        return cls(there, consistent(there, back, _FLOW), back, consistent(back, there, _FLOW))

    def reversed(self) -> FlowStep:
        """As seen when time runs the other way."""
        return FlowStep(self.backwards, self.backwards_valid, self.onwards, self.onwards_valid)


def _search_of_thread() -> cv2.DISOpticalFlow:
    """One for each thread: it keeps its pyramids, which saves a fifth of the time of a search."""
    held: cv2.DISOpticalFlow | None = getattr(_OF_THREAD, "search", None)
    if held is None:
        held = _OF_THREAD.search = dense_inverse_search(_FLOW)
    return held


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


def guessed_tracks(rgb: Tensor, queries: Tensor) -> TrackState:
    """What a network that starts from chained flow is given for whole clips.

    Args:
        rgb: (B, T, H, W, 3) uint8.
        queries: (B, N, 3) frame, x, y px.

    Returns:
        A state on the device of the queries.
    """
    return followed_tracks(searched_flow(rgb).to(queries.device), queries)


def searched_flow(rgb: Tensor) -> Tensor:
    """`Clips.searched_flow` of pictures (B, T, H, W, 3) uint8, on the CPU; clips side by side."""

    def of_clip(clip: Tensor) -> Tensor:
        steps = flow_steps([grey(image) for image in clip])
        ways = (steps, [step.reversed() for step in steps])
        return torch.stack([torch.stack([_packed(step) for step in way]) for way in ways])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return torch.stack(list(threads.map(of_clip, rgb.cpu())))


def _packed(step: FlowStep) -> Tensor:
    """(3, H, W) float16 of the way onwards."""
    parts = [step.onwards, step.onwards_valid[..., None]]
    return torch.from_numpy(np.concatenate(parts, axis=-1, dtype=np.float16)).movedim(-1, 0)


def followed_tracks(searched: Tensor, queries: Tensor) -> TrackState:
    """As `follow`, for whole batches on any device.

    Args:
        searched: (B, 2, T - 1, 3, H, W), see `Clips.searched_flow`.
        queries: (B, N, 3) frame, x, y px.
    """
    last = searched.shape[2]
    frame, asked = queries[..., 0], queries[..., 1:]
    uv, seen = _followed(searched[:, 0], frame, asked)
    past_uv, past_seen = _followed(searched[:, 1].flip(1), last - frame, asked)
    numbers = torch.arange(last + 1, device=queries.device)
    is_before = numbers[:, None] < frame[:, None]
    uv = torch.where(is_before[..., None], past_uv.flip(1), uv)
    return TrackState.guessed(uv, torch.where(is_before, past_seen.flip(1), seen))


def _followed(steps: Tensor, start: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """As `_followed_onwards`: (B, T, N, 2) and (B, T, N) of steps (B, T - 1, 3, H, W)."""
    size = asked.new_tensor([steps.shape[-1], steps.shape[-2]])
    uv, seen = [asked], [torch.ones_like(start, dtype=torch.bool)]
    for number, step in enumerate(steps.unbind(dim=1)):
        at = uv[-1]
        # Pixel centres are whole numbers here and (2 u + 1) / W - 1 there.
        grid = (2 * at + 1) / size - 1
        found = functional.grid_sample(
            step.float(), grid[:, :, None], padding_mode="border", align_corners=False
        ).squeeze(-1)
        going = start <= number
        uv.append(torch.where(going[..., None], at + found[:, :2].mT, at))
        seen.append(seen[-1] & ((found[:, 2] > 0.5) | ~going))
    return torch.stack(uv, dim=1), torch.stack(seen, dim=1)


def flow_steps(images: Sequence[Grey]) -> list[FlowStep]:
    """Flow between each image and the next."""
    return [FlowStep.between(*pair) for pair in itertools.pairwise(images)]


def grey(image: Tensor) -> Grey:
    """(H, W) uint8 of a colour image (H, W, 3) uint8."""
    return np.asarray(cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2GRAY), np.uint8)

"""Where the tracks of a window start, for networks that start from chained flow."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.predictors.chained_flow import FlowStep, follow, grey
from recon4d_ros.predictors.flow import Grey


class FlowStart:
    """Flow between the frames of the present window; that of frames that stay is kept."""

    def __init__(self) -> None:
        self._images: dict[int, Grey] = {}
        self._steps: dict[tuple[int, int], FlowStep] = {}

    def show(self, images: dict[int, Tensor], indices: tuple[int, ...]) -> None:
        """Move on to the window of some frames; those that were not in the last one come along.

        Args:
            images: by frame number, (H, W, 3) uint8.
            indices: frame numbers of the window.
        """
        new = {index: grey(image) for index, image in images.items()}
        self._images = {index: (self._images | new)[index] for index in indices}
        self._steps = {
            pair: self._steps.get(pair) or FlowStep.between(*(self._images[i] for i in pair))
            for pair in pairwise(indices)
        }

    def tracks(self, held: TrackState, seen: Tensor, anchor: int, is_new: Tensor) -> TrackState:
        """Tracks of the window.

        Args:
            held: what is known of them up to the frame `anchor`; of the new ones there alone.
            seen: (T, N) bool, likewise.
            anchor: place in the window.
            is_new: (N,) bool.
        """
        at = held.uv[0, anchor].double().cpu()
        queries = torch.cat([torch.full_like(at[:, :1], anchor), at], dim=1)
        followed, is_sure = (
            torch.from_numpy(part).to(seen.device)
            for part in follow(list(self._steps.values()), queries.numpy())
        )
        is_known = torch.arange(len(seen), device=seen.device)[:, None] <= anchor
        is_known = is_known & ~is_new
        uv = torch.where(is_known[..., None], held.uv[0], followed.float())
        seen = torch.where(is_known, seen, is_sure & (seen[anchor] | is_new))
        return TrackState.guessed(uv[None], seen[None])

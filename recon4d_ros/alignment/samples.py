"""Pixels that stand for their frame: enough to fix poses and scales, few enough to be fast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.pairs import Pairs


@dataclass(frozen=True, eq=False)
class Samples:
    """P pixels of each of N frames.

    Attributes:
        flat: (N, P) int64, row * W + column.
        uv: (N, P, 2) float64, px.
        valid: (N, P) bool; False fills up frames with fewer pixels.
        crowded_out: frames that had too few static pixels and are sampled all over.
    """

    flat: Tensor
    uv: Tensor
    valid: Tensor
    crowded_out: tuple[int, ...]

    def gather(self, maps: Tensor, frames: Tensor) -> Tensor:
        """Values (E, P, ...) float32 of maps (E, H, W, ...) at the samples of frames (E,)."""
        flat = maps.flatten(1, 2)
        index = self.flat[frames]
        for _ in range(flat.ndim - 2):
            index = index.unsqueeze(-1)
        return torch.gather(flat, 1, index.expand(-1, -1, *flat.shape[2:])).float()

    def first(self, pairs: Pairs, place: int) -> tuple[Tensor, Tensor]:
        """Points (P, 3) and weights (P,) float64 of the first view of one pair."""
        return self._of(pairs.first.points, pairs.first.weight, place, int(pairs.edges[place, 0]))

    def second(self, pairs: Pairs, place: int) -> tuple[Tensor, Tensor]:
        """The same of its second view."""
        return self._of(
            pairs.second.points, pairs.second.weight, place, int(pairs.edges[place, 1])
        )

    def _of(self, points: Tensor, weight: Tensor, place: int, frame: int) -> tuple[Tensor, Tensor]:
        chosen = self.flat[frame]
        known = weight[place].flatten()[chosen] * self.valid[frame]
        return points[place].flatten(0, 1)[chosen].double(), known.double()


def static_samples(pairs: Pairs, masks: Tensor, count: int, least: int) -> Samples:
    """Static pixels that any pair knows, spread by chance; equal input gives equal samples.

    Args:
        pairs: predictions.
        masks: (N, H, W) bool, what moves.
        count: P, bound on pixels per frame.
        least: a frame with fewer static pixels is sampled wherever it is known.
    """
    known = _known(pairs)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(known[0].numel(), generator=generator)
    chosen, valid, crowded_out = [], [], []
    for frame in range(pairs.num_frames):
        usable = (known[frame] & ~masks[frame]).flatten()
        if int(usable.sum()) < least:
            usable = known[frame].flatten()
            crowded_out.append(frame)
        picked = order[usable[order]][:count]
        valid.append(torch.arange(count) < len(picked))
        chosen.append(torch.nn.functional.pad(picked, (0, count - len(picked))))
    flat = torch.stack(chosen)
    width = pairs.size[1]
    uv = torch.stack([flat % width, flat // width], dim=-1).double()
    return Samples(flat, uv, torch.stack(valid), tuple(crowded_out))


def _known(pairs: Pairs) -> Tensor:
    """(N, H, W) bool, pixels that at least one pair knows."""
    known = torch.zeros(pairs.num_frames, *pairs.size, dtype=torch.bool)
    for view, frames in ((pairs.first, pairs.edges[:, 0]), (pairs.second, pairs.edges[:, 1])):
        count = torch.zeros(known.shape).index_add_(0, frames, (view.weight > 0).float())
        known |= count > 0
    return known

"""A bounded number of rendered clips, each shown many times and never twice the same."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.training.sources import ClipSource

# A query is where its point is first seen, or in any frame that sees it, equally often.
_FIRST_SIGHT = 0.5


class RememberedClips:
    """Clips by number, endless: round after round in another order, each time in another guise.

    Where rendering costs as much as learning, as on a CPU, this is how a step gets cheap. A clip
    is mirrored, its time reversed, its colours swapped, and other frames of its tracks are the
    queries; all that is true of it goes with it. Poses, depth and dense motion are left out.
    """

    def __init__(self, source: ClipSource, count: int, seed: int) -> None:
        """Remember this many clips of a source, each from its first showing on."""
        self._source, self._count, self._seed = source, count, seed
        self._clip = functools.lru_cache(maxsize=None)(self._rendered)
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def clips(self, first: int, count: int) -> Clips:
        """Clips number `first` to `first + count - 1`."""
        return Clips.joined([self._shown(number) for number in range(first, first + count)])

    def _shown(self, number: int) -> Clips:
        round_number, place = divmod(number, self._count)
        clip = self._clip(int(self._order(round_number)[place]))
        return disguised(clip, torch.Generator().manual_seed(self._seed + 1_000_003 * number))

    def _shuffled(self, round_number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng((self._seed, round_number)).permutation(self._count)

    def _rendered(self, number: int) -> Clips:
        clip = self._source.clips(number, 1)
        return dataclasses.replace(
            clip,
            T_world_cam=None,
            K=None,
            depth=None,
            dynamic_mask=None,
            flow=None,
            scene_flow=None,
        )


def disguised(clip: Clips, draw: torch.Generator) -> Clips:
    """One clip, mirrored, reversed, recoloured and asked for other points of the same tracks."""
    sideways, upside_down, backwards = (torch.rand(3, generator=draw) < 0.5).tolist()
    clip = mirrored(clip, sideways, upside_down)
    clip = reversed_in_time(clip) if backwards else clip
    channels = torch.randperm(3, generator=draw).to(clip.rgb.device)
    return dataclasses.replace(clip, rgb=clip.rgb[..., channels], queries=_queries(clip, draw))


def mirrored(clip: Clips, sideways: bool, upside_down: bool) -> Clips:
    """The clip as a mirror beside or below it shows it."""
    height, width = clip.rgb.shape[2:4]
    axes = [axis for axis, is_turned in ((3, sideways), (2, upside_down)) if is_turned]
    turned = clip.tracks.new_tensor([sideways, upside_down])
    border = clip.tracks.new_tensor([width - 1, height - 1])

    def flipped(uv: Tensor) -> Tensor:
        return torch.where(turned > 0, border - uv, uv)

    queries = torch.cat([clip.queries[..., :1], flipped(clip.queries[..., 1:])], dim=-1)
    return dataclasses.replace(
        clip, rgb=clip.rgb.flip(axes), tracks=flipped(clip.tracks), queries=queries
    )


def reversed_in_time(clip: Clips) -> Clips:
    """The clip from its last frame to its first."""
    last = clip.rgb.shape[1] - 1
    frame = last - clip.queries[..., :1]
    return dataclasses.replace(
        clip,
        rgb=clip.rgb.flip(1),
        tracks=clip.tracks.flip(1),
        visibility=clip.visibility.flip(1),
        moves_in_frame=clip.moves_in_frame.flip(1),
        queries=torch.cat([frame, clip.queries[..., 1:]], dim=-1),
    )


def _queries(clip: Clips, draw: torch.Generator) -> Tensor:
    """(1, N, 3) of frames that see the points; a point that none sees keeps its query."""
    frame_order = torch.rand(clip.visibility.shape, generator=draw).to(clip.rgb.device)
    is_first = torch.rand(clip.visibility[:, 0].shape, generator=draw) < _FIRST_SIGHT
    early = torch.arange(clip.rgb.shape[1], device=frame_order.device)[:, None]
    order = torch.where(is_first.to(early.device)[:, None], early.to(frame_order), frame_order)
    seen = clip.visibility & clip.tracks.isfinite().all(dim=-1)
    frame = torch.where(seen, order, torch.inf).argmin(dim=1)
    uv = clip.tracks.gather(1, frame[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]
    asked = torch.cat([frame[..., None].to(uv), uv], dim=-1)
    return torch.where(seen.any(dim=1)[..., None], asked, clip.queries)

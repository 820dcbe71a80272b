"""A bounded number of clips, each shown many times and never twice the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recon4d_ros.datatypes.clips import CameraMotion, Clips
from recon4d_ros.predictors.chained_flow import searched_flow
from recon4d_ros.training.sources import ClipSource

# A query is where its point is first seen, or in any frame that sees it, equally often.
_FIRST_SIGHT = 0.5
# Clips asked of the source at a time: what many share on a GPU costs as much as one.
_AT_A_TIME = 128


class RememberedClips:
    """Clips by number, endless: round after round in another order, each time in another guise.

    Where rendering costs as much as learning this is how a step gets cheap. A clip is mirrored,
    its time reversed, its colours swapped, and other frames of its tracks are the queries; all
    that is true of it goes with it. Poses, depth and dense motion are left out.
    """

    def __init__(
        self, source: ClipSource, count: int, seed: int, *, needs_flow: bool = False
    ) -> None:
        """Remember this many clips of a source; all are made at the first request.

        Args:
            source: of the clips.
            count: how many.
            seed: of the order and the guises.
            needs_flow: search the flow of each clip once and remember it, too.
        """
        self._source, self._count, self._seed = source, count, seed
        self._needs_flow = needs_flow
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def clips(self, first: int, count: int) -> Clips:
        """Clips number `first` to `first + count - 1`."""
        numbers = range(first, first + count)
        rows = [int(self._order(n // self._count)[n % self._count]) for n in numbers]
        chosen = self._held.rows(rows)
        draws = [drawn_disguise(chosen, self._seed + 1_000_003 * number) for number in numbers]
        return disguised(chosen, Disguise.joined(draws).to(chosen.rgb.device))

    @functools.cached_property
    def _held(self) -> Clips:
        return _gathered(self._made(), self._count)

    def _made(self) -> Iterator[Clips]:
        starts = range(0, self._count, _AT_A_TIME)
        for first in tqdm(starts, desc="clips to remember", unit=f"x{_AT_A_TIME}", leave=False):
            clips = self._source.clips(first, min(_AT_A_TIME, self._count - first))
            flow = searched_flow(clips.rgb).to(clips.rgb.device) if self._needs_flow else None
            yield dataclasses.replace(
                clips,
                T_world_cam=None,
                K=None,
                depth=None,
                dynamic_mask=None,
                flow=None,
                scene_flow=None,
                searched_flow=flow,
            )

    def _shuffled(self, round_number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng((self._seed, round_number)).permutation(self._count)


def _gathered(parts: Iterator[Clips], count: int) -> Clips:
    """`count` clips in one place; they are many, and never lie in memory twice."""
    held: dict[str, Tensor] = {}
    motions: list[CameraMotion] = []
    for part in parts:
        rows = slice(len(motions), len(motions) + len(part.rgb))
        motions += part.camera_motion
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                place = held.setdefault(name, value.new_empty((count, *value.shape[1:])))
                place[rows] = value
    return Clips(camera_motion=tuple(motions), **held)


@dataclass(frozen=True, eq=False)
class Disguise:
    """What becomes of B clips.

    Attributes:
        is_mirrored: (B, 2) bool, sideways and upside down.
        is_reversed: (B,) bool, in time.
        channels: (B, 3) int64, which colour becomes which.
        frame_rank: (B, T, N), of the frames that see a point the one of the least is the query's.
    """

    is_mirrored: Tensor
    is_reversed: Tensor
    channels: Tensor
    frame_rank: Tensor

    @classmethod
    def joined(cls, parts: list[Disguise]) -> Disguise:
        """One of several."""
        names = [item.name for item in dataclasses.fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def to(self, device: torch.device) -> Disguise:
        """On another device."""
        return Disguise(*(value.to(device) for value in vars(self).values()))


def drawn_disguise(clips: Clips, seed: int) -> Disguise:
    """The disguise of one clip, of the shape of these, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    turns = torch.rand(1, 3, generator=draw) < 0.5
    num_frames, num_points = clips.visibility.shape[1:]
    anywhere = torch.rand(1, num_frames, num_points, generator=draw)
    is_first = torch.rand(1, 1, num_points, generator=draw) < _FIRST_SIGHT
    in_order = torch.arange(num_frames, dtype=torch.float32)[:, None]
    return Disguise(
        is_mirrored=turns[:, :2],
        is_reversed=turns[:, 2],
        channels=torch.randperm(3, generator=draw)[None],
        frame_rank=torch.where(is_first, in_order, anywhere),
    )


def disguised(clips: Clips, disguise: Disguise) -> Clips:
    """Clips, mirrored, reversed, recoloured and asked for other points of the same tracks."""
    clips = mirrored(clips, disguise.is_mirrored)
    clips = reversed_in_time(clips, disguise.is_reversed)
    channels = disguise.channels[:, None, None, None].expand_as(clips.rgb)
    return dataclasses.replace(
        clips, rgb=clips.rgb.gather(-1, channels), queries=_queries(clips, disguise.frame_rank)
    )


def mirrored(clips: Clips, is_mirrored: Tensor) -> Clips:
    """The clips (B, 2) as mirrors beside and below them show them."""
    height, width = clips.rgb.shape[2:4]
    border = clips.tracks.new_tensor([width - 1, height - 1])

    def flipped(uv: Tensor) -> Tensor:
        turned = is_mirrored.view(-1, *(1,) * (uv.ndim - 2), 2)
        return torch.where(turned, border - uv, uv)

    rgb, flow = clips.rgb, clips.searched_flow
    for axis, is_turned in enumerate(is_mirrored.unbind(dim=1)):
        rgb = _where(is_turned, rgb.flip(3 - axis), rgb)
        if flow is not None:
            turned = flow.flip(5 - axis)
            turned[:, :, :, axis].neg_()
            flow = _where(is_turned, turned, flow)
    queries = torch.cat([clips.queries[..., :1], flipped(clips.queries[..., 1:])], dim=-1)
    return dataclasses.replace(
        clips, rgb=rgb, tracks=flipped(clips.tracks), queries=queries, searched_flow=flow
    )


def reversed_in_time(clips: Clips, is_reversed: Tensor) -> Clips:
    """Those of the clips (B,) from their last frame to their first."""

    def turned(values: Tensor, *axes: int) -> Tensor:
        return _where(is_reversed, values.flip(axes), values)

    last, frame = clips.rgb.shape[1] - 1, clips.queries[..., :1]
    flow = clips.searched_flow
    return dataclasses.replace(
        clips,
        rgb=turned(clips.rgb, 1),
        tracks=turned(clips.tracks, 1),
        visibility=turned(clips.visibility, 1),
        moves_in_frame=turned(clips.moves_in_frame, 1),
        queries=torch.cat([_where(is_reversed, last - frame, frame), clips.queries[..., 1:]], -1),
        # What led onwards leads back.
        searched_flow=None if flow is None else turned(flow, 1, 2),
    )


def _where(is_other: Tensor, other: Tensor, values: Tensor) -> Tensor:
    """Of each clip (B,) the one or the other (B, ...)."""
    return torch.where(is_other.view(-1, *(1,) * (values.ndim - 1)), other, values)


def _queries(clips: Clips, frame_rank: Tensor) -> Tensor:
    """(B, N, 3) of frames that see the points; a point that none sees keeps its query."""
    seen = clips.visibility & clips.tracks.isfinite().all(dim=-1)
    frame = torch.where(seen, frame_rank, torch.inf).argmin(dim=1)
    uv = clips.tracks.gather(1, frame[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]
    asked = torch.cat([frame[..., None].to(uv), uv], dim=-1)
    return torch.where(seen.any(dim=1)[..., None], asked, clips.queries)

"""Trackers that are asked for given points of a clip: the baselines that a network must beat.

All see the clip forwards and backwards from the frame of the query, so that a point asked for late
has a past too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.config import FlowConfig
from recon4d_ros.datatypes import Frame, Window
from recon4d_ros.errors import EvaluationError
from recon4d_ros.predictors.chained_flow import FlowStep, follow, grey
from recon4d_ros.predictors.flow import FlowHistory
from recon4d_ros.predictors.klt import KltTracker
from recon4d_ros.predictors.mobility import (
    Residual,
    mobility,
    off_epipolar_lines,
    off_homography,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClipTracks:
    """What a tracker says of N points asked for in a clip of T frames.

    Attributes:
        uv: (T, N, 2) float64 px, a guess where the point is hidden, NaN where there is none.
        seen: (T, N) bool.
        mobility: (N,) float64 in [0, 1], above 0.5 the point moves in the world.
    """

    uv: Tensor
    seen: Tensor
    mobility: Tensor


# Baselines that judge the tracks of KLT by one model of the camera's motion.
RESIDUALS: dict[str, Residual] = {
    "homography residual": off_homography,
    "epipolar residual": off_epipolar_lines,
}

# Tracks of the queries (N, 3) [frame, x px, y px] in a clip (T, H, W, 3) uint8, by name.
Methods = Callable[[Tensor, Tensor], dict[str, ClipTracks]]


def baselines(rgb: Tensor, queries: Tensor) -> dict[str, ClipTracks]:
    """Tracks of every baseline.

    Args:
        rgb: (T, H, W, 3) uint8.
        queries: (N, 3) frame, x, y in px.

    Raises:
        EvaluationError: a query lies outside the clip or the image.
    """
    check_queries(rgb, queries)
    klt = klt_tracks(rgb, queries)
    return {
        "zero motion": zero_motion(rgb, queries),
        "chained flow": chained_flow(rgb, queries),
        "klt": klt,
        **{name: _judged(klt, rgb, residual) for name, residual in RESIDUALS.items()},
    }


def check_queries(rgb: Tensor, queries: Tensor) -> None:
    """See that queries fit a clip.

    Raises:
        EvaluationError: the shape is wrong, or a query lies outside the clip or the image.
    """
    if rgb.ndim != 4 or queries.ndim != 2 or queries.shape[1] != 3:
        raise EvaluationError(
            f"frames {tuple(rgb.shape)} and queries {tuple(queries.shape)}; expected (T, H, W, 3) "
            "and (N, 3)"
        )
    height, width = rgb.shape[1:3]
    most = torch.tensor([len(rgb) - 1, width - 0.5, height - 0.5])
    least = torch.tensor([0, -0.5, -0.5])
    outside = ~((queries.cpu() >= least) & (queries.cpu() <= most)).all(dim=1)
    if bool(outside.any()):
        bad = queries[outside.to(queries.device)][0].tolist()
        raise EvaluationError(
            f"{int(outside.sum())} of {len(queries)} queries lie outside {len(rgb)} frames of "
            f"{width} x {height} px, the first [frame, x, y] = {bad}; ask for points of the clip"
        )


def zero_motion(rgb: Tensor, queries: Tensor) -> ClipTracks:
    """Every point stays where it was asked for, is always seen and never moves."""
    uv = queries[:, 1:].double().expand(len(rgb), -1, -1).clone()
    return ClipTracks(uv, torch.ones(uv.shape[:2], dtype=torch.bool), torch.zeros(len(queries)))


def chained_flow(rgb: Tensor, queries: Tensor) -> ClipTracks:
    """DIS flow from frame to frame; a point is hidden from its first inconsistent step on."""
    history = FlowHistory(FlowConfig(max_step=1, num_partners=1))
    fields = [history.push(index, grey(image)) for index, image in enumerate(rgb)][1:]
    steps = [
        FlowStep(back.flow.numpy(), back.valid.numpy(), there.flow.numpy(), there.valid.numpy())
        for there, back in fields
    ]
    uv, seen = follow(steps, queries.numpy().astype(np.float64))
    return _tracks(uv, seen, rgb)


def klt_tracks(rgb: Tensor, queries: Tensor) -> ClipTracks:
    """The tracker of the node on the points asked for; a hidden point goes with its neighbours."""
    asked = queries.numpy().astype(np.float64)
    onwards = _followed(rgb, asked)
    backwards = _followed(rgb.flip(0), _reversed(asked, rgb))
    uv, seen = _joined(onwards, backwards, asked)
    return _tracks(uv, seen, rgb)


def _followed(rgb: Tensor, asked: Array) -> tuple[Array, Mask]:
    """Positions (T, N, 2) and sight (T, N) of KLT from each query's frame on."""
    uv = np.tile(asked[:, 1:], (len(rgb), 1, 1))
    seen = np.zeros(uv.shape[:2], bool)
    order: list[int] = []
    tracker = KltTracker(max_points=max(1, len(asked)), seek=partial(_due, asked, order))
    for frame, image in enumerate(rgb):
        tracks = tracker.track(Window((Frame(frame, frame, image),), frame))
        ids, at = tracker.positions()
        number = np.array(order, np.int64)
        started = asked[:, 0] < frame
        uv[frame, started] = uv[frame - 1, started]  # of a track that ended: where it was last
        uv[frame, number[ids]] = at
        visible = tracks.visibility[0].numpy() > 0
        seen[frame, number[tracks.ids.numpy()[visible]]] = True
    return uv, seen


def _due(asked: Array, order: list[int], _grey: object, _at: Array, _px: int, frame: int) -> Array:
    """The points asked for at a frame, once; `order` learns which query each track is."""
    due = np.setdiff1d(np.flatnonzero(asked[:, 0] == frame), order)
    order.extend(due.tolist())
    return asked[due, 1:]


def _reversed(asked: Array, rgb: Tensor) -> Array:
    return np.concatenate([len(rgb) - 1 - asked[:, :1], asked[:, 1:]], axis=1)


def _joined(
    onwards: tuple[Array, Mask], backwards: tuple[Array, Mask], asked: Array
) -> tuple[Array, Mask]:
    """Frames before the query from the reversed clip, the rest from the clip."""
    is_before = np.arange(len(onwards[0]))[:, None] < asked[:, 0]
    uv = np.where(is_before[..., None], backwards[0][::-1], onwards[0])
    return uv, np.where(is_before, backwards[1][::-1], onwards[1])


def _tracks(uv: Array, seen: Mask, rgb: Tensor) -> ClipTracks:
    height, width = rgb.shape[1:3]
    inside = ((uv >= -0.5) & (uv <= np.array([width, height]) - 0.5)).all(axis=-1)
    known = torch.from_numpy(uv), torch.from_numpy(seen & inside)
    score = mobility(_where_seen(*known), max(height, width))
    return ClipTracks(*known, torch.from_numpy(score))


def _judged(tracks: ClipTracks, rgb: Tensor, residual: Residual) -> ClipTracks:
    """With mobility from what one model leaves over, however badly it fits most tracks."""
    uv = _where_seen(tracks.uv, tracks.seen)
    score = mobility(uv, max(rgb.shape[1:3]), residual, max_median_px=np.inf)
    return replace(tracks, mobility=torch.from_numpy(score))


def _where_seen(uv: Tensor, seen: Tensor) -> Array:
    return torch.where(seen[..., None], uv, torch.nan).numpy()

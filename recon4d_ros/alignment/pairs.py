"""Predictions of many directed pairs: taken in, checked and made safe to compute with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from recon4d_ros.errors import AlignmentError

Array = Tensor | NDArray[Any]


@dataclass(frozen=True, eq=False)
class View:
    """One map of every pair.

    Attributes:
        points: (E, H, W, 3) float32; 1 1 1 where the weight is zero, never NaN.
        weight: (E, H, W) float32, logarithm of the confidence; 0 where it cannot be used.
    """

    points: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Predictions of E directed pairs (i, j), in the camera of i and a unit of their own.

    Attributes:
        edges: (E, 2) int64, i then j.
        num_frames: N.
        first: points of the pixels of i.
        second: points of the pixels of j.
        matching: where the surface points of the pixels of j were at the time of i, or None.
        notes: what was left out.
    """

    edges: Tensor
    num_frames: int
    first: View
    second: View
    matching: View | None
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.first.weight.shape[1], self.first.weight.shape[2]


def checked_pairs(
    edges: Array,
    points_1: Array,
    conf_1: Array,
    points_2_in_1: Array,
    conf_2: Array,
    matching_2_in_1: Array | None,
    conf_matching: Array | None,
) -> Pairs:
    """Take in the predictions; arguments as `align_pairs`.

    Pixels whose point is not finite, or whose confidence is not finite or at most 1, get no
    weight; a pair without a usable pixel in either view is left out and noted.

    Raises:
        AlignmentError: shapes do not fit, nothing is usable, or the pairs fall into components.
    """
    links = _edges(edges)
    first = _view(points_1, conf_1, "points_1", "conf_1", len(links), in_front=True)
    second = _view(points_2_in_1, conf_2, "points_2_in_1", "conf_2", len(links))
    if second.weight.shape != first.weight.shape:
        raise AlignmentError(
            f"points_1 has images of {tuple(first.weight.shape[1:])}, points_2_in_1 of "
            f"{tuple(second.weight.shape[1:])}; expected one size (H, W) for all"
        )
    matching = _matching(matching_2_in_1, conf_matching, second)
    usable = (first.weight > 0).flatten(1).any(dim=1) & (second.weight > 0).flatten(1).any(dim=1)
    num_frames = int(links.max()) + 1
    notes = tuple(
        f"pair ({i}, {j}) has no usable pixel and was left out" for i, j in links[~usable].tolist()
    )
    _check_connected(links[usable], num_frames, notes)
    return Pairs(
        links[usable],
        num_frames,
        _kept(first, usable),
        _kept(second, usable),
        None if matching is None else _kept(matching, usable),
        notes,
    )


def components(edges: Tensor, num_frames: int) -> tuple[tuple[int, ...], ...]:
    """Frames that pairs connect, each group sorted, the group of the lowest frame first."""
    i, j = edges.T.numpy()
    graph = coo_array((np.ones(len(edges)), (i, j)), shape=(num_frames, num_frames))
    count, label = connected_components(graph, directed=False)
    return tuple(
        sorted(tuple(np.flatnonzero(label == number).tolist()) for number in range(count))
    )


def _check_connected(edges: Tensor, num_frames: int, notes: tuple[str, ...]) -> None:
    found = components(edges, num_frames)
    if len(found) > 1:
        named = " | ".join(_span(part) for part in found)
        left_out = f" ({'; '.join(notes)})" if notes else ""
        raise AlignmentError(
            f"the pairs connect {num_frames} frames into {len(found)} components that nothing "
            f"joins: {named}{left_out}; give pairs between them, or align each by itself"
        )


def _span(frames: Iterable[int]) -> str:
    """Frames as text, runs shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _edges(edges: Array) -> Tensor:
    links = torch.as_tensor(edges)
    if links.ndim != 2 or links.shape[1] != 2 or links.is_floating_point() or not len(links):
        raise AlignmentError(
            f"edges is {tuple(links.shape)} {links.dtype}; expected (E, 2) integers with at least "
            "one pair of frame numbers"
        )
    if int(links.min()) < 0:
        raise AlignmentError(f"edges names frame {int(links.min())}; expected numbers from 0 on")
    return links.long().cpu()


def _view(
    points: Array,
    conf: Array,
    name: str,
    conf_name: str,
    num_edges: int,
    in_front: bool = False,
) -> View:
    # A copy of read-only arrays, which torch cannot hold.
    p, c = (
        torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x) for x in (points, conf)
    )
    p, c = p.detach().cpu().float(), c.detach().cpu().float()
    if p.ndim != 4 or p.shape[-1] != 3 or p.shape[:-1] != c.shape or len(p) != num_edges:
        raise AlignmentError(
            f"{name} is {tuple(p.shape)} and {conf_name} {tuple(c.shape)}; expected "
            f"({num_edges}, H, W, 3) and ({num_edges}, H, W) for {num_edges} edges"
        )
    weight = log_confidence(c)
    x, y, z = p.unbind(dim=-1)
    size = x.abs() + y.abs() + z.abs()  # NaN or infinite if one of them is
    known = (size > 0) & (size < torch.inf)
    known = known & (z > 0) if in_front else known
    weight = torch.where(known, weight, 0.0)
    if not bool((weight > 0).any()):
        raise AlignmentError(
            f"no pixel of {name} can be used: points must be finite"
            f"{' and in front of the camera' if in_front else ''}, and {conf_name} above 1 as in "
            "DUSt3R's family; add 1 to weights in [0, 1]"
        )
    used = weight > 0
    return View(p if bool(used.all()) else torch.where(used.unsqueeze(-1), p, 1.0), weight)


def log_confidence(confidence: Tensor) -> Tensor:
    """Weight of GA, log C; zero for what is no confidence of DUSt3R's family, which exceeds 1."""
    return torch.where(confidence.isfinite() & (confidence > 1), confidence, 1.0).log()


def _matching(points: Array | None, conf: Array | None, second: View) -> View | None:
    if points is None:
        if conf is not None:
            raise AlignmentError("conf_matching was given without matching_2_in_1; give both")
        return None
    if conf is None:
        conf = second.weight.exp()
    names = ("matching_2_in_1", "conf_matching")
    view = _view(points, conf, *names, len(second.weight))
    if view.weight.shape != second.weight.shape:
        raise AlignmentError(
            f"matching_2_in_1 has images of {tuple(view.weight.shape[1:])}; expected "
            f"{tuple(second.weight.shape[1:])} as points_2_in_1"
        )
    return view


def _kept(view: View, usable: Tensor) -> View:
    if bool(usable.all()):
        return view
    return View(view.points[usable], view.weight[usable])

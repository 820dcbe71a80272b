"""A loop that closes: where the drift goes, and everything remembered moved with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore
from recon4d_ros.alignment.loop_closure import (
    Loop,
    agree,
    displacement,
    find_loops,
    median_depth,
)
from recon4d_ros.alignment.pose_graph import PoseGraph, Solution, solve
from recon4d_ros.alignment.retrieval import Places
from recon4d_ros.alignment.state import Join, MapState
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import EventKind, MapCorrection, MapEvent, Window
from recon4d_ros.geometry import se3, sim3

# Rotation that one frame may add to the drift, for one unit of position over depth.
_ROTATION_DRIFT = 0.3
# Squared standard deviations, seven numbers: below, a loop says nothing new (99.9 % of chi
# squared); above, drift does not explain it (6 sigma, for the drift is known by its order only).
_NOTICEABLE = 24.3
_IMPLAUSIBLE = 36.0
# Links of earlier loops kept for each keyframe that may be kept.
_LINKS_PER_KEYFRAME = 2


@dataclass(frozen=True, eq=False)
class Link:
    """Two keyframes that a loop joined; how they lie to each other is what the map says now.

    Attributes:
        old, new: frame numbers.
        information: as in `Loop`.
    """

    old: int
    new: int
    information: Tensor


@dataclass(frozen=True, eq=False)
class LoopMemory:
    """What loop closure keeps from window to window; frozen.

    Attributes:
        places: words of the keyframes.
        links: loops found so far, oldest first.
    """

    places: Places = field(default_factory=Places)
    links: tuple[Link, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return self.places.num_bytes + sum(link.information.nbytes for link in self.links)


@dataclass(frozen=True, eq=False)
class Closure:
    """The aligner's memory after looking for a loop.

    Attributes:
        memory: of loop closure.
        state, store: of the map, moved when there is an event.
        event: the correction, or None.
    """

    memory: LoopMemory
    state: MapState
    store: KeyframeStore
    event: MapEvent | None = None


def close_loop(
    memory: LoopMemory,
    state: MapState,
    store: KeyframeStore,
    window: Window,
    config: AlignmentConfig,
) -> Closure:
    """Look for the place of the newest keyframe among the old ones, and correct the map by it.

    The frames of the window move as one, with the newest keyframe, so that the predictor's
    relative poses stay; earlier ones take their share of the correction.
    """
    memory = replace(memory, places=memory.places.of(store))
    unchanged = Closure(memory, state, store)
    new, first_index = store.last(state.submap), window.frames[0].index
    if new is None or new.index < first_index:
        return unchanged
    # What the window holds moves with it and cannot correct it.
    min_gap = max(config.loop_min_gap, new.index - first_index + 1)
    loops = find_loops(new, store, memory.places, min_gap, config)
    older = [kf for kf in store.keyframes if kf.submap == state.submap and kf.index < first_index]
    best = _best_fit([*older, new], loops, memory.links, config)
    if best is None:
        return unchanged
    limit = _LINKS_PER_KEYFRAME * config.max_keyframes
    link = Link(best.loop.old, best.loop.new, best.loop.information)
    memory = replace(memory, links=(*memory.links, link)[-limit:])
    if best.S_map_node is None:
        return replace(unchanged, memory=memory)
    correction = _correction([*older, new], best.S_map_node, window)
    event = MapEvent(
        EventKind.MAP_CORRECTION,
        window.frames[-1].stamp_ns,
        state.submap,
        _description(best.loop, new, correction),
        correction,
    )
    return Closure(memory, moved_state(state, correction), moved_store(store, correction), event)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A loop that the drift explains.

    Attributes:
        loop: the loop.
        S_map_node: (M, 4, 4) where the anchors lie with it; None when nothing need move.
    """

    loop: Loop
    S_map_node: Tensor | None


def _best_fit(
    anchors: list[Keyframe],
    loops: tuple[Loop, ...],
    links: tuple[Link, ...],
    config: AlignmentConfig,
) -> _Fit | None:
    """The best loop that needs no drift beyond what can be expected.

    None without one, and when another such loop contradicts it: two places look alike.
    """
    found: _Fit | None = None
    S_map_found = anchors[-1].T_map_cam
    for loop in loops:
        S_map_new = anchors[_position(anchors, loop.old)].T_map_cam @ loop.S_old_new
        if found is not None and agree(anchors[-1], S_map_found, S_map_new):
            continue
        fit = _fit(anchors, loop, links, config)
        if fit is None:
            continue
        if found is not None:
            return None
        found, S_map_found = fit, S_map_new
    return found


def _fit(
    anchors: list[Keyframe], loop: Loop, links: tuple[Link, ...], config: AlignmentConfig
) -> _Fit | None:
    old, new = anchors[_position(anchors, loop.old)], anchors[-1]
    is_small = displacement(new, old.T_map_cam @ loop.S_old_new) < config.loop_min_correction
    if is_small or not _noticeable(old, new, loop):
        return _Fit(loop, None)
    solution = _solved(anchors, loop, links, config)
    return _Fit(loop, solution.S_map_node) if 2.0 * solution.cost < _IMPLAUSIBLE else None


def _description(loop: Loop, new: Keyframe, correction: MapCorrection) -> str:
    S = correction.S_new_old[-1]
    scale, T = sim3.split(S)
    centre = new.T_map_cam[:3, 3]
    distance = float(torch.linalg.vector_norm(se3.transform(S, centre) - centre))
    angle = float(torch.rad2deg(se3.angle(T[:3, :3])))
    return (
        f"frame {loop.new} sees the place of frame {loop.old} again ({loop.num_inliers} matches "
        f"agree): the present pose moves by {distance:.3g} map units and {angle:.2g} deg, and "
        f"lengths there are multiplied by {float(scale):.4g}"
    )


def _solved(
    anchors: list[Keyframe], loop: Loop, links: Iterable[Link], config: AlignmentConfig
) -> Solution:
    """The anchors' places when neighbours keep their relative place as well as drift allows."""
    S_map_node = torch.stack([keyframe.T_map_cam for keyframe in anchors])
    ends = [(k, k + 1) for k in range(len(anchors) - 1)]
    information = [
        _drift_information(a, b, config.loop_drift) for a, b in itertools.pairwise(anchors)
    ]
    for link in links:
        a, b = _position(anchors, link.old), _position(anchors, link.new)
        if b - a > 1:
            ends.append((a, b))
            information.append(_in_map_units(link.information, anchors[b]))
    ends.append((_position(anchors, loop.old), len(anchors) - 1))
    information.append(_in_map_units(loop.information, anchors[-1]))
    first, second = torch.tensor(ends).unbind(-1)
    measured = sim3.inverse(S_map_node[first]) @ S_map_node[second]
    measured[-1] = loop.S_old_new
    is_loop = torch.arange(len(first)) >= len(anchors) - 1
    graph = PoseGraph(first, second, measured, torch.stack(information), is_loop)
    return solve(graph, S_map_node)


def _drift_information(a: Keyframe, b: Keyframe, drift: float) -> Tensor:
    variance = drift**2 * max(1, b.index - a.index)
    each = torch.full((7,), 1.0 / variance, dtype=torch.float64)
    each[3:6] /= _ROTATION_DRIFT**2
    return _in_map_units(torch.diag(each), b)


def _in_map_units(information: Tensor, second: Keyframe) -> Tensor:
    """Of translations in map units instead of shares of the depth."""
    unit = torch.ones(7, dtype=torch.float64)
    unit[:3] = 1.0 / median_depth(second)
    return information * unit * unit[:, None]


def _position(anchors: list[Keyframe], index: int) -> int:
    """The anchor of a frame number, or the one before it in the place of an evicted one."""
    earlier = [k for k, keyframe in enumerate(anchors) if keyframe.index <= index]
    return earlier[-1] if earlier else 0


def _noticeable(old: Keyframe, new: Keyframe, loop: Loop) -> bool:
    """Whether the map contradicts the loop by more than the loop's own noise."""
    here = sim3.inverse(loop.S_old_new) @ se3.relative(old.T_map_cam, new.T_map_cam)
    residual = sim3.coordinates(here)
    information = _in_map_units(loop.information, new)
    return float(residual @ information @ residual) > _NOTICEABLE


def _correction(anchors: list[Keyframe], S_map_node: Tensor, window: Window) -> MapCorrection:
    T_map_node = torch.stack([keyframe.T_map_cam for keyframe in anchors])
    frames = [(keyframe.index, keyframe.stamp_ns) for keyframe in anchors[:-1]]
    frames.append((window.frames[0].index, window.frames[0].stamp_ns))
    indices, stamps_ns = torch.tensor(frames).mT.contiguous()
    return MapCorrection(
        anchors[-1].submap, indices, stamps_ns, S_map_node @ se3.inverse(T_map_node)
    )


def corrections_at(correction: MapCorrection, indices: Iterable[int]) -> Tensor:
    """(P, 4, 4) similarities of frame numbers."""
    at = torch.tensor(list(indices), dtype=torch.int64)
    return sim3.interpolate(correction.indices, correction.S_new_old, at)


def moved_state(state: MapState, correction: MapCorrection) -> MapState:
    """The state after a correction of its submap.

    What belongs to the present gauge moves with it as one, the poses by their own times.
    """
    S = correction.S_new_old[-1]
    join = state.join
    scale, T_map_gauge = join.scale * float(sim3.split(S)[0]), join.T_map_gauge
    if T_map_gauge is not None:
        T_map_gauge = sim3.transform_pose(S, T_map_gauge)
    T = torch.stack(list(state.poses.values()))
    moved = sim3.transform_pose(corrections_at(correction, state.poses), T)
    marks, sample = state.landmarks, state.sample
    return replace(
        state,
        join=Join(join.gauge, scale, T_map_gauge),
        poses=dict(zip(state.poses, moved, strict=True)),
        sample=replace(sample, points_map=se3.transform(S, sample.points_map)),
        landmarks=replace(marks, positions=se3.transform(S, marks.positions)),
    )


def moved_store(store: KeyframeStore, correction: MapCorrection) -> KeyframeStore:
    """The keyframes after a correction; those of other submaps stay."""
    mine = [row for row, kf in enumerate(store.keyframes) if kf.submap == correction.submap]
    keyframes = list(store.keyframes)
    S = corrections_at(correction, [keyframes[row].index for row in mine])
    T = sim3.transform_pose(S, torch.stack([keyframes[row].T_map_cam for row in mine]))
    for k, row in enumerate(mine):
        points = se3.transform(S[k], keyframes[row].points_map)
        keyframes[row] = replace(keyframes[row], T_map_cam=T[k], points_map=points)
    return KeyframeStore.of(store.limit, tuple(keyframes))

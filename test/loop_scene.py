"""A camera that walks a ring through the analytic room, and a predictor that drifts on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import analytic_scene as scene
import torch
from torch import Tensor

from recon4d_ros.alignment.aligner import Aligner
from recon4d_ros.alignment.keyframes import Keyframe, detect
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import (
    Frame,
    FramePrediction,
    Intrinsics,
    IntrinsicsSource,
    MapCorrection,
    MapEvent,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.geometry import pointmap, se3, sim3

VIEW = scene.intrinsics(120, 160)


def ring_pose(turn: float) -> Tensor:
    """T_world_cam after `turn` rounds, looking outwards."""
    angle = torch.tensor([0.0, 2 * math.pi * turn, 0.0], dtype=torch.float64)
    R = se3.exp_so3(angle)
    height = torch.tensor([0.0, 0.3 * math.sin(4 * math.pi * turn), 0.0], dtype=torch.float64)
    return se3.make(R, 1.5 * R[:, 2] + height)


@dataclass(frozen=True, eq=False)
class Ring:
    """Frames of a walk with their true poses and depths."""

    frames: tuple[Frame, ...]
    poses: tuple[Tensor, ...]
    depths: tuple[Tensor, ...]
    view: Intrinsics = VIEW


Paint = Callable[[Tensor, Intrinsics], Tensor]


@cache
def ring(count: int, turns: float, paint: Paint = scene.image) -> Ring:
    """A walk of some rounds; `paint` draws what a camera sees."""
    poses = tuple(ring_pose(turns * i / (count - 1)) for i in range(count))
    frames = [Frame(i, scene.stamp(i), paint(T, VIEW), VIEW) for i, T in enumerate(poses)]
    return Ring(tuple(frames), poses, tuple(scene.depth(T, VIEW) for T in poses))


def keyframe(
    index: int, T_world_cam: Tensor, S_map_world: Tensor | None = None, paint: Paint = scene.image
) -> Keyframe:
    """An exact keyframe, in a map that is the world or a similarity of it."""
    S = torch.eye(4, dtype=torch.float64) if S_map_world is None else S_map_world
    frame = Frame(index, scene.stamp(index), paint(T_world_cam, VIEW), VIEW)
    features = detect(frame, VIEW.size, 500)
    x, y = features.uv.round().long().unbind(-1)
    points = pointmap.from_depth(scene.depth(T_world_cam, VIEW), VIEW)[y, x]
    points_map = se3.transform(S @ T_world_cam, points)
    T_map_cam = sim3.transform_pose(S, T_world_cam)
    return Keyframe(
        index, frame.stamp_ns, 0, T_map_cam, VIEW, features.uv, points_map, features.descriptors
    )


def mixed(cell: Tensor) -> Tensor:
    """(P,) random grey of integer cells (P, 3)."""
    number = cell[:, 0] * 73_856_093 ^ cell[:, 1] * 19_349_663 ^ cell[:, 2] * 83_492_791
    return (number * 2_654_435_761 >> 7) % 200 + 30


def painted(world_to_cell: Callable[[Tensor], Tensor]) -> Paint:
    """Images whose grey depends on a cell of the world point, as `scene.image` has it."""

    def paint(T_world_cam: Tensor, view: Intrinsics) -> Tensor:
        points = pointmap.from_depth(scene.depth(T_world_cam, view), view)
        world = se3.transform(T_world_cam, points.reshape(-1, 3))
        grey = mixed(world_to_cell(world)).to(torch.uint8)
        return grey.reshape(*view.size, 1).expand(-1, -1, 3).contiguous()

    return paint


def drifted(poses: tuple[Tensor, ...], step: Tensor, noise: float = 0.0) -> Tensor:
    """(T, 4, 4) similarities: the same walk with an error (7,) added at every step."""
    generator = torch.Generator().manual_seed(3)
    walk = [poses[0]]
    for a, b in itertools.pairwise(poses):
        error = step + noise * torch.randn(7, generator=generator, dtype=torch.float64)
        walk.append(walk[-1] @ se3.relative(a, b) @ sim3.from_coordinates(error))
    return torch.stack(walk)


class DriftingPredictor(scene.ExactPredictor):
    """Says of each frame the truth, but at a scale and a pose that wander off."""

    def __init__(self, walk: Ring, S_gauge_cam: Tensor, **choices: object) -> None:
        super().__init__(
            view=walk.view, trajectory=walk.poses, depths=walk.depths, num_landmarks=0, **choices
        )
        self.local, R_t = sim3.split(S_gauge_cam)
        self.wandering = R_t
        self.name = "drifting"

    def pose_gauge(self, index: int) -> Tensor:
        return self.wandering[index]

    def depth(self, index: int) -> Tensor:
        return self.true_depth(index) * self.local[index]

    def window(self, indices: range, **changes: object) -> WindowPrediction:
        key, count = indices[len(indices) // 2], len(indices)
        T_key_cam = se3.inverse(self.wandering[key]) @ self.wandering[list(indices)]
        points = [
            se3.transform(T.float(), self._points(index))
            for T, index in zip(T_key_cam, indices, strict=True)
        ]
        prediction = WindowPrediction(
            indices=tuple(indices),
            stamps_ns=tuple(scene.stamp(index) for index in indices),
            gauge=self.gauge,
            key_index=key,
            intrinsics=self.view,
            intrinsics_source=IntrinsicsSource.GIVEN,
            points_key=tuple(points),
            confidence=torch.ones(count, *self.view.size),
            filled=torch.zeros(count, *self.view.size, dtype=torch.bool),
            T_key_cam=T_key_cam if self.gives_poses else None,
            pose_residual_px=torch.full((count,), 0.1),
            pose_support=torch.full((count,), 100),
            states=(TrackingState.TRACKING,) * count,
            flows=(),
            T_gauge_key=self.pose_gauge(key) if self.names_gauge else None,
        )
        return replace(prediction, **changes)

    def _points(self, index: int) -> Tensor:
        """(H, W, 3) float32 in the frame's own camera and unit."""
        return pointmap.from_depth(self.depth(index).float(), self.view)


class Walk:
    """Feeds frames and windows to an aligner; keeps first and corrected poses by frame."""

    def __init__(
        self, frames: tuple[Frame, ...], predictor: scene.ExactPredictor, config: AlignmentConfig
    ) -> None:
        self.frames, self.predictor = frames, predictor
        self.aligner = Aligner(config)
        self.first: dict[int, Tensor] = {}
        self.final: dict[int, Tensor] = {}
        self.events: list[MapEvent] = []

    def run(self, until: int | None = None) -> Walk:
        for index in range(len(self.frames) if until is None else until):
            self.step(index)
        return self

    def step(self, index: int) -> None:
        prediction: FramePrediction = self.predictor.frame(index, max(0, index - 4))
        located = self.aligner.locate(self.frames[index], prediction)
        if located.T_map_cam is not None:
            self.first[index] = located.T_map_cam
        if index % 4 != 3:
            return
        indices = range(max(0, index - 11), index + 1)
        window = Window(self.frames[indices[0] : index + 1], index - 2)
        still = scene.nothing_moves(indices, self.predictor.view.size)
        aligned = self.aligner.align(window, self.predictor.window(indices), still)
        for row, number in enumerate(indices):
            if bool(aligned.T_map_cam[row].isfinite().all()):
                self.final[number] = aligned.T_map_cam[row]
        events = self.aligner.commit(aligned, window)
        for event in events:
            if event.correction is not None:
                self.correct(event.correction)
        self.events += events

    def correct(self, correction: MapCorrection) -> None:
        at = torch.tensor(list(self.final))
        S = sim3.interpolate(correction.indices, correction.S_new_old, at)
        moved = sim3.transform_pose(S, torch.stack(list(self.final.values())))
        self.final = dict(zip(self.final, moved, strict=True))

    @property
    def corrections(self) -> list[MapCorrection]:
        return [event.correction for event in self.events if event.correction is not None]


def ate(found: dict[int, Tensor], poses: tuple[Tensor, ...]) -> float:
    """RMSE of the centres after the best similarity, metres."""
    ours = torch.stack([T[:3, 3] for T in found.values()])
    truth = torch.stack([poses[index][:3, 3] for index in found])
    S = sim3.fit(ours, truth)
    return float((se3.transform(S, ours) - truth).square().sum(-1).mean().sqrt())

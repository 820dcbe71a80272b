"""A textured box room with exact depth, poses and landmarks, and exact predictions of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from recon4d_ros.datatypes import (
    DynamicMask,
    Frame,
    FramePrediction,
    Intrinsics,
    IntrinsicsSource,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.geometry import camera, pointmap, se3

# Thousands of tiny tensors: threads would only wait for one another.
torch.set_num_threads(1)

HALF_SIZE = torch.tensor([4.0, 3.0, 5.0], dtype=torch.float64)


def intrinsics(height: int, width: int) -> Intrinsics:
    focal = 0.9 * width
    return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)


@lru_cache(maxsize=64)
def pose(index: int) -> Tensor:
    """T_world_cam of a camera that sways through the room for ever."""
    t = torch.tensor(float(index), dtype=torch.float64) * 0.02
    rho = torch.stack([1.5 * torch.sin(t), 0.8 * torch.sin(1.7 * t), 1.5 * torch.sin(0.6 * t)])
    phi = torch.stack([0.2 * torch.sin(1.3 * t), 0.7 * torch.sin(0.8 * t), 0.1 * torch.sin(t)])
    return se3.make(se3.exp_so3(phi), rho)


@lru_cache(maxsize=64)
def depth_at(index: int, view: Intrinsics) -> Tensor:
    """z-depth (H, W) float64 at `pose(index)`."""
    return depth(pose(index), view)


def depth(T_world_cam: Tensor, view: Intrinsics) -> Tensor:
    """z-depth (H, W) float64 of the walls of the room."""
    rays = camera.directions(camera.pixel_grid(view.size, torch.float64), view)
    directions = rays @ T_world_cam[:3, :3].mT
    origin = T_world_cam[:3, 3]
    # Inside a box the nearest of the three walls ahead is hit first.
    return ((torch.sign(directions) * HALF_SIZE - origin) / directions).amin(-1)


def image(T_world_cam: Tensor, view: Intrinsics) -> Tensor:
    """(H, W, 3) uint8: cells of random grey that stick to the walls."""
    points = pointmap.from_depth(depth(T_world_cam, view), view)
    world = se3.transform(T_world_cam, points.reshape(-1, 3))
    cell = torch.floor(world * 4.0 + 0.01).long()
    mixed = cell[:, 0] * 73_856_093 ^ cell[:, 1] * 19_349_663 ^ cell[:, 2] * 83_492_791
    grey = (mixed * 2_654_435_761 >> 7) % 200 + 30
    return grey.to(torch.uint8).reshape(*view.size, 1).expand(-1, -1, 3).contiguous()


def landmarks(count: int, seed: int = 0) -> Tensor:
    """(N, 3) float64 points on the walls; the row is the landmark's id."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 - 1) * HALF_SIZE
    wall = torch.randint(0, 3, (count,), generator=generator)
    rows = torch.arange(count)
    points[rows, wall] = torch.sign(points[rows, wall]) * HALF_SIZE[wall]
    return points


@dataclass
class ExactPredictor:
    """Says the truth in a gauge of its own: world coordinates turned, moved and scaled.

    Attributes:
        S_gauge_world: (4, 4) rigid part of the gauge.
        scale: predictor units per world unit.
        names_gauge: whether T_gauge_key is given.
        gives_poses: whether T_key_cam is given; a network does not.
        noise: relative noise of the depth, and of the landmarks.
        pose_noise: of each window's poses, predictor units and radians.
    """

    view: Intrinsics = field(default_factory=lambda: intrinsics(24, 32))
    T_gauge_world: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))
    scale: float = 1.0
    gauge: int = 0
    names_gauge: bool = True
    gives_poses: bool = True
    num_landmarks: int = 200
    noise: float = 0.0
    pose_noise: float = 0.0
    trajectory: tuple[Tensor, ...] | None = None
    depths: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.points = landmarks(self.num_landmarks)

    def pose_world(self, index: int) -> Tensor:
        return pose(index) if self.trajectory is None else self.trajectory[index]

    def pose_gauge(self, index: int) -> Tensor:
        T = (self.T_gauge_world @ self.pose_world(index)).clone()
        T[:3, 3] *= self.scale
        return T

    def true_depth(self, index: int) -> Tensor:
        if self.depths is not None:
            return self.depths[index]
        if self.trajectory is None:
            return depth_at(index, self.view)
        return depth(self.pose_world(index), self.view)

    def depth(self, index: int) -> Tensor:
        exact = self.true_depth(index) * self.scale
        return exact * (1 + self.noise * self._normal(exact.shape))

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def frame(self, index: int, key_index: int, **changes: object) -> FramePrediction:
        T_key_cam = se3.inverse(self.pose_gauge(key_index)) @ self.pose_gauge(index)
        size = self.view.size
        z = self.depth(index).float()
        exact = FramePrediction(
            index=index,
            stamp_ns=stamp(index),
            gauge=self.gauge,
            key_index=key_index,
            intrinsics=self.view,
            intrinsics_source=IntrinsicsSource.GIVEN,
            T_key_cam=T_key_cam,
            depth=z,
            confidence=z.isfinite().float(),
            flows=(),
            state=TrackingState.TRACKING,
            residual_px=0.1,
            num_support=100,
            filled=torch.zeros(size, dtype=torch.bool),
            T_gauge_key=self.pose_gauge(key_index) if self.names_gauge else None,
        )
        return replace(exact, **changes)

    def window(self, indices: range, **changes: object) -> WindowPrediction:
        key = indices[len(indices) // 2]
        T_gauge_key = self.pose_gauge(key)
        T_key_gauge = se3.inverse(T_gauge_key)
        T_gauge_cam = self.T_gauge_world @ torch.stack([self.pose_world(i) for i in indices])
        T_gauge_cam[:, :3, 3] *= self.scale
        T_key_cam = T_key_gauge @ T_gauge_cam
        if self.pose_noise:
            T_key_cam = T_key_cam @ se3.exp(self.pose_noise * self._normal((len(indices), 6)))
            T_key_cam[indices.index(key)] = torch.eye(4, dtype=torch.float64)
        depths = torch.stack([self.true_depth(index) for index in indices]) * self.scale
        if self.noise:
            depths = depths * (1 + self.noise * self._normal(depths.shape))
        points_key = pointmap.transform(T_key_cam, pointmap.from_depth(depths, self.view)).float()
        sparse = (
            self.points @ self.T_gauge_world[:3, :3].mT + self.T_gauge_world[:3, 3]
        ) * self.scale
        sparse = se3.transform(T_key_gauge, sparse)
        sparse = sparse * (1 + self.noise * self._normal(sparse.shape[:1]))[:, None]
        exact = WindowPrediction(
            indices=tuple(indices),
            stamps_ns=tuple(stamp(index) for index in indices),
            gauge=self.gauge,
            key_index=key,
            intrinsics=self.view,
            intrinsics_source=IntrinsicsSource.GIVEN,
            points_key=tuple(points_key),
            confidence=points_key[..., 0].isfinite().float(),
            filled=torch.zeros(points_key.shape[:-1], dtype=torch.bool),
            T_key_cam=T_key_cam if self.gives_poses else None,
            pose_residual_px=None,
            pose_support=None,
            states=(TrackingState.TRACKING,) * len(indices),
            flows=(),
            landmark_ids=torch.arange(self.num_landmarks) if self.num_landmarks else None,
            landmarks_key=sparse if self.num_landmarks else None,
            T_gauge_key=T_gauge_key if self.names_gauge else None,
        )
        return replace(exact, **changes)


def stamp(index: int) -> int:
    return 33_000_000 * (index + 1)


def window_of(frames: list[Frame] | tuple[Frame, ...]) -> Window:
    return Window(frames=tuple(frames), settled_before=frames[-1].index - 2)


def nothing_moves(indices: range | tuple[int, ...], size: tuple[int, int]) -> DynamicMask:
    shape = (len(indices), *size)
    return DynamicMask(
        indices=tuple(indices),
        mask=torch.zeros(shape, dtype=torch.bool),
        evidence=torch.zeros(shape),
        decided=torch.ones(shape, dtype=torch.bool),
    )

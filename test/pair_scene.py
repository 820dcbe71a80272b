"""Pairs of a room with a ball that flies through it: exact, or as noisy as a network's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from analytic_scene import depth as room_depth
from analytic_scene import pose
from torch import Tensor

from recon4d_ros.alignment import PairAlignment
from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.evaluation import trajectory
from recon4d_ros.geometry import camera, pointmap, se3

VIEW = Intrinsics(40.0, 40.0, 24.0, 18.0, 48, 36)
RADIUS = 0.9


def offsets(count: int, strides: tuple[int, ...] = (1, 3, 5)) -> list[tuple[int, int]]:
    """Both directions of all frames these strides apart."""
    ahead = [(i, i + s) for s in strides for i in range(count - s)]
    return ahead + [(j, i) for i, j in ahead]


def path(count: int, step: int = 4) -> Tensor:
    """(N, 4, 4) a camera that sways through the room."""
    return torch.stack([pose(1 + step * index) for index in range(count)])


@dataclass
class PairScene:
    """N frames and what a perfect network says of their pairs.

    Attributes:
        T_world_cam: (N, 4, 4).
        has_ball: a ball moves through the view.
        along: noise along the ray, over the distance; a third of it across.
        seed: of the noise and of the pairs' units.
    """

    T_world_cam: Tensor
    has_ball: bool = True
    along: float = 0.0
    seed: int = 0
    view: Intrinsics = VIEW

    def __post_init__(self) -> None:
        views = [self._seen(index) for index in range(len(self.T_world_cam))]
        self.depth, self.dynamic = (torch.stack(each) for each in zip(*views, strict=True))

    def centre(self, index: int) -> Tensor:
        """Of the ball in the world."""
        across = torch.tensor([-1.2 + 0.3 * index, -0.4 + 0.1 * index, 0.0]).double()
        middle = self.T_world_cam[len(self.T_world_cam) // 2]
        return middle[:3, 3] + middle[:3, :3] @ (across + torch.tensor([0.0, 0.0, 3.0]).double())

    def _seen(self, index: int) -> tuple[Tensor, Tensor]:
        T = self.T_world_cam[index]
        walls = room_depth(T, self.view)
        if not self.has_ball:
            return walls, torch.zeros(self.view.size, dtype=torch.bool)
        rays = camera.directions(camera.pixel_grid(self.view.size, torch.float64), self.view)
        c = T[:3, :3].T @ (self.centre(index) - T[:3, 3])
        a, b = (rays * rays).sum(-1), rays @ c
        root = b * b - a * (c @ c - RADIUS**2)
        ball = (b - root.clamp(min=0).sqrt()) / a
        hit = (root > 0) & (ball > 0.1) & (ball < walls)
        return torch.where(hit, ball, walls), hit

    def predictions(self, edges: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Arguments of `align_pairs`, each pair in its own unit."""
        random = torch.Generator().manual_seed(self.seed)
        columns: dict[str, list[Tensor]] = {"points_1": [], "points_2_in_1": [], "matching": []}
        for i, j in edges:
            unit = (0.3 * torch.randn((), generator=random)).exp()
            cam_i, cam_j = (pointmap.from_depth(self.depth[k], self.view) for k in (i, j))
            T = se3.relative(self.T_world_cam[i], self.T_world_cam[j])
            other = pointmap.transform(T, cam_j)
            moved = self.T_world_cam[i][:3, :3].T @ (self.centre(i) - self.centre(j))
            matched = other + self.dynamic[j].unsqueeze(-1) * moved
            for name, points in zip(columns, (cam_i, other, matched), strict=True):
                columns[name].append(self._noisy(points, random) * unit)
        stacked = {name: torch.stack(maps).float() for name, maps in columns.items()}
        conf = torch.full(stacked["points_1"].shape[:-1], 5.0)
        return {
            "edges": torch.tensor(edges),
            "points_1": stacked["points_1"],
            "conf_1": conf,
            "points_2_in_1": stacked["points_2_in_1"],
            "conf_2": conf.clone(),
            "matching_2_in_1": stacked["matching"],
            "conf_matching": conf.clone(),
        }

    def _noisy(self, points: Tensor, random: torch.Generator) -> Tensor:
        distance = points.norm(dim=-1, keepdim=True)
        ray = points / distance
        across = torch.randn(points.shape, generator=random, dtype=torch.float64)
        across -= (across * ray).sum(dim=-1, keepdim=True) * ray
        far = torch.randn(distance.shape, generator=random, dtype=torch.float64)
        return points + self.along * distance * (far * ray + across / 3)


def ate(found: Any, truth: Any) -> float:
    pairs = trajectory.pair_by_index(np.asarray(truth), np.asarray(found))
    return float(np.sqrt((trajectory.absolute_errors(trajectory.align(pairs)) ** 2).mean()))


def iou(found: Tensor, truth: Tensor) -> float:
    return float((found & truth).sum() / (found | truth).sum().clamp(min=1))


def path_length(T: Tensor) -> float:
    return float(T[:, :3, 3].diff(dim=0).norm(dim=-1).sum())


def depth_error(result: PairAlignment, scene: PairScene) -> float:
    ratio = result.depth / scene.depth
    return float((ratio / ratio.nanmedian() - 1).abs().nanmean())

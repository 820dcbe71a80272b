"""Exact flow of a rigid scene with one moving ellipse, from the pinhole equations alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from scipy.linalg import expm

from recon4d_ros.datatypes import FlowField, Intrinsics

SIZE = (180, 320)
FOCAL = 288.0
GRID = Intrinsics(FOCAL, FOCAL, (SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2, SIZE[1], SIZE[0])
STRONG_STRUCTURE = (100.0, 0.0, 100.0)


def smooth_noise(seed: int, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=SIZE)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return smooth / smooth.std()


def pixels() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), -1).astype(float)


def ellipse(centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    offset = (pixels() - centre) / axes
    return (offset**2).sum(-1) < 1


def grid_of_tracks(step: int = 8) -> np.ndarray:
    """Positions (N, 2) of tracks all over the image."""
    rows, columns = np.mgrid[step // 2 : SIZE[0] : step, step // 2 : SIZE[1] : step]
    return np.stack([columns.ravel(), rows.ravel()], axis=-1)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / (mask | truth).sum())


def rough_depth() -> np.ndarray:
    """Pillars before a wall: depth 4 to 9, with steps."""
    return np.where(smooth_noise(5, 25.0) > 0.5, 4.0, 7.0) + 0.5 * smooth_noise(6, 15.0)


@dataclass(frozen=True)
class FlowScene:
    """Motion from one frame to the next; partners k frames away see k times as much."""

    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    object_motion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    moving: np.ndarray = field(default_factory=lambda: ellipse((200, 90), (40, 50)))
    depth: np.ndarray = field(default_factory=rough_depth)
    noise_px: float = 0.1
    structure: tuple[float, float, float] | None = STRONG_STRUCTURE

    def points(self) -> np.ndarray:
        depth = np.where(self.moving & bool(np.any(self.object_motion)), 4.0, self.depth)
        rays = (pixels() - [(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2]) / FOCAL
        return np.concatenate([rays, np.ones((*SIZE, 1))], -1) * depth[..., None]

    def pose(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """R and t that take this frame's camera coordinates to those `frames` later."""
        T = self.T_gauge_cam(-frames).numpy()
        return T[:3, :3], T[:3, 3]

    def flow(self, source: int, target: int) -> FlowField:
        frames = target - source
        R, t = self.pose(frames)
        moved = self.points() + self.moving[..., None] * np.array(self.object_motion) * frames
        moved = moved @ R.T + t
        landing = moved[..., :2] / moved[..., 2:] * FOCAL
        landing += [(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2]
        seeds = (source * 100 + target * 2, source * 100 + target * 2 + 1)
        noise = np.stack([smooth_noise(abs(seed) + 10, 3.0) for seed in seeds], -1)
        flow = landing - pixels() + self.noise_px * noise
        valid = ((landing >= 0) & (landing <= [SIZE[1] - 1, SIZE[0] - 1])).all(-1)
        structure = None
        if self.structure is not None:
            structure = torch.tensor(self.structure).expand(*SIZE, 3).contiguous()
        return FlowField(
            source,
            target,
            torch.from_numpy(flow.astype(np.float32)),
            torch.from_numpy(valid),
            structure,
        )

    def T_gauge_cam(self, frame: int) -> torch.Tensor:
        """Pose of a frame's camera in that of frame 0."""
        x, y, z = np.deg2rad(self.rotation_deg)
        twist = np.zeros((4, 4))
        twist[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
        twist[:3, 3] = self.translation
        return torch.from_numpy(expm(-frame * twist))

    def arrival(self, index: int, offsets: tuple[int, ...] = (3, 6, 9)) -> SimpleNamespace:
        """The part of a FramePrediction that masks need; no pose and no depth is known."""
        flows = tuple(self.flow(index, index - k) for k in offsets)
        nothing = torch.full(SIZE, torch.nan)
        unknown = {"depth": nothing, "confidence": torch.nan_to_num(nothing)}
        return _prediction(flows, index=index, **unknown)

    def window(self, first: int, last: int, offsets: tuple[int, ...] = (3, 6)) -> SimpleNamespace:
        """The part of a WindowPrediction that masks need; no pose is known."""
        indices = tuple(range(first, last + 1))
        flows = tuple(
            self.flow(a, b) for a in indices for b in indices if a != b and abs(a - b) in offsets
        )
        return _prediction(flows, indices=indices)


def _prediction(flows: tuple[FlowField, ...], **more: object) -> SimpleNamespace:
    """What both kinds of prediction hold."""
    return SimpleNamespace(
        flows=flows,
        matchings=(),
        tracks=None,
        intrinsics=GRID,
        gauge=0,
        T_key_cam=None,
        T_gauge_key=torch.eye(4, dtype=torch.float64),
        **more,
    )

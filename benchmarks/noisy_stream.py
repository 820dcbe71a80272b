"""A rendered stream with exact poses, masks and tracks whose depth is noisy in every frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.config import Config
from recon4d_ros.datatypes import IntrinsicsSource, Reconstruction, TrackingState, Tracks
from recon4d_ros.evaluation.temporal import FlickerFrame, FlickerReport, depth_flicker
from recon4d_ros.geometry import camera
from recon4d_ros.refinement.lifting import lift
from recon4d_ros.refinement.refiner import Refiner
from recon4d_ros.synthetic import correspondence, raycast, scenes
from recon4d_ros.synthetic.correspondence import ExactTracks
from recon4d_ros.synthetic.renderer import RenderedFrame, moving_solids
from recon4d_ros.synthetic.scene import Scene, snapshot

CELL_PX = 20  # of the tracks, for images of a long side of 512
QUERY_EVERY = 12  # frames between two that start tracks


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log-depth, drawn anew for each frame.

    Attributes:
        smooth: of a field that varies over an eighth of the image, as a network's errors do.
        scale: of the whole frame.
        pixel: of each pixel alone.
    """

    smooth: float = 0.03
    scale: float = 0.01
    pixel: float = 0.0


@dataclass(frozen=True, eq=False)
class NoisyStream:
    """Frames, their noisy depth, and exact tracks over all of them.

    Attributes:
        frames: T rendered frames.
        depth: (T, H, W) noisy.
        uv: (T, N, 2) px, NaN where not seen.
        points: (T, N, 3) true places in the world.
        moving: (T, N) bool.
    """

    frames: tuple[RenderedFrame, ...]
    depth: Tensor
    uv: Tensor
    points: Tensor
    moving: Tensor

    @property
    def truth(self) -> Tensor:
        """(T, H, W) depth without noise."""
        return torch.stack([frame.depth for frame in self.frames])

    @property
    def masks(self) -> Tensor:
        """(T, H, W) bool."""
        return torch.stack([frame.dynamic_mask for frame in self.frames])

    def raw_points(self) -> Tensor:
        """Tracks (T, N, 3) lifted by the noisy depth, as they enter the smoothing."""
        lifted = [
            lift(uv, depth, frame.intrinsics, frame.T_world_cam)
            for uv, depth, frame in zip(self.uv, self.depth, self.frames, strict=True)
        ]
        return torch.stack(lifted)

    def reconstruction(self, index: int) -> Reconstruction:
        """The noisy frame as alignment would hand it over."""
        frame = self.frames[index]
        return Reconstruction(
            frame=frame.frame,
            is_final=True,
            T_map_cam=frame.T_world_cam,
            depth=self.depth[index],
            confidence=torch.ones_like(frame.depth),
            dynamic_mask=frame.dynamic_mask,
            filled=torch.zeros_like(frame.dynamic_mask),
            intrinsics=frame.intrinsics,
            intrinsics_source=IntrinsicsSource.GIVEN,
            state=TrackingState.TRACKING,
            submap=0,
            scale_known=True,
            residual_px=0.0,
            num_support=100,
        )

    def tracks(self, index: int) -> Tracks:
        """All tracks in one frame (T = 1)."""
        row = slice(index, index + 1)
        return Tracks(
            ids=torch.arange(self.uv.shape[1]),
            uv=self.uv[row].float(),
            visibility=self.uv[row, :, 0].isfinite().float(),
            mobility=self.moving[row].float(),
        )

    def refined(self, mode: str = "robust", **changes: object) -> tuple[Reconstruction, ...]:
        """Every frame after refinement."""
        settings = {"mode": mode, **changes}
        named = {f"refinement.{name}": value for name, value in settings.items()}
        refiner = Refiner(Config().replaced(named).refinement)
        return self.through(refiner, range(len(self.frames)))

    def through(
        self, refiner: Refiner, indices: range, stride: int = 4
    ) -> tuple[Reconstruction, ...]:
        """Some frames, `stride` at a time, as windows settle them; those after them are known."""
        rows = [(self.reconstruction(i), self.tracks(i)) for i in indices]
        starts = range(0, len(rows), stride)
        steps = [refiner.refine(rows[i : i + stride], rows[i + stride :]) for i in starts]
        return tuple(one for step in steps for one in step)

    def flicker(self, depth: Tensor) -> FlickerReport:
        """Flicker of static depth (T, H, W), pixels found by the true geometry."""
        frames: Iterator[FlickerFrame] = (
            FlickerFrame(own, frame.depth, frame.T_world_cam, ~frame.dynamic_mask)
            for own, frame in zip(depth, self.frames, strict=True)
        )
        return depth_flicker(frames, self.frames[0].intrinsics)


def abs_rel(depth: Tensor, truth: Tensor, selected: Tensor) -> float:
    """Mean of |depth - truth| / truth over the selected pixels."""
    return float(((depth - truth).abs() / truth)[selected].mean())


def refined_points(stream: NoisyStream, refined: tuple[Reconstruction, ...]) -> Tensor:
    """Smoothed tracks (T, N, 3), NaN where there is none."""
    points = torch.full_like(stream.points, torch.nan)
    for row, one in zip(points, refined, strict=True):
        if one.tracks is not None:
            row[one.tracks.ids] = one.tracks.points.double()
    return points


def noisy_stream(
    name: str, num_frames: int, width: int, noise: Noise, seed: int = 0
) -> NoisyStream:
    """The first frames of a scene with spoilt depth."""
    frames, tracks = _exact(name, num_frames, width)
    generator = torch.Generator().manual_seed(seed)
    depth = torch.stack([spoilt(frame.depth, noise, generator) for frame in frames])
    uv = torch.where(tracks.visible.unsqueeze(-1), tracks.uv, torch.nan)
    return NoisyStream(frames, depth, uv, tracks.points_world, tracks.moving)


@lru_cache(maxsize=2)
def _exact(
    name: str, num_frames: int, width: int
) -> tuple[tuple[RenderedFrame, ...], ExactTracks]:
    scene = scenes.named(name, num_frames, width)
    generator = torch.Generator().manual_seed(0)
    indices = tuple(range(num_frames))
    queries = dict.fromkeys([*range(0, num_frames, QUERY_EVERY), num_frames - 1])
    found = [
        correspondence.tracks(scene, query, _cells(scene.intrinsics.size, generator), indices)
        for query in queries
    ]
    parts = [
        torch.cat([getattr(each, part) for each in found], dim=1)
        for part in ("uv", "visible", "points_world", "moving")
    ]
    return tuple(_unshaded(scene, index) for index in indices), ExactTracks(indices, *parts)


def _unshaded(scene: Scene, index: int) -> RenderedFrame:
    """A frame with everything but colours, which nothing here looks at."""
    size, view = scene.intrinsics.size, snapshot(scene, index)
    hits = raycast.cast(view, camera.pixel_grid(size, torch.float64).reshape(-1, 2))
    instances = hits.solid.reshape(size)
    return RenderedFrame(
        index=index,
        stamp_ns=scene.stamp_ns(index),
        rgb=torch.zeros((*size, 3), dtype=torch.uint8),
        depth=hits.depth.reshape(size).float(),
        T_world_cam=view.T_world_cam,
        dynamic_mask=moving_solids(scene, index)[instances],
        instances=instances.to(torch.int16),
        intrinsics=scene.intrinsics,
    )


def spoilt(depth: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """Depth (H, W) with the noise of one frame."""
    coarse = torch.randn((1, 1, 6, 8), generator=generator)
    field = functional.interpolate(coarse, depth.shape, mode="bicubic")[0, 0]
    log_factor = noise.smooth * field + noise.scale * torch.randn(1, generator=generator)
    log_factor = log_factor + noise.pixel * torch.randn(depth.shape, generator=generator)
    return depth * log_factor.exp()


def _cells(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One random pixel (N, 2) in each cell of the image."""
    cell = round(CELL_PX * max(size) / 512)
    grid = camera.pixel_grid(size, torch.float64)[cell // 2 :: cell, cell // 2 :: cell]
    jitter = torch.rand(grid.shape, generator=generator, dtype=torch.float64) - 0.5
    return (grid + (cell - 1) * jitter).reshape(-1, 2).clamp(min=0.0)

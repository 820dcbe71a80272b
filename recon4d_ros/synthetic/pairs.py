"""What a pairwise network would say of a rendered scene: exact pointmaps, then noise and scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.datatypes import PairPointmaps
from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic import raycast
from recon4d_ros.synthetic.raycast import Hits
from recon4d_ros.synthetic.renderer import moving_solids
from recon4d_ros.synthetic.scene import Scene, Snapshot, snapshot

# Frames whose rays are remembered.
_REMEMBERED = 32


@dataclass(eq=False)
class NoisyPairs:
    """Pairs of frames of a scene with errors like those of a network; equal seeds, equal pairs.

    Attributes:
        scene: what is seen.
        along: noise along the ray of every pixel and map, over the distance.
        across_px: noise across the ray, each direction.
        scale: spread of the logarithm of the pairs' units.
        seed: of all noise.
        frame_of: scene frame of a stream's frame number, for streams longer than the scene.
    """

    scene: Scene
    along: float = 0.007
    across_px: float = 0.36
    scale: float = 0.3
    seed: int = 0
    frame_of: Callable[[int], int] = field(default=int)
    _hits: dict[int, Hits] = field(default_factory=dict, init=False)
    _views: dict[int, Snapshot] = field(default_factory=dict, init=False)

    def pair(self, first: int, second: int) -> PairPointmaps:
        """Pointmaps of frames `first` and `second` in the camera of `first`."""
        generator = torch.Generator().manual_seed(hash((self.seed, first, second)) % 2**31)
        unit = torch.exp(self.scale * torch.randn((), generator=generator))
        maps = [
            unit * self._noisy(self._seen(pixels, time, first), generator)
            for pixels, time in ((first, first), (second, second), (second, first))
        ]
        confidence = torch.full(self.scene.intrinsics.size, 5.0)
        return PairPointmaps(
            first,
            second,
            maps[0].float(),
            confidence,
            maps[1].float(),
            confidence,
            maps[2].float(),
        )

    def moving(self, index: int) -> Tensor:
        """(H, W) bool, exactly the pixels of what moves in the world at that time."""
        moving = moving_solids(self.scene, self.frame_of(index))
        return moving[self._hits_of(index).solid].reshape(self.scene.intrinsics.size)

    def T_world_cam(self, index: int) -> Tensor:
        """(4, 4) exact pose."""
        return self._view(index).T_world_cam

    def depth(self, index: int) -> Tensor:
        """(H, W) exact z-depth, metres."""
        return self._hits_of(index).depth.reshape(self.scene.intrinsics.size)

    def _seen(self, pixels: int, time: int, viewer: int) -> Tensor:
        """Points (3, P) of the pixels of a frame at another time in a frame's camera."""
        hits = self._hits_of(pixels)
        T = se3.inverse(self.T_world_cam(viewer)) @ self._view(time).T_world_solid
        # Planes: a product of small matrices for each pixel takes ten times as long.
        rows = T[:, :3].reshape(-1, 12).T[:, hits.solid].reshape(3, 4, -1)
        x, y, z = hits.local.T
        seen: Tensor = rows[:, 0] * x + rows[:, 1] * y + rows[:, 2] * z + rows[:, 3]
        return seen

    def _noisy(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """Pointmap (H, W, 3) of points (3, P)."""
        distance = points.square().sum(dim=0).sqrt()
        ray = points / distance
        noise = torch.randn(points.T.shape, generator=generator, dtype=points.dtype).T
        inward = (noise * ray).sum(dim=0) * ray
        across = self.across_px / self.scene.intrinsics.fx
        noisy = points + distance * (self.along * inward + across * (noise - inward))
        return noisy.T.reshape(*self.scene.intrinsics.size, 3).contiguous()

    def _hits_of(self, index: int) -> Hits:
        frame = self.frame_of(index)
        if frame not in self._hits:
            uv = camera.pixel_grid(self.scene.intrinsics.size, torch.float64).reshape(-1, 2)
            self._hits[frame] = raycast.cast(self._view(index), uv)
            _bound(self._hits)
        return self._hits[frame]

    def _view(self, index: int) -> Snapshot:
        frame = self.frame_of(index)
        if frame not in self._views:
            self._views[frame] = snapshot(self.scene, frame)
            _bound(self._views)
        return self._views[frame]


def _bound(store: dict[int, Any]) -> None:
    while len(store) > _REMEMBERED:
        del store[next(iter(store))]


@dataclass(eq=False)
class RememberedPairs(NoisyPairs):
    """Renders the pairs of each two scene frames once, for streams that come by again."""

    _made: dict[tuple[int, int], PairPointmaps] = field(default_factory=dict, init=False)

    def pair(self, first: int, second: int) -> PairPointmaps:
        """As of `NoisyPairs`."""
        ends = self.frame_of(first), self.frame_of(second)
        if ends not in self._made:
            self._made[ends] = super().pair(first, second)
        return replace(self._made[ends], first=first, second=second)

"""A network that knows the truth about a rendered scene, with the noise of a good real one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from rendered_stream import picture
from torch import Tensor

from recon4d_ros.geometry import camera, se3
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap
from recon4d_ros.networks.pomato.sizes import PATCH
from recon4d_ros.synthetic import raycast
from recon4d_ros.synthetic.scene import Scene, Snapshot, snapshot


@dataclass
class OracleNetwork:
    """Exact pointmaps and matching of a scene, disturbed; each window or pair in its own unit.

    Frames are recognised by their pixels, so images must come at the scene's own size.

    Attributes:
        scene: sides multiples of 16.
        temporal_length: frames of a window; None for a pairwise network.
        along: noise along the ray, over the distance.
        across_px: noise across the ray, px.
        scale_spread: standard deviation of the logarithm of the unit of a window or pair.
        num_encoded, num_pairs, num_maps: calls, by image, pair and evaluated map.
    """

    scene: Scene
    temporal_length: int | None = 4
    along: float = 0.007
    across_px: float = 0.36
    scale_spread: float = 0.5
    num_encoded: int = 0
    num_pairs: int = 0
    num_maps: int = 0
    _known: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known |= _prints(self.scene)

    def encode(self, images: Tensor) -> Features:
        self.num_encoded += len(images)
        grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        rgb = ((images + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
        found = torch.tensor([float(self._known[_print(image)]) for image in rgb])
        return Features(found[:, None, None].expand(-1, grid[0] * grid[1], 1), grid)

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        first, second, grid = features1.tokens, features2.tokens, features1.grid
        self.num_pairs += len(first)
        both = (first, second)
        return HookTokens((*both, *both), grid), HookTokens((second, first, second, first), grid)

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = 4,
    ) -> Pointmap:
        first, second = (level[:, 0, 0].int().tolist() for level in tokens.levels[:2])
        # All heads of a pair share its unit; the first branch holds the pair the other way round.
        units = (second, first) if number == 1 else (first, second)
        if number == 1:
            second = first
        length = self.temporal_length or 1
        maps = []
        for start in range(0, len(first), length):
            here = slice(start, start + length)
            window = units[0][here], units[1][here]
            for row in range(length) if frames is None else frames:
                maps.append(self._map(number, first[here][row], second[here][row], window))
        points, conf = (torch.stack(each) for each in zip(*maps, strict=True))
        return Pointmap(points, conf)

    def _map(self, number: int, source: int, target: int, window: object) -> Pointmap:
        """Points of `source` in the camera of `target`; head 3: at the time of `target`."""
        self.num_maps += 1
        points = exact_points(self.scene, source, target, number == 3)
        random = torch.Generator().manual_seed(_seed(number, source, target, window))
        distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        ray = points / distance
        across = torch.randn(points.shape, generator=random)
        across -= (across * ray).sum(dim=-1, keepdim=True) * ray
        along = torch.randn(distance.shape, generator=random)
        noise = self.along * along * ray + self.across_px / self.scene.intrinsics.fx * across
        unit = torch.randn((), generator=torch.Generator().manual_seed(_seed(window)))
        points = (points + distance * noise) * (self.scale_spread * unit).exp()
        return Pointmap(points, torch.full(points.shape[:-1], 5.0))


@lru_cache(maxsize=256)
def exact_points(scene: Scene, source: int, target: int, at_target_time: bool) -> Tensor:
    """Points (H, W, 3) float32 of the pixels of `source` in the camera of `target`."""
    view, hits = _seen(scene, source)
    then, _ = _seen(scene, target)
    solids = then.T_world_solid if at_target_time else view.T_world_solid
    T_target_solid = se3.inverse(then.T_world_cam) @ solids
    points = se3.transform(T_target_solid[hits.solid], hits.local)
    return points.reshape(*scene.intrinsics.size, 3).float()


@lru_cache(maxsize=64)
def _seen(scene: Scene, index: int) -> tuple[Snapshot, raycast.Hits]:
    """A frame takes part in many pairs."""
    view = snapshot(scene, index)
    uv = camera.pixel_grid(scene.intrinsics.size, torch.float64).reshape(-1, 2)
    return view, raycast.cast(view, uv)


@lru_cache(maxsize=4)
def _prints(scene: Scene) -> dict[bytes, int]:
    """The number of each frame, by what its picture is recognised by."""
    return {_print(picture(scene, index).rgb): index for index in range(scene.num_frames)}


def _print(rgb: Tensor) -> bytes:
    return bytes(rgb[::3, ::3].flatten().numpy())


def _seed(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())

"""What a good pairwise network says of a rendered scene: exact points with its noise."""

from __future__ import annotations

import torch
from oracle_network import exact_points
from torch import Tensor

from recon4d_ros.synthetic.scene import Scene


def oracle_pairs(
    scene: Scene,
    indices: list[int],
    strides: tuple[int, ...] = (1, 3, 5),
    along: float = 0.007,
    across_px: float = 0.36,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of `align_pairs` for frames `indices` of a scene, each pair in its own unit.

    Args:
        scene: rendered.
        indices: frames of the clip.
        strides: offsets of the pairs, in frames of the clip, both directions.
        along: noise along the ray, over the distance.
        across_px: noise across the ray.
        seed: of noise and units.
    """
    count = len(indices)
    ahead = [(i, i + s) for s in strides for i in range(count - s)]
    edges = ahead + [(j, i) for i, j in ahead]
    random = torch.Generator().manual_seed(seed)
    maps: dict[str, list[Tensor]] = {"points_1": [], "points_2_in_1": [], "matching_2_in_1": []}
    across = across_px / scene.intrinsics.fx
    for i, j in edges:
        unit = (0.5 * torch.randn((), generator=random)).exp()
        first, second = indices[i], indices[j]
        exact = (
            exact_points(scene, first, first, False),
            exact_points(scene, second, first, False),
            exact_points(scene, second, first, True),
        )
        for name, points in zip(maps, exact, strict=True):
            maps[name].append(unit * _noisy(points, along, across, random))
    stacked = {name: torch.stack(points) for name, points in maps.items()}
    conf = torch.full(stacked["points_1"].shape[:-1], 5.0)
    confidences = {"conf_1": conf, "conf_2": conf, "conf_matching": conf}
    return {"edges": torch.tensor(edges), **stacked, **confidences}


def _noisy(points: Tensor, along: float, across: float, random: torch.Generator) -> Tensor:
    distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    ray = points / distance
    side = torch.randn(points.shape, generator=random)
    side -= (side * ray).sum(dim=-1, keepdim=True) * ray
    far = torch.randn(distance.shape, generator=random)
    return points + distance * (along * far * ray + across * side)

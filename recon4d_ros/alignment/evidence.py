"""Pairs of points that a window shares with the map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.relocalisation import Relocation
from recon4d_ros.alignment.state import Landmarks, PixelSample
from recon4d_ros.datatypes import DynamicMask, WindowPrediction
from recon4d_ros.geometry import robust, se3

# Samples per frame: enough for a median, few enough for milliseconds.
_SAMPLES = 200
# A camera centre rests on hundreds of pixels, but all of one frame's errors are in it.
_CENTRE_WEIGHT = 4.0
_LANDMARK_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class Pairs:
    """Points known in the window and in the map.

    Attributes:
        source: (P, 3) float64 in the window's key camera, predictor units.
        target: (P, 3) float64 in the map.
        weight: (P,) float64 above zero.
    """

    source: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def residual(self, S_map_key: Tensor) -> float:
        """Weighted median distance after a similarity, map units; 0 without pairs."""
        if len(self) == 0:
            return 0.0
        moved = se3.transform(S_map_key, self.source)
        distance = torch.linalg.vector_norm(moved - self.target, dim=-1)
        return float(robust.weighted_median(distance, self.weight))

    def thinned(self, most: int) -> Pairs:
        """Every n-th pair, so that at most `most` remain."""
        step = -(-len(self) // most)
        if step <= 1:
            return self
        return Pairs(self.source[::step], self.target[::step], self.weight[::step])

    def median_depth(self) -> float:
        """Median distance of the points from the key camera, predictor units."""
        return float(torch.linalg.vector_norm(self.source, dim=-1).median())


def sample_step(size: tuple[int, int]) -> int:
    """Pixels between two samples on a grid of `size`."""
    return max(1, round(math.sqrt(size[0] * size[1] / _SAMPLES)))


def static_samples(
    prediction: WindowPrediction, dynamic: DynamicMask, step: int
) -> tuple[Tensor, Tensor]:
    """Points (T, P, 3) float64 in the key camera and their weights (T, P), 0 where not to be used.

    Used are pixels that are static, confident for their frame and measured, not borrowed. Near
    points weigh more: a triangulated depth's error grows with its square.
    """
    start = step // 2
    grid = (slice(None), slice(start, None, step), slice(start, None, step))
    maps = torch.stack([points[grid[1:]] for points in prediction.points_key])
    points = maps.flatten(1, 2).double()
    confidence = prediction.confidence[grid].flatten(1).double()
    moving = torch.stack(
        [_moving(dynamic, index, prediction)[grid[1:]] for index in prediction.indices]
    )
    depth = torch.linalg.vector_norm(points, dim=-1)
    use = (confidence > 0) & depth.isfinite() & (depth > 0)
    use &= ~(prediction.filled[grid] | moving).flatten(1)
    if not bool(use.any()):
        return points, torch.zeros_like(confidence)
    trust = (confidence / confidence[use].median()).clamp(max=1.0)
    nearness = (depth[use].median() / depth).square().clamp(max=1.0)
    return points, torch.where(use, trust * nearness, 0.0)


def _moving(dynamic: DynamicMask, index: int, prediction: WindowPrediction) -> Tensor:
    if index in dynamic.indices:
        return dynamic.of(index)
    return torch.zeros_like(prediction.filled[0])


def gather(
    prediction: WindowPrediction,
    T_key_cam: Tensor,
    samples: tuple[Tensor, Tensor],
    stored: PixelSample,
    poses: Mapping[int, Tensor],
    landmarks: Landmarks,
) -> Pairs:
    """Pairs from shared landmarks, static pixels of shared frames and camera centres."""
    parts = [
        _landmark_pairs(prediction, landmarks),
        _pixel_pairs(prediction, samples, stored),
        _centre_pairs(prediction, T_key_cam, poses),
    ]
    return joined(parts)


def joined(parts: list[Pairs]) -> Pairs:
    """One set of pairs."""
    return Pairs(
        torch.cat([part.source for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat([part.weight for part in parts]),
    )


def relocated_pairs(prediction: WindowPrediction, relocations: tuple[Relocation, ...]) -> Pairs:
    """Pairs from the keyframe points that relocalised frames of the window see."""
    parts = [_none()]
    for relocation in relocations:
        position = prediction.indices.index(relocation.index)
        x, y = relocation.uv.round().long().unbind(-1)
        source = prediction.points_key[position][y, x].double()
        known = source.isfinite().all(-1)
        weight = torch.ones(int(known.sum()), dtype=torch.float64)
        parts.append(Pairs(source[known], relocation.points_map[known], weight))
    return joined(parts)


def _none() -> Pairs:
    empty = torch.zeros(0, 3, dtype=torch.float64)
    return Pairs(empty, empty, torch.zeros(0, dtype=torch.float64))


def _landmark_pairs(prediction: WindowPrediction, landmarks: Landmarks) -> Pairs:
    if prediction.landmark_ids is None or prediction.landmarks_key is None:
        return _none()
    row, known = landmarks.find(prediction.landmark_ids)
    known &= prediction.landmarks_key.isfinite().all(-1)
    weight = torch.full((int(known.sum()),), _LANDMARK_WEIGHT, dtype=torch.float64)
    return Pairs(prediction.landmarks_key[known], landmarks.positions[row[known]], weight)


def _pixel_pairs(
    prediction: WindowPrediction, samples: tuple[Tensor, Tensor], stored: PixelSample
) -> Pairs:
    shared = [index for index in prediction.indices if index in stored.indices]
    points, weight = samples
    if not shared or stored.points_map.shape[1] != points.shape[1]:
        return _none()
    here = [prediction.indices.index(index) for index in shared]
    there = [stored.indices.index(index) for index in shared]
    both = torch.minimum(weight[here], stored.weight[there])
    use = both > 0
    return Pairs(points[here][use], stored.points_map[there][use], both[use])


def _centre_pairs(
    prediction: WindowPrediction, T_key_cam: Tensor, poses: Mapping[int, Tensor]
) -> Pairs:
    posed = T_key_cam[:, 0, 0].isfinite().tolist()
    shared = [
        position
        for position, index in enumerate(prediction.indices)
        if posed[position] and index in poses
    ]
    if not shared:
        return _none()
    target = torch.stack([poses[prediction.indices[position]][:3, 3] for position in shared])
    weight = torch.full((len(shared),), _CENTRE_WEIGHT, dtype=torch.float64)
    return Pairs(T_key_cam[shared, :3, 3], target, weight)

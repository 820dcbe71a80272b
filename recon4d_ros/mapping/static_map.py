"""The growing map of what stands still: a bounded set of coloured voxels.

A voxel keeps the confidence-weighted mean of the points that fell into it, how many frames saw it
and, so that things which moved before they were noticed fade, how many frames saw through it.
Submaps share no gauge: each has its own voxels and its own voxel edge, and a cloud shows one of
them. All submaps share one bound, and voxels of earlier submaps are the first to go.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.config import MapConfig
from recon4d_ros.datatypes import Intrinsics, MapCorrection, PointCloud, Reconstruction
from recon4d_ros.geometry import camera, pointmap, se3, sim3
from recon4d_ros.mapping.clouds import frame_points
from recon4d_ros.mapping.voxel_index import VoxelIndex, in_reach, pack, unpack
from recon4d_ros.mapping.voxel_pool import VoxelPool

# Share of the bound that one eviction frees, so that its sort is not paid for every frame.
_EVICTED_SHARE = 0.1
# Voxels looked through per frame; the others have their turn in the next frames.
_CARVED_PER_FRAME = 20_000


class StaticMap:
    """Bounded voxel map of final reconstructions."""

    def __init__(self, config: MapConfig) -> None:
        """Allocate the voxels that `config.max_voxels` allows."""
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._pool = VoxelPool(self._config.max_voxels)
        self._indices: dict[int, VoxelIndex] = {}
        self._submap = -1
        self._num_offered = 0
        self._num_frames = 0
        self._last_index = 0

    @property
    def submap(self) -> int:
        """Number of the submap that was last written to, -1 before the first insertion."""
        return self._submap

    @property
    def submaps(self) -> tuple[int, ...]:
        """Numbers of the submaps that still have voxels, in the order of their beginning."""
        return tuple(number for number, index in self._indices.items() if len(index))

    @property
    def num_voxels(self) -> int:
        """Stored voxels of all submaps."""
        return self._pool.capacity - self._pool.num_free

    @property
    def memory_bytes(self) -> int:
        """Bytes held, allocated in advance except for the indices."""
        indices = self._indices.values()
        return self._pool.memory_bytes + sum(i.keys.nbytes + i.slots.nbytes for i in indices)

    def voxel_edge(self) -> float:
        """Edge of the current submap's voxels, map units; NaN before the first insertion."""
        index = self._indices.get(self._submap)
        return torch.nan if index is None else index.edge

    def insert(self, reconstruction: Reconstruction) -> None:
        """Add the static, confident pixels of one final reconstruction.

        Of those that have depth, every `frame_stride`-th one is used. A frame without a pose or
        without such pixels changes nothing.
        """
        if not reconstruction.is_dense:
            return
        self._num_offered += 1
        if (self._num_offered - 1) % self._config.frame_stride != 0:
            return
        T_map_cam = reconstruction.T_map_cam
        chosen = mappable(reconstruction, self._config)
        if T_map_cam is None or not bool(chosen.any()):
            return
        self._num_frames += 1
        self._last_index = reconstruction.frame.index
        self._open(reconstruction, chosen)
        surface = _nearest_around(reconstruction.depth, chosen)
        self._carve(surface, reconstruction.intrinsics, T_map_cam)
        self._add(frame_points(reconstruction, self._thinned(chosen)))

    def correct(self, correction: MapCorrection) -> None:
        """Move the voxels of a submap, each as the frame that saw it last has moved."""
        index = self._indices.get(correction.submap)
        if index is None or len(index) == 0:
            return
        frames, row = torch.unique(self._pool.last_frame[index.slots], return_inverse=True)
        S = sim3.interpolate(correction.indices, correction.S_new_old, frames)[row]
        scaled = se3.transform(S, self._positions(index)) / index.edge
        cells = scaled.floor().long()
        near = in_reach(cells)
        keys, group = torch.unique(pack(cells[near]), return_inverse=True)
        offset = (scaled - cells)[near].float()
        self._pool.release(index.slots[~near])
        submap = correction.submap
        slots = self._pool.merge(index.slots[near], group, len(keys), offset, submap)
        self._indices[submap] = VoxelIndex(index.edge, keys, slots)

    def cloud(self, min_observations: int = 1, submap: int | None = None) -> PointCloud:
        """Voxels of one submap, the current one by default, that enough frames saw.

        The confidence of a voxel is the sum over its points, so it grows with the evidence.
        """
        index = self._indices.get(self._submap if submap is None else submap)
        if index is None:
            index = VoxelIndex.empty(1.0)
        index = index.where(self._pool.observations[index.slots] >= min_observations)
        pool, slots = self._pool, index.slots
        weight = pool.weight[slots].unsqueeze(-1)
        return PointCloud(
            points=self._positions(index).float(),
            rgb=(pool.rgb_sum[slots] / weight).round().clamp(0, 255).to(torch.uint8),
            confidence=pool.weight[slots],
            num_observations=pool.observations[slots],
        )

    def _positions(self, index: VoxelIndex) -> Tensor:
        """Mean points (V, 3) float64, map units."""
        weight = self._pool.weight[index.slots].unsqueeze(-1)
        offset = self._pool.offset_sum[index.slots] / weight
        return (unpack(index.keys).double() + offset.double()) * index.edge

    def _open(self, reconstruction: Reconstruction, chosen: Tensor) -> None:
        """Make the frame's submap the current one, with the voxel edge of its first frame."""
        self._submap = reconstruction.submap
        if self._submap not in self._indices:
            median = float(reconstruction.depth[chosen].median())
            self._indices[self._submap] = VoxelIndex.empty(self._config.voxel_size * median)

    def _thinned(self, chosen: Tensor) -> Tensor:
        """One pixel of every block of `pixel_stride` squared, another one in each frame."""
        stride = self._config.pixel_stride
        row, column = divmod(self._num_frames % stride**2, stride)
        thinned = torch.zeros_like(chosen)
        thinned[row::stride, column::stride] = chosen[row::stride, column::stride]
        return thinned

    def _add(self, points: PointCloud) -> None:
        scaled = points.points.double() / self._indices[self._submap].edge
        cells = scaled.floor().long()
        slots = torch.full((len(cells),), -1)
        near = in_reach(cells)
        slots[near] = self._slots_of(pack(cells[near]))
        kept = slots >= 0
        self._pool.add(
            slots[kept],
            points.confidence[kept],
            (scaled - cells)[kept].float(),
            points.rgb[kept].float(),
            self._last_index,
        )

    def _slots_of(self, keys: Tensor) -> Tensor:
        """Slots (P,) of keys (P,), new ones where needed, -1 where even eviction gave no room.

        A frame with more new voxels than the bound allows leaves evenly spread ones out.
        """
        slots = self._indices[self._submap].find(keys)
        is_new = slots < 0
        if not bool(is_new.any()):
            return slots
        # What this frame sees is worth more than what others saw as often.
        self._pool.last_frame[slots[~is_new]] = self._last_index
        new = torch.unique(keys[is_new])
        if len(new) > self._pool.capacity:
            spread = torch.linspace(0, len(new) - 1, self._pool.capacity, dtype=torch.float64)
            new = new[spread.long()]
        self._evict(len(new) - self._pool.num_free)
        fresh = self._pool.allocate(len(new), self._submap)
        self._indices[self._submap] = self._indices[self._submap].with_voxels(new, fresh)
        return self._indices[self._submap].find(keys)

    def _evict(self, missing: int) -> None:
        """Free at least `missing` slots, in a batch."""
        if missing <= 0:
            return
        batch = max(missing, int(_EVICTED_SHARE * self._pool.capacity))
        self._drop(self._pool.least_valuable(min(batch, self.num_voxels), self._submap))

    def _drop(self, slots: Tensor) -> None:
        self._pool.release(slots)
        for number, index in self._indices.items():
            self._indices[number] = index.where(self._pool.submap[index.slots] == number)

    def _carve(self, surface: Tensor, intrinsics: Intrinsics, T_map_cam: Tensor) -> None:
        """Take observations from voxels before the surface seen; drop those left with none.

        Each frame examines a part of the voxels, so one look stands for several frames.
        """
        index, looks = self._next_part(self._indices[self._submap])
        if len(index) == 0:
            return
        points = se3.transform(se3.inverse(T_map_cam), self._positions(index)).float()
        uv = camera.project(points, intrinsics)
        depth = pointmap.sample_nearest(surface.unsqueeze(-1), uv).squeeze(-1)
        # NaN, where nothing is known behind the point, compares as false.
        slots = index.slots[points[:, 2] < (1.0 - self._config.carve_margin) * depth]
        self._pool.observations[slots] -= looks
        gone = slots[self._pool.observations[slots] <= 0]
        if len(gone):
            self._drop(gone)

    def _next_part(self, index: VoxelIndex) -> tuple[VoxelIndex, int]:
        """The voxels whose turn it is, and how many turns there are."""
        turns = max(1, -(-len(index) // _CARVED_PER_FRAME))
        # Slots stay when voxels come and go, so that none is passed over.
        return index.where(index.slots % turns == self._num_frames % turns), turns


def mappable(reconstruction: Reconstruction, config: MapConfig) -> Tensor:
    """(H, W) bool: static pixels with a depth of their own, on a surface, with enough confidence.

    Confidence is in the predictor's own scale, so it is compared with the frame's median.
    """
    confidence = reconstruction.confidence
    known = torch.isfinite(reconstruction.depth) & (confidence > 0)
    known &= ~reconstruction.dynamic_mask & ~reconstruction.filled
    if not bool(known.any()):
        return known
    least = config.min_confidence * float(confidence[known].median())
    return known & (confidence >= least) & _is_even(reconstruction.depth, known, config.edge_ratio)


def _is_even(depth: Tensor, known: Tensor, ratio: float) -> Tensor:
    """(H, W) bool: the known depths among 3x3 pixels differ by at most a share of the least."""
    nearest, farthest = _nearest_around(depth, known), -_nearest_around(-depth, known)
    return farthest <= (1.0 + ratio) * nearest


def _nearest_around(depth: Tensor, chosen: Tensor) -> Tensor:
    """Least chosen depth (H, W) among 3x3 pixels, NaN where the pixel itself is not chosen.

    At an outline the nearer surface counts, so that its own voxels are not seen through.
    """
    hidden = torch.where(chosen, -depth, -torch.inf)
    nearest = -functional.max_pool2d(hidden[None, None], 3, stride=1, padding=1)[0, 0]
    return torch.where(chosen, nearest, torch.nan)

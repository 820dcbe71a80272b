"""Keyframes: the bounded memory of places that have been seen."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import Frame, Intrinsics
from recon4d_ros.geometry import camera, image_grid, se3

# ORB describes a patch of this size; a smaller border would lose a small image altogether.
_PATCH_PX = 21
_CELL_PX = 32
# Features detected for each that is kept, so that there is a choice of place.
_SPARE = 3


@dataclass(frozen=True, eq=False)
class Features:
    """ORB features of one image on the dense grid.

    Attributes:
        uv: (P, 2) float64 px, the strongest of each part of the image first.
        descriptors: (P, 32) uint8.
    """

    uv: Tensor
    descriptors: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Keyframe:
    """One frame kept as an anchor.

    Attributes:
        index, stamp_ns: of the frame.
        submap: it lies in.
        T_map_cam: (4, 4) float64.
        intrinsics: of the dense grid.
        uv: (P, 2) float64 px of its features on static, measured surfaces.
        points_map: (P, 3) float64, where those lie in the map.
        descriptors: (P, 32) uint8.
    """

    index: int
    stamp_ns: int
    submap: int
    T_map_cam: Tensor
    intrinsics: Intrinsics
    uv: Tensor
    points_map: Tensor
    descriptors: NDArray[np.uint8]

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays."""
        tensors = (self.T_map_cam, self.uv, self.points_map)
        return sum(t.numel() * t.element_size() for t in tensors) + self.descriptors.nbytes


def detect(frame: Frame, size: tuple[int, int], max_features: int) -> Features:
    """ORB features of a frame, on a grid of `size`.

    Source: Rublee et al., ORB: an efficient alternative to SIFT or SURF, ICCV 2011.
    """
    rgb = image_grid.resize_image(frame.rgb, size).contiguous().numpy()
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    orb = cv2.ORB.create(
        nfeatures=_SPARE * max_features,
        scaleFactor=1.2,
        nlevels=6,
        edgeThreshold=_PATCH_PX,
        patchSize=_PATCH_PX,
        fastThreshold=10,
    )
    points, descriptors = orb.detectAndCompute(grey, None)
    if len(points) == 0:
        return Features(torch.zeros(0, 2, dtype=torch.float64), np.zeros((0, 32), np.uint8))
    uv = np.array([point.pt for point in points], dtype=np.float64)
    order = _spread(uv, np.array([point.response for point in points]))[:max_features]
    uv = uv[order]
    return Features(torch.from_numpy(uv), descriptors[order].astype(np.uint8))


def _spread(uv: NDArray[np.float64], response: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order in which every cell of the image gives its strongest feature, then its second, ...

    The strongest features crowd on a few textured things, and a pose that rests on a small part
    of the image is a poor one.
    """
    cell = (uv // _CELL_PX).astype(np.int64)
    number = cell[:, 1] * 4096 + cell[:, 0]
    order = np.lexsort((-response, number))
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    return order[np.lexsort((-response[order], rank))]


def visible_share(points_map: Tensor, T_map_cam: Tensor, intrinsics: Intrinsics) -> float:
    """Share of map points (P, 3) that lie in the view of a camera; 0 without points."""
    if len(points_map) == 0:
        return 0.0
    uv = camera.project(se3.transform(se3.inverse(T_map_cam), points_map), intrinsics)
    return float(camera.inside(uv, intrinsics.size).double().mean())


@dataclass(frozen=True, eq=False)
class KeyframeStore:
    """At most `limit` keyframes, oldest first; adding one returns a new store.

    Attributes:
        limit: bound.
        keyframes: in the order in which they were made.
        overlap: (M, M) float64, share of the row's points that the column's camera has in view.
    """

    limit: int
    keyframes: tuple[Keyframe, ...]
    overlap: Tensor

    @staticmethod
    def empty(limit: int) -> KeyframeStore:
        """A store without keyframes."""
        return KeyframeStore(limit, (), torch.zeros(0, 0, dtype=torch.float64))

    @staticmethod
    def of(limit: int, keyframes: tuple[Keyframe, ...]) -> KeyframeStore:
        """A store of keyframes, at most `limit`, whose overlaps are computed anew."""
        overlap = torch.zeros(len(keyframes), len(keyframes), dtype=torch.float64)
        for column, keyframe in enumerate(keyframes):
            overlap[:, column] = _shares_in_view(keyframes, keyframe)
            overlap[column, column] = 0.0
        return KeyframeStore(limit, keyframes, overlap)

    def last(self, submap: int) -> Keyframe | None:
        """Newest keyframe of a submap."""
        return next((kf for kf in reversed(self.keyframes) if kf.submap == submap), None)

    def added(self, keyframe: Keyframe) -> KeyframeStore:
        """With one more; beyond the limit the oldest of the most overlapping pair goes."""
        seen = [_shared_view(keyframe, other) for other in self.keyframes]
        seeing = [_shared_view(other, keyframe) for other in self.keyframes]
        count = len(self.keyframes)
        overlap = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        overlap[:count, :count] = self.overlap
        overlap[count, :count] = torch.tensor(seen, dtype=torch.float64)
        overlap[:count, count] = torch.tensor(seeing, dtype=torch.float64)
        grown = KeyframeStore(self.limit, (*self.keyframes, keyframe), overlap)
        return grown if count < self.limit else grown._without(grown._least_needed())

    def _least_needed(self) -> int:
        mutual = torch.minimum(self.overlap, self.overlap.mT)
        return int(mutual.flatten().argmax()) // len(self.keyframes)

    def _without(self, row: int) -> KeyframeStore:
        kept = [position for position in range(len(self.keyframes)) if position != row]
        keyframes = tuple(self.keyframes[position] for position in kept)
        return KeyframeStore(self.limit, keyframes, self.overlap[kept][:, kept])

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(keyframe.num_bytes for keyframe in self.keyframes) + self.overlap.nbytes


def _shared_view(points_of: Keyframe, camera_of: Keyframe) -> float:
    if points_of.submap != camera_of.submap:
        return 0.0
    return visible_share(points_of.points_map, camera_of.T_map_cam, camera_of.intrinsics)


def _shares_in_view(keyframes: tuple[Keyframe, ...], camera_of: Keyframe) -> Tensor:
    """`_shared_view` (M,) of all keyframes' points in one camera, in one go."""
    count = torch.tensor([len(keyframe.points_map) for keyframe in keyframes])
    row = torch.repeat_interleave(torch.arange(len(keyframes)), count)
    points = torch.cat([keyframe.points_map for keyframe in keyframes])
    T_cam_map = se3.inverse(camera_of.T_map_cam)
    uv = camera.project(se3.transform(T_cam_map, points), camera_of.intrinsics)
    inside = camera.inside(uv, camera_of.intrinsics.size).double()
    share = torch.zeros(len(keyframes), dtype=torch.float64).index_add_(0, row, inside)
    same = torch.tensor([keyframe.submap == camera_of.submap for keyframe in keyframes])
    return torch.where(same, share / count.clamp(min=1), 0.0)

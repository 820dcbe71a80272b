"""Finding a frame in the map by its keyframes, without any help of the predictor's pose."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.alignment.keyframes import Features, Keyframe, KeyframeStore, detect
from recon4d_ros.alignment.window_poses import consensus_pose
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import Frame, Intrinsics
from recon4d_ros.geometry import robust

# Features that vote for the keyframes worth a full comparison, and how many of those there are.
_VOTING_FEATURES = 150
_CANDIDATES = 4
# A match must beat the second best by this factor (Lowe, IJCV 2004, section 7.1).
_DISTINCT = 0.8
_MAX_ERROR_PX = 2.5
_TRIALS = 500
_MIN_DEPTH_SAMPLES = 15


@dataclass(frozen=True, eq=False)
class Relocation:
    """A frame found in the map.

    Attributes:
        index: of the frame.
        submap: it was found in.
        T_map_cam: (4, 4) float64.
        uv: (P, 2) float64 px of the matches that agree, on the dense grid.
        points_map: (P, 3) float64 map points of the keyframes they match.
    """

    index: int
    submap: int
    T_map_cam: Tensor
    uv: Tensor
    points_map: Tensor

    @property
    def depth_map(self) -> Tensor:
        """z-depth (P,) of the matched points in this frame, map units."""
        offset = self.points_map - self.T_map_cam[:3, 3]
        return offset @ self.T_map_cam[:3, 2]


def relocalise(
    frame: Frame, intrinsics: Intrinsics, store: KeyframeStore, config: AlignmentConfig
) -> Relocation | None:
    """Where a frame lies in the map, or None when no keyframe agrees with it well enough.

    Keyframes are ranked by votes of the strongest features; the matches to the best few, of one
    submap, go together into PnP with RANSAC. Deterministic.
    """
    if not store.keyframes:
        return None
    features = detect(frame, intrinsics.size, config.keyframe_features)
    best = _best_keyframes(features, store)
    if not best:
        return None
    best = [keyframe for keyframe in best if keyframe.submap == best[0].submap]
    matches = [match(features.descriptors, keyframe.descriptors) for keyframe in best]
    rows = np.concatenate([pairs[:, 0] for pairs in matches])
    uv = features.uv[torch.from_numpy(rows)]
    points = torch.cat(
        [
            kf.points_map[torch.from_numpy(pairs[:, 1])]
            for kf, pairs in zip(best, matches, strict=True)
        ]
    )
    num_features = len(np.unique(rows))
    if num_features < config.relocalisation_inliers:
        return None
    inliers, T_cam_map = consensus_pose(
        points.numpy(), uv.numpy(), intrinsics.K.numpy(), _MAX_ERROR_PX, _TRIALS
    )
    # One feature may match several keyframes; it counts once.
    agreeing = len(np.unique(rows[inliers]))
    needed = max(config.relocalisation_inliers, config.relocalisation_share * num_features)
    if T_cam_map is None or agreeing < needed:
        return None
    kept = torch.from_numpy(inliers.astype(np.int64))
    return Relocation(
        index=frame.index,
        submap=best[0].submap,
        T_map_cam=torch.from_numpy(np.linalg.inv(T_cam_map)),
        uv=uv[kept],
        points_map=points[kept],
    )


def depth_scale(depth: Tensor, found: Relocation) -> float:
    """Map units per unit of a predicted depth (H, W), by the matched points; NaN when too few."""
    x, y = found.uv.round().long().unbind(-1)
    ratio = found.depth_map / depth[y, x].double()
    known = ratio[ratio.isfinite() & (ratio > 0)]
    return float(robust.median(known)) if len(known) >= _MIN_DEPTH_SAMPLES else torch.nan


def match(descriptors: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Row pairs (M, 2) of distinct Hamming matches, each row of `others` used once at most."""
    if len(descriptors) < 1 or len(others) < 2:
        return np.zeros((0, 2), np.int64)
    found = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(descriptors, others, k=2)
    distinct = [
        near for near, next_near in found if near.distance < _DISTINCT * next_near.distance
    ]
    nearest: dict[int, cv2.DMatch] = {}
    for near in distinct:
        rival = nearest.get(near.trainIdx)
        if rival is None or near.distance < rival.distance:
            nearest[near.trainIdx] = near
    pairs = [(near.queryIdx, near.trainIdx) for near in nearest.values()]
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _best_keyframes(features: Features, store: KeyframeStore) -> list[Keyframe]:
    voters = features.descriptors[:_VOTING_FEATURES]
    votes = [len(match(voters, keyframe.descriptors)) for keyframe in store.keyframes]
    # Of equals the newest first: the light has changed least since.
    order = sorted(range(len(votes)), key=lambda row: (-votes[row], -row))[:_CANDIDATES]
    return [store.keyframes[row] for row in order if votes[row] > 0]

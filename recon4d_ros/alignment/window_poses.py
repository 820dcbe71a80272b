"""Camera poses of a window whose predictor gives pointmaps only."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import WindowPrediction
from recon4d_ros.geometry.camera import pixel_grid

_MIN_POINTS = 20
_MIN_INLIER_SHARE = 0.3
_MAX_ERROR_PX = 2.0
_TRIALS = 100


def window_poses(
    prediction: WindowPrediction, samples: tuple[Tensor, Tensor], step: int
) -> Tensor:
    """T_key_cam (T, 4, 4) float64, NaN for a frame without a pose.

    The predictor's own poses are taken as they are. Without them each frame is placed by PnP on
    its pixels and their points in the key camera.
    """
    if prediction.T_key_cam is not None:
        return prediction.T_key_cam
    size = prediction.intrinsics.size
    start = step // 2
    uv = pixel_grid(size, torch.float64)[start::step, start::step].flatten(0, 1)
    K = prediction.intrinsics.K.numpy()
    poses = []
    for index, points, weight in zip(prediction.indices, *samples, strict=True):
        if index == prediction.key_index:
            poses.append(torch.eye(4, dtype=torch.float64))
        else:
            poses.append(solve_pnp(points[weight > 0], uv[weight > 0], K))
    return torch.stack(poses)


def solve_pnp(points: Tensor, uv: Tensor, K: np.ndarray) -> Tensor:
    """Pose of the camera (4, 4) in the frame of the points; NaN when too few agree.

    Args:
        points: (P, 3) float64.
        uv: (P, 2) float64 pixels.
        K: (3, 3) camera matrix.
    """
    unknown = torch.full((4, 4), torch.nan, dtype=torch.float64)
    if len(points) < _MIN_POINTS:
        return unknown
    inliers, T_cam_points = consensus_pose(points.numpy(), uv.numpy(), K, _MAX_ERROR_PX, _TRIALS)
    if T_cam_points is None or len(inliers) < max(_MIN_POINTS, _MIN_INLIER_SHARE * len(points)):
        return unknown
    return torch.from_numpy(np.linalg.inv(T_cam_points))


def consensus_pose(
    points: np.ndarray, uv: np.ndarray, K: np.ndarray, max_error_px: float, trials: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Inlier rows and T_cam_points (4, 4) by RANSAC and Levenberg-Marquardt; None if none.

    OpenCV seeds its generator anew in each call, so equal input gives equal output.
    """
    found, rvec, tvec, inliers = cv2.solvePnPRansac(
        points,
        uv,
        K,
        None,
        iterationsCount=trials,
        reprojectionError=max_error_px,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found or inliers is None or len(inliers) < 6:
        return np.zeros(0, dtype=np.int64), None
    rows = inliers[:, 0]
    rvec, tvec = cv2.solvePnPRefineLM(points[rows], uv[rows], K, None, rvec, tvec)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(rvec)[0], tvec[:, 0]
    return rows, T if np.isfinite(T).all() else None

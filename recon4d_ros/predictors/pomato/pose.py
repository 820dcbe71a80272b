"""The pose of a camera from the points that its pixels have in another camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.geometry import se3
from recon4d_ros.geometry.camera import pixel_grid, project

# The consensus is sought among a few hundred points and refined on a few thousand.
_SEARCHED = 400
_REFINED = 4000
_TRIALS = 200
_MIN_POINTS = 30
_MIN_INLIER_SHARE = 0.3
# Reprojection error of an inlier over the long side, and its least value in px.
_INLIER_SHARE_OF_SIDE = 0.005
_MIN_INLIER_PX = 1.0
_REFINEMENTS = 2


@dataclass(frozen=True, eq=False)
class PoseFit:
    """A pose and what it rests on.

    Attributes:
        T_points_cam: (4, 4) float64 pose of the camera in the frame of the points, None when too
            few points agree on one: there is no pose to fall back on.
        residual_px: median reprojection error of the points that agree; NaN without a pose.
        num_support: points that agree.
    """

    T_points_cam: Tensor | None
    residual_px: float
    num_support: int


NO_POSE = PoseFit(None, float("nan"), 0)


def fit_pose(points: Tensor, use: Tensor, camera: Intrinsics) -> PoseFit:
    """Pose of the camera whose pixels the points (H, W, 3) lie on; PnP with consensus.

    Args:
        points: in any frame, in any unit.
        use: (H, W) bool, confident pixels of what stands still.
        camera: intrinsics of the grid.
    """
    pixels = pixel_grid(camera.size, torch.float64)[use]
    chosen = points[use].double()
    finite = chosen.isfinite().all(dim=-1)
    pixels, chosen = _some(pixels[finite], _REFINED), _some(chosen[finite], _REFINED)
    if len(chosen) < _MIN_POINTS:
        return NO_POSE
    # OpenCV's solvers have absolute tolerances; a network's unit may be anything.
    unit = float(torch.linalg.vector_norm(chosen, dim=-1).median())
    if not 0.0 < unit < float("inf"):
        return NO_POSE
    fit = _consensus(chosen / unit, pixels, camera)
    if fit.T_points_cam is None:
        return fit
    T = fit.T_points_cam.clone()
    T[:3, 3] *= unit
    return PoseFit(T, fit.residual_px, fit.num_support)


def _consensus(points: Tensor, pixels: Tensor, camera: Intrinsics) -> PoseFit:
    limit = max(_MIN_INLIER_PX, _INLIER_SHARE_OF_SIDE * max(camera.size))
    K = camera.K.numpy()
    found, rvec, tvec, _ = cv2.solvePnPRansac(
        points[:_SEARCHED].numpy(),
        pixels[:_SEARCHED].numpy(),
        K,
        None,
        iterationsCount=_TRIALS,
        reprojectionError=limit,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found:
        return NO_POSE
    for _ in range(_REFINEMENTS):
        inlier = _errors(points, pixels, _pose(rvec, tvec), camera) < limit
        if int(inlier.sum()) < max(_MIN_POINTS, _MIN_INLIER_SHARE * len(points)):
            return NO_POSE
        rvec, tvec = cv2.solvePnPRefineLM(
            points[inlier].numpy(), pixels[inlier].numpy(), K, None, rvec, tvec
        )
    T_cam_points = _pose(rvec, tvec)
    error = _errors(points, pixels, T_cam_points, camera)
    inlier = error < limit
    if not bool(inlier.any()):
        return NO_POSE
    residual = float(error[inlier].median())
    return PoseFit(se3.inverse(T_cam_points), residual, int(inlier.sum()))


def _errors(points: Tensor, pixels: Tensor, T_cam_points: Tensor, camera: Intrinsics) -> Tensor:
    """Reprojection errors (P,) px; infinite behind the camera."""
    if not bool(T_cam_points.isfinite().all()):
        return torch.full_like(points[:, 0], torch.inf)
    uv = project(se3.transform(T_cam_points, points), camera)
    return torch.nan_to_num(torch.linalg.vector_norm(uv - pixels, dim=-1), nan=torch.inf)


def _pose(rvec: np.ndarray, tvec: np.ndarray) -> Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.from_numpy(cv2.Rodrigues(rvec)[0])
    T[:3, 3] = torch.from_numpy(tvec[:, 0])
    return T


def _some(rows: Tensor, most: int) -> Tensor:
    """Rows drawn at random, in random order; equal numbers of rows give an equal draw."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]

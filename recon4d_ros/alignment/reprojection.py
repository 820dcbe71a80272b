"""The similarity between two cameras that saw the same points, each with depths of its own.

Source: Mur-Artal and Tardos, ORB-SLAM2, IEEE T-RO 2017, section III-D (errors in both images);
with one more error per pair, that of the depth: two views from one spot say nothing of the scale
otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.geometry import camera, robust, se3, sim3

# Standard deviation of a feature's place, and the width of its Huber kernel.
_NOISE_PX = 1.0
_WIDTH = 2.0
_STEPS = 5
# Radians, and as little of everything else.
_CONVERGED = 1e-5
# Keeps a poor direction from running away; far below what well-seen points say.
_DAMPING = 1e-6
# Points nearer than this share of their depth would blow the derivatives up.
_MIN_DEPTH = 1e-3


@dataclass(frozen=True, eq=False)
class SharedPoints:
    """P points that two cameras saw.

    Attributes:
        new, old: (P, 3) float64 in the respective camera, in its own unit.
        uv_new, uv_old: (P, 2) float64 px where they were seen.
        view_new, view_old: the cameras.
        depth_noise: standard deviation of the logarithm of the ratio of the depths.
    """

    new: Tensor
    old: Tensor
    uv_new: Tensor
    uv_old: Tensor
    view_new: Intrinsics
    view_old: Intrinsics
    depth_noise: float

    def where(self, keep: Tensor) -> SharedPoints:
        """The points of a mask (P,)."""
        return replace(
            self,
            new=self.new[keep],
            old=self.old[keep],
            uv_new=self.uv_new[keep],
            uv_old=self.uv_old[keep],
        )


def errors(points: SharedPoints, S_old_new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Error in the old image (P, 2), in the new one (P, 2), px, and of the log-depth (P,).

    NaN for a point behind a camera.
    """
    return _errors(points, *_both_ways(points, S_old_new))


def jacobians(points: SharedPoints, S_old_new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives (P, 2, 7), (P, 2, 7), (P, 7) of `errors` by d in S D(d)."""
    return _jacobians(points, S_old_new, *_both_ways(points, S_old_new))


def _both_ways(points: SharedPoints, S_old_new: Tensor) -> tuple[Tensor, Tensor]:
    """The new camera's points in the old camera (P, 3), and the old one's in the new (P, 3)."""
    to_old = se3.transform(S_old_new, points.new)
    return to_old, se3.transform(sim3.inverse(S_old_new), points.old)


def _errors(points: SharedPoints, to_old: Tensor, to_new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    in_old = camera.project(to_old, points.view_old) - points.uv_old
    in_new = camera.project(to_new, points.view_new) - points.uv_new
    ratio = to_old[:, 2] / points.old[:, 2]
    behind = ~((ratio > _MIN_DEPTH) & (to_new[:, 2] > _MIN_DEPTH * points.new[:, 2]))
    nowhere = torch.where(behind, torch.nan, 0.0).to(ratio)
    return in_old + nowhere[:, None], in_new + nowhere[:, None], (ratio + nowhere).log()


def _jacobians(
    points: SharedPoints, S_old_new: Tensor, to_old: Tensor, to_new: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_old = S_old_new[:3, :3] @ _motion(points.new)
    in_old = _projection(to_old, points.view_old) @ by_old
    in_new = -_projection(to_new, points.view_new) @ _motion(to_new)
    return in_old, in_new, by_old[:, 2] / to_old[:, 2:]


def _motion(points: Tensor) -> Tensor:
    """(P, 3, 7) derivative of D(d) x at d = 0."""
    identity = torch.eye(3, dtype=points.dtype).expand(len(points), 3, 3)
    return torch.cat([identity, -se3.skew(points), points.unsqueeze(-1)], dim=-1)


def _projection(points: Tensor, view: Intrinsics) -> Tensor:
    """(P, 2, 3) derivative of the pixel by the point."""
    x, y, z = points.unbind(-1)
    zero = torch.zeros_like(z)
    rows = [view.fx / z, zero, -view.fx * x / z**2, zero, view.fy / z, -view.fy * y / z**2]
    return torch.stack(rows, dim=-1).reshape(-1, 2, 3)


def refined(points: SharedPoints, S_old_new: Tensor) -> tuple[Tensor, Tensor]:
    """The similarity of least robust error, and its information (7, 7).

    Args:
        points: that agree with the first guess; seven numbers are sought.
        S_old_new: (4, 4) first guess, near enough for a few Gauss-Newton steps.
    """
    information = torch.zeros(7, 7, dtype=torch.float64)
    for _ in range(_STEPS):
        information, gradient = _normal_equations(points, S_old_new)
        damped = information + _DAMPING * torch.diag(information.diagonal() + 1.0)
        step = -torch.linalg.solve(damped, gradient)
        S_old_new = S_old_new @ sim3.from_coordinates(step)
        if float(step.abs().max()) < _CONVERGED:
            break
    return S_old_new, information / _excess(points, S_old_new)


def _excess(points: SharedPoints, S_old_new: Tensor) -> float:
    """Variance of the errors in the images over the expected one, at least 1.

    Wrong depths shift points in the other image; what they do is not known before.
    """
    in_old, in_new, _ = errors(points, S_old_new)
    squared = torch.cat([in_old, in_new]).square().sum(-1)
    squared = squared[squared.isfinite()]
    if len(squared) == 0:
        return 1.0
    # The median of a chi squared of two degrees of freedom.
    return max(1.0, float(robust.median(squared)) / (2.0 * math.log(2.0) * _NOISE_PX**2))


def _normal_equations(points: SharedPoints, S_old_new: Tensor) -> tuple[Tensor, Tensor]:
    moved = _both_ways(points, S_old_new)
    in_old, in_new, depth = _errors(points, *moved)
    by_old, by_new, by_depth = _jacobians(points, S_old_new, *moved)
    noise = (_NOISE_PX, _NOISE_PX, points.depth_noise)
    residuals = (in_old, in_new, depth.unsqueeze(-1))
    information = torch.zeros(7, 7, dtype=torch.float64)
    gradient = torch.zeros(7, dtype=torch.float64)
    for residual, J, sigma in zip(
        residuals, (by_old, by_new, by_depth.unsqueeze(1)), noise, strict=True
    ):
        seen = residual.isfinite().all(-1)
        r, A = residual[seen] / sigma, J[seen] / sigma
        weight = robust.huber_weight(torch.linalg.vector_norm(r, dim=-1), _WIDTH)
        weighted = A.mT * weight[:, None, None]
        information += (weighted @ A).sum(0)
        gradient += (weighted @ r.unsqueeze(-1)).sum(0).squeeze(-1)
    return information, gradient

"""Depth of every pixel in closed form, all else known: the point of its ray nearest to all hints.

Source: the least squares of C4D (ICCV 2025), section 4, with pose and camera fixed: a pixel's
point can only move along its ray.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.alignment.fast import Noise
from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.spanning_tree import Chain
from recon4d_ros.geometry import camera, pointmap, robust, se3
from recon4d_ros.geometry.camera import Camera
from recon4d_ros.geometry.checks import check_shape

# Depths by several hints are joined with Cauchy weights of this many standard deviations.
_CAUCHY = 2.385
# Change of depth by smoothed points that is believed.
_MAX_CHANGE = 0.25  # at most by this factor, less 1


def closed_form_depth(rays: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Depths (...) that minimise sum_k w_k ||d r - x_k||^2; NaN without a weight.

    Args:
        rays: (..., 3) r, z = 1, so that d is the z-depth.
        targets: (K, ..., 3) x in the same frame; may be NaN where the weight is zero.
        weight: (K, ...) w >= 0.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(rays, "rays", 3)
    check_shape(targets, "targets", *rays.shape)
    check_shape(weight, "weight", *targets.shape[:-1])
    along, squared = _along(targets, rays)
    total = weight.sum(dim=0) * squared
    share = torch.where(weight > 0, weight * along, 0.0).sum(dim=0)
    return torch.where(total > 0, share / total, torch.nan)


def _along(targets: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """r.x (K, ...) and r.r (...); by planes, for sums along a short last axis are slow."""
    (x, y, z), (a, b, c) = targets.unbind(dim=-1), rays.unbind(dim=-1)
    return x * a + y * b + z * c, a * a + b * b + c * c


def fused_depth(pairs: Pairs, chain: Chain, K: Camera, noise: Noise) -> Tensor:
    """Depth (N, H, W) float32 of all frames from all pairs; NaN where no pair knows any.

    Hints are weighted by confidence and noise; those far from the median of a pixel's hints lose
    their weight.

    Args:
        pairs: predictions.
        chain: poses and scales.
        K: camera of all frames.
        noise: of the pairs' points.
    """
    rays = camera.directions(camera.pixel_grid(pairs.size), K)
    depths = [_frame_depth(pairs, chain, rays, noise, frame) for frame in range(pairs.num_frames)]
    return torch.stack(depths)


def _frame_depth(pairs: Pairs, chain: Chain, rays: Tensor, noise: Noise, frame: int) -> Tensor:
    targets, weight = _hints(pairs, chain, noise, frame)
    along, squared = _along(targets, rays)
    along = along / squared
    usable = (weight > 0) & (along > 0)
    middle = torch.where(usable, along, torch.nan).nanmedian(dim=0).values
    sigma = max(noise.own_along, noise.other_along)
    far = torch.nan_to_num((along / middle - 1.0) / sigma)
    weight = torch.where(usable, weight * robust.cauchy_weight(far, _CAUCHY), 0.0)
    return closed_form_depth(rays, targets, weight)


def _hints(pairs: Pairs, chain: Chain, noise: Noise, frame: int) -> tuple[Tensor, Tensor]:
    """Points (K, H, W, 3) of a frame's pixels in its own camera, map units, and weights."""
    own, other = pairs.edges[:, 0] == frame, pairs.edges[:, 1] == frame
    scale = chain.log_scale.exp().float()[:, None, None, None]
    from_own = scale[own] * pairs.first.points[own]
    T = se3.inverse(chain.T_world_cam[frame]) @ chain.T_world_cam[pairs.edges[other, 0]]
    from_other = pointmap.transform(T.float(), scale[other] * pairs.second.points[other])
    weights = [
        pairs.first.weight[own] / noise.own_along**2,
        pairs.second.weight[other] / noise.other_along**2,
    ]
    return torch.cat([from_own, from_other]), torch.cat(weights)


def smoothed_depth(depth: Tensor, rays: Tensor, targets: Tensor) -> Tensor:
    """Depth (N, H, W) drawn to smoothed points: the second stage in closed form.

    Args:
        depth: (N, H, W) of the first stage.
        rays: (H, W, 3), z = 1.
        targets: (N, H, W, 3) smoothed points in each frame's own camera, NaN for none.
    """
    points = rays * depth.unsqueeze(-1)
    wanted = pointmap.depth_towards(points, targets - points, _MAX_CHANGE)
    return torch.where(wanted.isfinite(), wanted, depth)

"""GA and CMA over all pixels of all pairs with their gradients in closed form, in one pass.

What `objectives` says a piece at a time; here no pass over the pixels is made twice, and none
forgotten for autograd's sake. Derivatives by hand: the chain runs from the residuals to the world
points, and from those to depth, poses and focal length.
Source: C4D (ICCV 2025), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.alignment.objectives import MAX_FLOW_RESIDUAL_PX


@dataclass(frozen=True, eq=False)
class Measured:
    """What the pairs say of P pixels of every frame, components before pixels; never NaN.

    Attributes:
        edges: (E, 2) int64.
        uv: (2, P) px from the principal point.
        points: (2E, 3, P) of the first views of all pairs, then of their second views.
        weight: (2E, P).
        matched: (E, 2, P) matched directions, or None.
        static: (E, P) weight of each flow, zero where it does not count.
    """

    edges: Tensor
    uv: Tensor
    points: Tensor
    weight: Tensor
    matched: Tensor | None
    static: Tensor


@dataclass(frozen=True, eq=False)
class _World:
    """Points of all frames, and what pulls at them; (N, 3, P) in the cameras and in the world."""

    cam: Tensor
    world: Tensor
    pull: Tensor


class PixelLosses(torch.autograd.Function):
    """GA + weight CMA, where CMA counts while it is at most `max_px`.

    Takes log_depth (N, P), T_world_cam (N, 4, 4), S_world_pair (E, 4, 4), focal_px (), `Measured`,
    weight and max_px; all but the last three are differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_depth: Tensor,
        T: Tensor,
        S: Tensor,
        focal_px: Tensor,
        measured: Measured,
        weight: float,
        max_px: float,
    ) -> Tensor:
        """The value, and the gradients beside it."""
        depth = log_depth.exp().unsqueeze(1)
        cam = torch.cat([measured.uv / focal_px * depth, depth], dim=1)
        world = torch.baddbmm(T[:, :3, 3:], T[:, :3, :3], cam)
        points = _World(cam, world, torch.zeros_like(world))
        by_T, by_focal = torch.zeros_like(T), torch.zeros_like(focal_px)
        total, by_S = _alignment(points, S, measured)
        if weight > 0 and measured.matched is not None:
            moved = _movement(points, T, focal_px, measured, weight, max_px, by_T)
            total, by_focal = total + moved[0], by_focal + moved[1]
        by_T[:, :3, :3] += points.pull @ cam.mT
        by_T[:, :3, 3] += points.pull.sum(dim=2)
        chain = T[:, :3, :3].mT @ points.pull * cam
        by_focal = by_focal - chain[:, :2].sum() / focal_px
        ctx.save_for_backward(chain.sum(dim=1), by_T, by_S, by_focal)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradients that are known already, times that of the result."""
        return (*(grads[0] * each for each in ctx.saved_tensors), None, None, None)


def _alignment(points: _World, S: Tensor, measured: Measured) -> tuple[Tensor, Tensor]:
    """GA of both views, and its gradient (E, 4, 4) by S; see `objectives.global_alignment`."""
    i, j = measured.edges.T
    frames, num_edges = torch.cat([i, j]), len(i)
    both = torch.cat([S, S])
    base = points.world.index_select(0, frames).sub_(both[:, :3, 3:])
    residual = torch.baddbmm(base, both[:, :3, :3], measured.points, alpha=-1)
    x, y, z = residual.unbind(dim=1)
    length = (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()
    share = measured.weight / (num_edges * length.shape[1])
    total = torch.dot(share.flatten(), length.flatten())
    # A residual of zero is multiplied by zero here, whatever the divisor.
    slope = residual.mul_(share.div_(length.clamp_(min=1e-18)).unsqueeze(1))
    points.pull.index_add_(0, frames, slope)
    by_both = torch.cat([slope @ measured.points.mT, slope.sum(dim=2, keepdim=True)], dim=2)
    by_S = torch.zeros_like(S)
    by_S[:, :3] = -by_both[:num_edges] - by_both[num_edges:]
    return total, by_S


def _movement(
    points: _World,
    T: Tensor,
    focal_px: Tensor,
    measured: Measured,
    weight: float,
    max_px: float,
    by_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weighed CMA and its gradient by the focal length; see `objectives.camera_movement`."""
    assert measured.matched is not None
    i, j = measured.edges.T
    R, t = T[i, :3, :3], T[i, :3, 3:]
    seen = points.world.index_select(0, j)
    x, y, z = torch.baddbmm(-R.mT @ t, R.mT, seen).unbind(dim=1)
    # Behind the camera the deviation becomes huge, which leaves the pixel out.
    inverse = z.clamp(min=1e-12).reciprocal_()
    u, v = x * inverse, y * inverse
    du = (u - measured.matched[:, 0]).mul_(focal_px)
    dv = (v - measured.matched[:, 1]).mul_(focal_px)
    used = (z > 0).logical_and_(du.abs() < MAX_FLOW_RESIDUAL_PX)
    share = measured.static * used.logical_and_(dv.abs() < MAX_FLOW_RESIDUAL_PX)
    share.mul_(weight / share.sum().clamp(min=1e-18))
    bu, bv = du.clamp(-1.0, 1.0), dv.clamp(-1.0, 1.0)
    huber = du.sub_(bu, alpha=0.5).mul_(bu).addcmul_(bv, dv.sub_(bv, alpha=0.5))
    total = torch.dot(share.flatten(), huber.flatten())
    if float(total) > weight * max_px:
        return torch.zeros_like(total), torch.zeros_like(focal_px)
    gu, gv = bu.mul_(share), bv.mul_(share)
    along = u.mul_(gu).addcmul_(v, gv)
    slope = torch.stack([gu, gv, -along], dim=1).mul_(inverse.mul_(focal_px).unsqueeze(1))
    turned = R @ slope
    points.pull.index_add_(0, j, turned)
    by_R = torch.baddbmm(seen @ slope.mT, t, slope.sum(dim=2).unsqueeze(1), alpha=-1)
    by_T[:, :3, :3].index_add_(0, i, by_R)
    by_T[:, :3, 3].index_add_(0, i, -turned.sum(dim=2))
    return total, along.sum()

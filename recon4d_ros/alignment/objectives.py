"""The objectives of C4D as pure functions: what an optimiser of a whole clip minimises.

GA (global alignment) asks the frames' points to agree with every pair's, CMA (camera movement
alignment) the flow of static pixels with the camera's motion, CTS (camera trajectory smoothness)
consecutive poses with each other, and PTS (point trajectory smoothness) points with smoothed ones.

Shapes: E directed pairs, P pixels, T frames. Lengths are map units, flow is px. Every function is
differentiable once in all that an optimiser may move, weights and measured flow are constant; a
residual of exactly zero has gradient zero. Pixels of weight zero may hold any value, also NaN.
Source: C4D (ICCV 2025), section 4; the norms follow the alignment it builds on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, se3
from recon4d_ros.geometry.checks import check_shape

# Residuals beyond this are matches gone wrong, not motion of the camera.
MAX_FLOW_RESIDUAL_PX = 50.0


def global_alignment(
    points_world: Tensor, points_pair: Tensor, S_world_pair: Tensor, weight: Tensor
) -> Tensor:
    """GA of one view of every pair: mean of w ||X - S x|| over the pixels.

    The whole objective is the sum over both views of a pair (C4D, section 4; DUSt3R, equation 5).

    Args:
        points_world: (E, P, 3) X, the points of the frame.
        points_pair: (E, P, 3) x, the same pixels' points as the pair has them.
        S_world_pair: (E, 4, 4) Sim(3) of the pair.
        weight: (E, P) w >= 0, logarithm of the confidence.

    Returns:
        () map units.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points_world, "points_world", -1, -1, 3)
    check_shape(points_pair, "points_pair", *points_world.shape)
    check_shape(weight, "weight", *points_world.shape[:-1])
    used = (weight > 0).unsqueeze(-1)
    if not bool(used.all()):
        points_world, points_pair = _chosen(used, points_world), _chosen(used, points_pair)
    # Points whose components are planes in memory stay so, which is much faster.
    linear, shift = S_world_pair[:, :3, :3], S_world_pair[:, :3, 3:]
    residual = torch.baddbmm(points_world.mT - shift, linear, points_pair.mT, alpha=-1)
    return _weighted_length(residual.mT, weight) / weight.numel()


def camera_movement(
    ego_flow_px: Tensor, flow_px: Tensor, weight: Tensor, max_px: float = MAX_FLOW_RESIDUAL_PX
) -> Tensor:
    """CMA: mean smooth L1 distance (kink at 1 px) of two flows over the pixels that count.

    A residual of `max_px` or more in either direction counts no more: such a match is wrong.
    Source: C4D, section 4 (camera movement alignment); norm and bound as in MonST3R's.

    Args:
        ego_flow_px: (..., 2) flow that the camera's motion gives, see `ego_flow`.
        flow_px: (..., 2) measured flow, constant.
        weight: (...) in [0, 1]: static, and confirmed by `forward_backward`.
        max_px: bound of the residual.

    Returns:
        () px; 0 when no pixel counts.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(ego_flow_px, "ego_flow_px", 2)
    check_shape(flow_px, "flow_px", *ego_flow_px.shape)
    check_shape(weight, "weight", *ego_flow_px.shape[:-1])
    residual = ego_flow_px - flow_px
    # NaN fails this comparison, so that unknown flow never counts.
    x, y = residual.detach().abs().unbind(dim=-1)
    used = (weight > 0) & (torch.maximum(x, y) < max_px)
    share = torch.where(used, weight, 0.0)
    total = 2.0 * share.sum()
    return _weighted_smooth_l1(residual, share) / total.clamp(min=torch.finfo(share.dtype).tiny)


def ego_flow(uv: Tensor, depth: Tensor, T_target_source: Tensor, K: Tensor) -> Tensor:
    """Flow (..., P, 2) in px that camera motion alone gives; NaN behind the target camera.

    x' ~ K R K^-1 x + K t / d: rotation's homography plus parallax.

    Args:
        uv: (..., P, 2) pixels of the source.
        depth: (..., P) z-depth of the source.
        T_target_source: (..., 4, 4) relative pose.
        K: (3, 3) camera of both, px.

    Raises:
        GeometryError: wrong shapes or an unusable K.
    """
    points_source = camera.unproject(uv, depth, K)
    check_shape(T_target_source, "T_target_source", 4, 4)
    R, t = T_target_source[..., :3, :3], T_target_source[..., None, :3, 3]
    return camera.project(points_source @ R.mT + t, K) - uv


def forward_backward(
    flow_px: Tensor, flow_back_px: Tensor, floor_px: float = 1.0, share: float = 0.05
) -> Tensor:
    """True (..., H, W) where the way forth and back returns to its start.

    |F(p) + F_back(p + F(p))| <= max(floor, share |F(p)|); never where the flow is NaN or leaves
    the image.

    Args:
        flow_px: (..., H, W, 2) from the source to the target.
        flow_back_px: (..., H, W, 2) from the target to the source.
        floor_px: deviation that is always granted.
        share: deviation granted over the length of the flow.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(flow_px, "flow_px", -1, -1, 2)
    check_shape(flow_back_px, "flow_back_px", *flow_px.shape)
    size = (flow_px.shape[-3], flow_px.shape[-2])
    target = camera.pixel_grid(size, flow_px.dtype, flow_px.device) + flow_px
    within = camera.inside(target, size)
    # Outside, any place will do: it is refused below.
    safe = torch.where(within.unsqueeze(-1), target, torch.zeros_like(target))
    back = _sampled(flow_back_px, safe)
    deviation = _length(flow_px + back)
    length = _length(flow_px)
    # NaN on the way back fails this comparison.
    confirmed: Tensor = within & (deviation <= (share * length).clamp(min=floor_px))
    return confirmed


def _sampled(maps: Tensor, uv: Tensor) -> Tensor:
    """Bilinear values (..., H, W, 2) of maps (..., H, W, 2) at uv (..., H, W, 2), all inside."""
    height, width = maps.shape[-3], maps.shape[-2]
    grid = (uv + 0.5) * (2.0 / uv.new_tensor([width, height])) - 1.0
    planes = maps.reshape(-1, height, width, 2).movedim(-1, 1)
    found = functional.grid_sample(
        planes, grid.reshape(-1, height, width, 2), padding_mode="border", align_corners=False
    )
    return found.movedim(1, -1).reshape(maps.shape)


def smoothness_first_order(T_world_cam: Tensor, translation_weight: float = 1.0) -> Tensor:
    """CTS as C4D has it: the motion itself between consecutive frames, summed.

    sum_t ||R_t^T R_t+1 - I||_F + lambda ||R_t^T (T_t+1 - T_t)||. It draws a camera that moves
    steadily together, so `smoothness_second_order` is better for a stream.

    Args:
        T_world_cam: (T, 4, 4) consecutive poses.
        translation_weight: lambda, per map unit.

    Returns:
        () no unit; 0 for fewer than two poses.

    Raises:
        GeometryError: wrong shape.
    """
    step = _steps(T_world_cam)
    turn = step[:, :3, :3] - torch.eye(3, dtype=step.dtype, device=step.device)
    turned = _length(turn.flatten(1))
    moved = _length(step[:, :3, 3])
    total: Tensor = (turned + translation_weight * moved).sum()
    return total


def smoothness_second_order(T_world_cam: Tensor, translation_weight: float = 1.0) -> Tensor:
    """CTS on the change of motion: zero for constant velocity, also along a screw.

    sum_t ||Log(dR_t^T dR_t+1)|| + lambda ||dT_t+1 - dT_t||, motions in the camera's own frame.

    Args:
        T_world_cam: (T, 4, 4) consecutive poses.
        translation_weight: lambda, per map unit.

    Returns:
        () radians and map units; 0 for fewer than three poses.

    Raises:
        GeometryError: wrong shape or no rotations.
    """
    turned, moved = (_length(change) for change in motion_changes(T_world_cam))
    total: Tensor = (turned + translation_weight * moved).sum()
    return total


def motion_changes(T_world_cam: Tensor) -> tuple[Tensor, Tensor]:
    """Change of rotation and of translation, each (T - 2, 3), from one step to the next.

    Raises:
        GeometryError: wrong shape or no rotations.
    """
    step = _steps(T_world_cam)
    turned = se3.log_so3(step[:-1, :3, :3].mT @ step[1:, :3, :3])
    return turned, step[1:, :3, 3] - step[:-1, :3, 3]


def point_smoothness(points_world: Tensor, smoothed_world: Tensor) -> Tensor:
    """PTS: mean over the pixels of the L1 distance to smoothed points; unknown ones are left out.

    Source: C4D, section 4 (point trajectory smoothness).

    Args:
        points_world: (..., 3).
        smoothed_world: (..., 3) constant targets.

    Returns:
        () map units; 0 when no pixel is known.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points_world, "points_world", 3)
    check_shape(smoothed_world, "smoothed_world", *points_world.shape)
    difference = points_world - smoothed_world
    used = difference.detach().isfinite().all(dim=-1, keepdim=True)
    return _chosen(used, difference).abs().sum() / used.sum().clamp(min=1)


def _length(vectors: Tensor) -> Tensor:
    """Lengths (...) of vectors (..., C); at zero their gradient is zero.

    Several times as fast as torch's norm along a short last axis.
    """
    squared = vectors.square().sum(dim=-1)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


class _WeightedLength(torch.autograd.Function):
    """Sum of weighted lengths with its gradient at once, in a third of autograd's passes."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor) -> Tensor:
        length = vectors.square().sum(dim=-1).sqrt()
        total = torch.dot(weight.flatten(), length.flatten())
        # A vector of length zero is multiplied by zero here, whatever the divisor.
        share = weight / length.clamp_(min=torch.finfo(length.dtype).tiny ** 0.5)
        ctx.save_for_backward(vectors * share.unsqueeze(-1))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


class _WeightedSmoothL1(torch.autograd.Function):
    """Sum of weighted smooth L1 (kink at 1) of all components; its gradient is a clamp."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        bounded = values.clamp(-1.0, 1.0)
        loss = bounded * (values - 0.5 * bounded)
        used = (weight > 0).unsqueeze(-1)
        ctx.save_for_backward(torch.where(used, bounded * weight.unsqueeze(-1), 0.0))
        return torch.where(used, loss * weight.unsqueeze(-1), 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


def _weighted_length(vectors: Tensor, weight: Tensor) -> Tensor:
    total: Tensor = _WeightedLength.apply(vectors, weight)  # type: ignore[no-untyped-call]
    return total


def _weighted_smooth_l1(values: Tensor, weight: Tensor) -> Tensor:
    total: Tensor = _WeightedSmoothL1.apply(values, weight)  # type: ignore[no-untyped-call]
    return total


def _chosen(used: Tensor, values: Tensor) -> Tensor:
    """Zero where not used, so that no NaN reaches a value or a gradient."""
    return torch.where(used, values, torch.zeros_like(values))


def _steps(T_world_cam: Tensor) -> Tensor:
    """Motions (T - 1, 4, 4) from each camera to the next, T_t_t+1."""
    check_shape(T_world_cam, "T_world_cam", 4, 4)
    if T_world_cam.ndim != 3:
        raise GeometryError(
            f"T_world_cam has shape {tuple(T_world_cam.shape)}; expected (T, 4, 4) poses"
        )
    R, t = T_world_cam[:, :3, :3], T_world_cam[:, :3, 3]
    turn = R[:-1].mT @ R[1:]
    move = (R[:-1].mT @ (t[1:] - t[:-1]).unsqueeze(-1)).squeeze(-1)
    return se3.assemble(turn, move)

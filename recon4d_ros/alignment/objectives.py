"""The objectives of C4D as pure functions: what an optimiser of a whole clip minimises.

GA (global alignment) asks the frames' points to agree with every pair's, CMA (camera movement
alignment) the flow of static pixels with the camera's motion, CTS (camera trajectory smoothness)
consecutive poses with each other, and PTS (point trajectory smoothness) points with smoothed ones.

Shapes: E directed pairs, P pixels, T frames. Lengths are map units, flow is px. Every function is
differentiable in all its floating arguments; a residual of exactly zero has gradient zero. Pixels
of weight zero may hold any value, also NaN.
Source: C4D (ICCV 2025), section 4; the norms follow the alignment it builds on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, se3
from recon4d_ros.geometry.checks import check_shape
from recon4d_ros.geometry.pointmap import sample_bilinear

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
    moved = _chosen(used, points_pair) @ S_world_pair[:, :3, :3].mT + S_world_pair[:, None, :3, 3]
    distance: Tensor = torch.linalg.vector_norm(_chosen(used, points_world) - moved, dim=-1)
    return (weight * distance).mean()


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
    used = (weight > 0) & (residual.detach().abs() < max_px).all(dim=-1)
    share = torch.where(used, weight, torch.zeros_like(weight))
    clean = _chosen(used.unsqueeze(-1), residual)
    loss = functional.smooth_l1_loss(clean, torch.zeros_like(clean), reduction="none")
    total = 2.0 * share.sum()
    return (share.unsqueeze(-1) * loss).sum() / total.clamp(min=torch.finfo(loss.dtype).tiny)


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
    """True (P,) where the way forth and back returns to its start.

    |F(p) + F_back(p + F(p))| <= max(floor, share |F(p)|); never where the flow is NaN or leaves
    the image.

    Args:
        flow_px: (H, W, 2) from the source to the target.
        flow_back_px: (H, W, 2) from the target to the source.
        floor_px: deviation that is always granted.
        share: deviation granted over the length of the flow.

    Returns:
        (H, W) bool.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(flow_px, "flow_px", -1, -1, 2)
    grid = camera.pixel_grid((flow_px.shape[0], flow_px.shape[1]), flow_px.dtype, flow_px.device)
    back = sample_bilinear(flow_back_px, (grid + flow_px).reshape(-1, 2)).reshape(flow_px.shape)
    deviation = torch.linalg.vector_norm(flow_px + back, dim=-1)
    length = torch.linalg.vector_norm(flow_px, dim=-1)
    returns: Tensor = deviation <= (share * length).clamp(min=floor_px)
    return returns


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
    turned = torch.linalg.vector_norm(turn.flatten(1), dim=-1)
    moved = torch.linalg.vector_norm(step[:, :3, 3], dim=-1)
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
    turned, moved = motion_changes(T_world_cam)
    turned, moved = (torch.linalg.vector_norm(change, dim=-1) for change in (turned, moved))
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

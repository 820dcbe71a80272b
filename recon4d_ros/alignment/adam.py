"""Alignment of a clip by the literal schedule: Adam over all pixels, two stages.

Stage 1 minimises GA + w_CMA CMA + w_CTS CTS over depth, poses, focal length and a similarity of
its own for every pair; stage 2 fits depth alone to smoothed points (PTS).
Source: C4D (ICCV 2025), section 4 and supplement, schedule and weights; DUSt3R, arXiv 2312.14132,
section 3.4, unknowns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment import objectives
from recon4d_ros.alignment.optics import Optics
from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.pixel_losses import Measured, PixelLosses
from recon4d_ros.alignment.spanning_tree import Chain
from recon4d_ros.config import OfflineConfig
from recon4d_ros.geometry import camera, se3

_BETAS, _EPSILON = (0.9, 0.9), 1e-8
# Geometric mean of the pairs' scales; it fixes the unit of the map.
_MEAN_SCALE = 0.5
# Residuals that `evaluate` judges at most.
_JUDGED = 4_000_000
# The logarithm of the focal length is stored times this, which slows it down.
_FOCAL_GAIN = 20.0


@dataclass(frozen=True, eq=False)
class Descent:
    """Where the first stage ended.

    Attributes:
        chain: poses, scales and focal length; its depths are those of all pixels, (N, HW).
        losses: the objectives at the end, unweighted, and their weighted total.
        totals: the total after every iteration.
    """

    chain: Chain
    losses: Mapping[str, float]
    totals: tuple[float, ...]


class _Unknowns:
    """The variables of the first stage, in the form in which Adam sees them."""

    def __init__(self, pairs: Pairs, start: Chain, depth: Tensor, free_focal: bool) -> None:
        pose = start.T_world_cam
        self.log_depth = _leaf(depth.log())
        self.quat = _leaf(se3.matrix_to_quat_xyzw(pose[:, :3, :3]))
        self.position = _leaf(_squeezed(pose[:, :3, 3]))
        of_pair = pose[pairs.edges[:, 0]]
        self.pair_quat = _leaf(se3.matrix_to_quat_xyzw(of_pair[:, :3, :3]))
        self.pair_log_scale = _leaf(start.log_scale)
        # The similarity scales rotation and translation alike.
        shift = of_pair[:, :3, 3] / start.log_scale.exp().unsqueeze(-1)
        self.pair_position = _leaf(_squeezed(shift))
        self.focal = _leaf(_FOCAL_GAIN * start.focal_px.log(), free_focal)

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in vars(self).values() if leaf.requires_grad]

    def poses(self) -> Tensor:
        """T_world_cam (N, 4, 4) float32."""
        R = se3.quat_xyzw_to_matrix(self.quat)
        return se3.assemble(R, _stretched(self.position))

    def log_scale(self) -> Tensor:
        centred: Tensor = self.pair_log_scale - self.pair_log_scale.mean()
        return centred + torch.tensor(_MEAN_SCALE).log()

    def similarities(self) -> Tensor:
        """S_world_pair (E, 4, 4) float32."""
        scale = self.log_scale().exp()
        R = se3.quat_xyzw_to_matrix(self.pair_quat) * scale[:, None, None]
        return se3.assemble(R, _stretched(self.pair_position) * scale[:, None])

    def focal_px(self) -> Tensor:
        return (self.focal / _FOCAL_GAIN).exp()


def descend(
    pairs: Pairs,
    masks: Tensor,
    confirmed: Tensor | None,
    start: Chain,
    depth: Tensor,
    optics: Optics,
    config: OfflineConfig,
) -> Descent:
    """First stage.

    Args:
        pairs: predictions.
        masks: (N, H, W) bool, what moves.
        confirmed: (E, H, W) bool, where matches count; None only without matching.
        start: first guess of poses, scales and focal length.
        depth: (N, H, W) first guess, no NaN.
        optics: principal point, and whether to estimate the focal length.
        config: iterations, rates and weights.
    """
    unknowns = _Unknowns(pairs, start, depth.flatten(1), optics.free)
    measured = _measured(pairs, masks, confirmed, optics)
    totals: list[float] = []

    def step(share: float) -> Tensor:
        poses = unknowns.poses()
        movement = config.movement_weight if share >= config.movement_start else 0.0
        pixels = _of_pixels(unknowns, measured, poses, movement, config)
        smooth = objectives.smoothness_first_order(poses, config.translation_weight)
        total = pixels + config.smoothness_weight * smooth
        totals.append(float(total.detach()))
        return total

    _adam(unknowns.leaves(), step, config)
    with torch.no_grad():
        losses = _losses(unknowns, measured, config)
        chain = Chain(
            unknowns.poses().double(),
            unknowns.log_scale().double(),
            unknowns.focal_px().double(),
            unknowns.log_depth.detach().double(),
        )
    return Descent(_orthonormal(chain), losses, tuple(totals))


def fit_depth(
    depth: Tensor, rays: Tensor, targets: Tensor, config: OfflineConfig
) -> tuple[Tensor, float]:
    """Second stage: depth (N, H, W) drawn to smoothed points by Adam, and the PTS loss.

    Args:
        depth: (N, H, W) of the first stage.
        rays: (H, W, 3), z = 1.
        targets: (N, H, W, 3) smoothed points in each frame's own camera, NaN for none.
        config: iterations and rates.
    """
    log_depth = _leaf(depth.log())

    def loss(_: float = 1.0) -> Tensor:
        return objectives.point_smoothness(rays * log_depth.exp().unsqueeze(-1), targets)

    _adam([log_depth], loss, config)
    with torch.no_grad():
        return log_depth.exp(), float(loss())


def _adam(leaves: list[Tensor], loss: Callable[[float], Tensor], config: OfflineConfig) -> None:
    """Adam with a rate that falls linearly; the loss is told the share of steps made."""
    # torch's own loads its compiler first, which takes longer than a short clip.
    moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]
    for number in range(config.iterations):
        share = number / config.iterations
        rate = config.learning_rate + share * (config.final_learning_rate - config.learning_rate)
        with torch.enable_grad():  # the caller may have switched gradients off
            slopes = torch.autograd.grad(loss(share), leaves)
        bias, bias_2 = (1.0 - beta ** (number + 1) for beta in _BETAS)
        with torch.no_grad():
            for leaf, slope, (mean, square) in zip(leaves, slopes, moments, strict=True):
                mean.lerp_(slope, 1.0 - _BETAS[0])
                square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
                spread = (square / bias_2).sqrt_().add_(_EPSILON)
                leaf.addcdiv_(mean, spread, value=-rate / bias)


def _of_pixels(
    unknowns: _Unknowns, measured: Measured, poses: Tensor, movement: float, config: OfflineConfig
) -> Tensor:
    """GA and weighed CMA."""
    state = unknowns.log_depth, poses, unknowns.similarities(), unknowns.focal_px()
    total: Tensor = PixelLosses.apply(  # type: ignore[no-untyped-call]
        *state, measured, movement, config.max_movement_px
    )
    return total


def _losses(unknowns: _Unknowns, measured: Measured, config: OfflineConfig) -> dict[str, float]:
    """GA, CMA and CTS, and their weighed total; a CMA beyond its bound is told as zero."""
    poses = unknowns.poses()
    alone, both = (
        float(_of_pixels(unknowns, measured, poses, weight, config)) for weight in (0.0, 1.0)
    )
    smooth = float(objectives.smoothness_first_order(poses, config.translation_weight))
    moved = both - alone
    total = alone + config.movement_weight * moved + config.smoothness_weight * smooth
    return {"ga": alone, "cma": moved, "cts": smooth, "total": total}


def evaluate(
    pairs: Pairs,
    masks: Tensor,
    confirmed: Tensor | None,
    chain: Chain,
    depth: Tensor,
    optics: Optics,
    config: OfflineConfig,
) -> dict[str, float]:
    """The objectives of the first stage at any solution, each pair lying where its frame does.

    Of large clips every n-th pixel is judged, so that memory stays bounded.

    Args:
        pairs: predictions.
        masks: (N, H, W) bool, what moves.
        confirmed: (E, H, W) bool, where matches count; None only without matching.
        chain: poses, scales and focal length.
        depth: (N, H, W), no NaN.
        optics: principal point.
        config: weights.
    """
    every = 1 + pairs.first.weight.numel() // _JUDGED
    with torch.no_grad():
        unknowns = _Unknowns(pairs, chain, depth.flatten(1)[:, ::every], free_focal=False)
        measured = _measured(pairs, masks, confirmed, optics, every)
        return _losses(unknowns, measured, config)


def _measured(
    pairs: Pairs, masks: Tensor, confirmed: Tensor | None, optics: Optics, every: int = 1
) -> Measured:
    uv = optics.squared(camera.pixel_grid(pairs.size)) - torch.tensor(optics.centre_px)
    static = ~masks[pairs.edges[:, 1]]
    matched = None
    if pairs.matching is not None and confirmed is not None:
        points = pairs.matching.points
        in_front = points[..., 2:] > 0
        static = static & confirmed & in_front[..., 0]
        matched = _planes(points[..., :2] / torch.where(in_front, points[..., 2:], 1.0), every)
    views = pairs.first, pairs.second
    return Measured(
        pairs.edges,
        uv.flatten(0, 1)[::every].T.contiguous(),
        torch.cat([_planes(view.points, every) for view in views]),
        torch.cat([view.weight.flatten(1)[:, ::every] for view in views]),
        matched,
        static.flatten(1)[:, ::every].float(),
    )


def _planes(maps: Tensor, every: int) -> Tensor:
    """Maps (E, H, W, C) as (E, C, P)."""
    return maps.flatten(1, 2)[:, ::every].mT.contiguous()


def _orthonormal(chain: Chain) -> Chain:
    """Rotations exact in float64, frame 0 the origin."""
    R = se3.orthonormalise(chain.T_world_cam[:, :3, :3])
    T = se3.make(R, chain.T_world_cam[:, :3, 3])
    return Chain(se3.inverse(T[0]) @ T, chain.log_scale, chain.focal_px, chain.log_depth)


def _leaf(value: Tensor, free: bool = True) -> Tensor:
    return value.detach().float().clone().requires_grad_(free)


def _squeezed(value: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): far positions move as easily as near ones."""
    return value.sign() * value.abs().log1p()


def _stretched(value: Tensor) -> Tensor:
    """The inverse; written so that its slope at zero is one."""
    return torch.where(value >= 0, value.expm1(), -(-value).expm1())

"""Alignment of a clip by second-order steps on sampled static pixels.

Poses, the scale of every pair and the shared focal length are unknown, and the depth of every
sampled pixel, which is eliminated in closed form. Each kind of residual (points of a frame's own
pixels, of its partners' pixels, matched directions) is measured in its own noise, found from the
residuals themselves, and wrong ones lose their weight (Cauchy).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment import edge_rows, normal_equations
from recon4d_ros.alignment.edge_rows import Carried, Rows, Whitening
from recon4d_ros.alignment.normal_equations import FIXED, Block
from recon4d_ros.alignment.observations import Observations
from recon4d_ros.alignment.optics import Optics
from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.samples import Samples
from recon4d_ros.alignment.spanning_tree import Chain
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import robust, se3

# 95 % efficiency for normal residuals.
_CAUCHY = 2.385
# Noise that is always granted: over the distance, and px over the long side of the image.
_FLOOR, _FLOOR_PX = 1e-6, 1e-6
# The noise is found again in the first steps, then held so that the steps can converge.
_NOISE_STEPS = 3
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-4, 1e-9, 1e6
# Steps shorter than this (radians, or over the depth) end the search.
_CONVERGED = 1e-6
# So does a cost that falls by less than this share of it.
_STEADY = 1e-6
# Largest change of log-depth by one step, so that a linear guess cannot leap.
_LONGEST = 0.5


@dataclass(frozen=True)
class Noise:
    """Standard deviations: along and across the ray over the distance, and of matches in px."""

    own_along: float
    own_across: float
    other_along: float
    other_across: float
    matched_px: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the steps ended.

    Attributes:
        chain: the unknowns.
        noise: found from the residuals.
        costs: robust cost after every accepted step, at the noise of its time.
        stop_reason: why it ended.
    """

    chain: Chain
    noise: Noise
    costs: tuple[float, ...]
    stop_reason: str


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that stays the same from step to step."""

    pairs: Pairs
    samples: Samples
    seen: Observations
    centre_px: tuple[float, float]
    columns: Columns


@dataclass(frozen=True, eq=False)
class Columns:
    """Places of the unknowns: poses first, then scales, then the focal length.

    Attributes:
        pose: (N, 6) int64, `FIXED` for frames that are held.
        scale: (E,) int64.
        focal: column, or `FIXED`.
        count: of all unknowns.
    """

    pose: Tensor
    scale: Tensor
    focal: int
    count: int


def refine(
    pairs: Pairs,
    samples: Samples,
    start: Chain,
    seen: Observations,
    optics: Optics,
    max_steps: int,
) -> Solution:
    """Steps from a first guess to the optimum.

    Args:
        pairs: predictions.
        samples: pixels to use.
        start: first guess.
        seen: what the pairs say of the samples.
        optics: principal point, and whether to estimate the focal length.
        max_steps: bound on steps, accepted or not.

    Raises:
        AlignmentError: the residuals are not finite, or no step can be solved for.
    """
    columns = _columns(pairs, optics.free)
    problem = Problem(pairs, samples, seen, optics.centre_px, columns)
    state, damping = start, _DAMPING
    noise = measured_noise(problem, state)
    cost = _cost(problem, state, noise)
    costs, reason = [cost], f"{max_steps} steps were made"
    for number in range(max_steps):
        if 0 < number < _NOISE_STEPS:
            noise = measured_noise(problem, state)
            cost = _cost(problem, state, noise)
        candidate, length = _stepped(problem, state, noise, damping)
        lower = _cost(problem, candidate, noise)
        steady = cost - lower < _STEADY * cost
        if lower <= cost:
            state, cost, damping = candidate, lower, max(damping * 0.1, _LEAST_DAMPING)
            costs.append(cost)
        else:
            damping *= 10.0
        if number >= _NOISE_STEPS and (length < _CONVERGED or (steady and lower <= cost)):
            reason = "the steps became negligible"
            break
        if damping > _MOST_DAMPING:
            reason = "no step lowers the cost any more"
            break
    return Solution(state, noise, tuple(costs), reason)


def _columns(pairs: Pairs, free_focal: bool) -> Columns:
    """Frame 0 is held: it is the origin."""
    num_frames, num_edges = pairs.num_frames, len(pairs.edges)
    free = torch.arange(num_frames) > 0
    pose = torch.full((num_frames, 6), FIXED)
    num_pose = 6 * int(free.sum())
    pose[free] = torch.arange(num_pose).reshape(-1, 6)
    scale = num_pose + torch.arange(num_edges)
    count = num_pose + num_edges
    return Columns(pose, scale, count if free_focal else FIXED, count + int(free_focal))


@dataclass(frozen=True, eq=False)
class _Geometry:
    """A state as the rows see it, in float32.

    Attributes:
        rays: (N, 3, P).
        log_depth: (N, P), zero where unknown.
        log_scale: (E,).
        focal_px: ().
        relative: (E, 4, 4) T_1_2 of the pairs.
        carried: the partners' points in the camera of each pair.
    """

    rays: Tensor
    log_depth: Tensor
    log_scale: Tensor
    focal_px: Tensor
    relative: Tensor
    carried: Carried


def _geometry(problem: Problem, state: Chain) -> _Geometry:
    i, j = problem.pairs.edges.T
    rays = edge_rows.directions(problem.samples.uv, state.focal_px, problem.centre_px).float()
    log_depth = torch.nan_to_num(state.log_depth).float()
    relative = (se3.inverse(state.T_world_cam)[i] @ state.T_world_cam[j]).float()
    carried = edge_rows.carry(relative, rays[j], log_depth[j])
    log_scale, focal = state.log_scale.float(), state.focal_px.float()
    return _Geometry(rays, log_depth, log_scale, focal, relative, carried)


def _residuals(problem: Problem, state: Chain, noise: Noise) -> list[Tensor]:
    """Whitened residuals (E, R, P) of own points, of the partners' points, and of the matches."""
    now, seen, i = _geometry(problem, state), problem.seen, problem.pairs.edges[:, 0]
    own, other = _whitenings(seen, noise)
    found = [
        edge_rows.own_residual(now.rays[i], now.log_depth[i], now.log_scale, seen.own, own),
        edge_rows.other_residual(now.carried, now.log_scale, seen.other, other),
    ]
    if problem.pairs.matching is not None:
        px = edge_rows.flow_residual(now.carried, seen.matched, now.focal_px)
        found.append(px / noise.matched_px)
    return found


def _blocks(problem: Problem, state: Chain, noise: Noise) -> list[Block]:
    """Whitened rows with robust weights."""
    now, seen, (i, j) = _geometry(problem, state), problem.seen, problem.pairs.edges.T
    own, other = _whitenings(seen, noise)
    rows = [
        edge_rows.own_rows(now.rays[i], now.log_depth[i], now.log_scale, seen.own, own),
        edge_rows.other_rows(now.carried, now.log_scale, seen.other, other),
    ]
    if problem.pairs.matching is not None:
        px = edge_rows.flow_rows(now.carried, seen.matched, now.focal_px, matched_in_px=False)
        sigma = noise.matched_px
        rows.append(Rows(px.residual / sigma, px.jacobian / sigma, px.log_depth / sigma))
    weights = _weights(problem, state, [each.residual for each in rows])
    columns = problem.columns
    scale_focal = torch.stack(
        [columns.scale, torch.full_like(columns.scale, columns.focal)], dim=-1
    )
    both = torch.cat([columns.pose[i], columns.pose[j], scale_focal], dim=-1)
    lift = edge_rows.lift(now.relative)
    blocks = [Block(rows[0], _robust(rows[0], weights[0]), scale_focal, i)]
    for each, weight in zip(rows[1:], weights[1:], strict=True):
        blocks.append(Block(each, _robust(each, weight), both, j, lift))
    return blocks


def _whitenings(seen: Observations, noise: Noise) -> tuple[Whitening, Whitening]:
    return (
        edge_rows.whitening(seen.own, noise.own_along, noise.own_across),
        edge_rows.whitening(seen.other, noise.other_along, noise.other_across),
    )


def _weights(problem: Problem, state: Chain, residuals: list[Tensor]) -> list[Tensor]:
    """Confidence shares of the rows, zero where a depth or a residual is unknown."""
    i, j = problem.pairs.edges.T
    seen, known = problem.seen, state.log_depth.isfinite()
    bases = (
        seen.own_weight * known[i],
        seen.other_weight * known[j],
        seen.matched_weight * known[j],
    )
    return [
        torch.where(residual.sum(dim=-2).isfinite(), base, 0.0)
        for residual, base in zip(residuals, bases, strict=False)
    ]


def _robust(rows: Rows, weight: Tensor) -> Tensor:
    """Weights times those of Cauchy's loss."""
    squared = torch.nan_to_num(rows.residual.square().sum(dim=-2))
    return weight * _CAUCHY**2 / (_CAUCHY**2 + squared)


def _cost(problem: Problem, state: Chain, noise: Noise) -> float:
    """Sum of the Cauchy losses, in squared standard deviations."""
    residuals = _residuals(problem, state, noise)
    total = 0.0
    for each, weight in zip(residuals, _weights(problem, state, residuals), strict=True):
        squared = torch.nan_to_num(each.square().sum(dim=-2))
        total += float((weight * torch.log1p(squared / _CAUCHY**2)).sum())
    return 0.5 * _CAUCHY**2 * total


def _stepped(problem: Problem, state: Chain, noise: Noise, damping: float) -> tuple[Chain, float]:
    """The unknowns after one damped step, and its length."""
    blocks = _blocks(problem, state, noise)
    columns, num_frames = problem.columns, problem.pairs.num_frames
    equations = normal_equations.eliminate_depth(blocks, columns.count, num_frames, damping)
    factor, failed = torch.linalg.cholesky_ex(_gauged(equations.H, columns))
    if bool(failed):
        return state, torch.inf
    step = -torch.cholesky_solve(equations.g.unsqueeze(-1), factor).squeeze(-1)
    depth_step = normal_equations.depth_steps(equations, step)
    return _moved(state, step, depth_step, columns)


def _gauged(H: Tensor, columns: Columns) -> Tensor:
    """Hold the mean of the log-scales, which nothing else fixes, and what nothing speaks of."""
    typical = H.diagonal().clamp(min=0.0).mean().clamp(min=1e-12)
    H = H + torch.diag(1e-10 * typical + torch.zeros(len(H), dtype=H.dtype))
    ones = torch.zeros(len(H), dtype=H.dtype)
    ones[columns.scale] = len(columns.scale) ** -0.5
    return H + typical * torch.outer(ones, ones)


def _moved(
    state: Chain, step: Tensor, depth_step: Tensor, columns: Columns
) -> tuple[Chain, float]:
    free = columns.pose[:, 0] != FIXED
    twist = torch.zeros(len(free), 6, dtype=torch.float64)
    twist[free] = step[columns.pose[free]]
    shift = step[columns.focal] if columns.focal != FIXED else step.new_zeros(())
    depth = torch.nanmedian(state.log_depth).exp()
    longest = float(max(twist[:, :3].abs().max() / depth, twist[:, 3:].abs().max(), shift.abs()))
    moved = Chain(
        T_world_cam=state.T_world_cam @ se3.exp(twist),
        log_scale=state.log_scale + step[columns.scale],
        focal_px=state.focal_px * shift.exp(),
        log_depth=state.log_depth + depth_step.clamp(-_LONGEST, _LONGEST),
    )
    return moved, longest


def measured_noise(problem: Problem, state: Chain) -> Noise:
    """Noise of the residuals as they are, by medians.

    Raises:
        AlignmentError: there is no residual of a frame's own points, or of its partners'.
    """
    residuals = _residuals(problem, state, Noise(1.0, 1.0, 1.0, 1.0, 1.0))
    weights = _weights(problem, state, residuals)
    own = _along_across(residuals[0], problem.seen.own, weights[0])
    other = _along_across(residuals[1], problem.seen.other, weights[1])
    matched = 1.0
    if len(residuals) == 3 and bool((weights[2] > 0).any()):
        px = residuals[2].movedim(-2, -1)[weights[2] > 0]
        floor = _FLOOR_PX * max(problem.pairs.size)
        matched = max(robust.MAD_TO_SIGMA * float(px.abs().median()), floor)
    return Noise(*own, *other, matched)


def _along_across(residual: Tensor, points: Tensor, weight: Tensor) -> tuple[float, float]:
    """Standard deviations along and across the ray of residuals (E, 3, P) over the distance."""
    used = weight > 0
    if not bool(used.any()):
        raise AlignmentError(
            "no sampled pixel has both a depth and a point to compare it with; the pairs' points "
            "do not agree with one another at all"
        )
    ray = edge_rows.whitening(points, 1.0, 1.0).ray
    along = (residual * ray).sum(dim=-2)
    across = (residual.square().sum(dim=-2) - along.square()).clamp(min=0.0)
    sigma_along = robust.MAD_TO_SIGMA * float(along[used].abs().median())
    sigma_across = float(across[used].median()) ** 0.5 / robust.RAYLEIGH_MEDIAN
    return max(sigma_along, _FLOOR), max(sigma_across, _FLOOR)

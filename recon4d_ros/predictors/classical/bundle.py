"""Bundle adjustment over a window with one unknown per point: its inverse depth in its host frame.

A point is born in its host frame as the patch that is tracked afterwards, so its bearing there is
exact by definition and only the inverse depth rho is unknown (Engel et al., Direct Sparse
Odometry, section 2). The point block of the normal equations is then a scalar and the Schur
complement a single matrix product. Points of one host form a dense (frames, points) grid: no loop
over points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.rigid import Array

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

RHO_MIN, RHO_MAX = 1e-4, 50.0  # inverse depth, predictor units; 1 is the median at the start
_MIN_Z = 1e-3  # of a transferred unit bearing: behind it a projection means nothing
_MAX_TRIES = 4  # dampings tried per iteration
_LEAST_GAIN = 1e-4  # relative fall of the cost below which it has converged


@dataclass(frozen=True, eq=False)
class Problem:
    """P points seen in F frames.

    Attributes:
        T_cam_world: (F, 4, 4) poses of the frames.
        free: (F,) bool, which poses may move.
        host: (P,) row of each point's host frame.
        ray: (P, 2) normalised image coordinates of the point in its host.
        rho: (P,) inverse depth in the host.
        uv: (P, F, 2) observations, normalised image coordinates; NaN where not seen.
        rho_prior: (P,) expected inverse depth.
        rho_prior_weight: (P,) inverse variance of that, 0 for none.
        focal_px: px per unit of normalised coordinates, so that residuals are in px.
        sigma_px: scale of the robust (Cauchy) kernel.
    """

    T_cam_world: Array
    free: Mask
    host: Index
    ray: Array
    rho: Array
    uv: Array
    rho_prior: Array
    rho_prior_weight: Array
    focal_px: float
    sigma_px: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Best state found.

    Attributes:
        T_cam_world: (F, 4, 4).
        rho: (P,).
        rho_sigma: (P,) standard deviation of rho, poses taken as known.
        residual_px: (P, F) length of the reprojection error, NaN where not seen.
        cost: robust cost.
        iterations: taken.
    """

    T_cam_world: Array
    rho: Array
    rho_sigma: Array
    residual_px: Array
    cost: float
    iterations: int

    def scaled(self, factor: float) -> Solution:
        """The same with all lengths times `factor`, about the first frame's camera."""
        base = self.T_cam_world[0]
        T = self.T_cam_world @ rigid.inverse(base)
        T[:, :3, 3] *= factor
        rho, sigma = self.rho / factor, self.rho_sigma / factor
        return replace(self, T_cam_world=T @ base, rho=rho, rho_sigma=sigma)


@dataclass(frozen=True, eq=False)
class _Group:
    """The points of one host frame; grids are (F, n)."""

    host: int
    rows: Index
    bearing: Array  # n 3
    uv: Array  # F n 2
    seen: Mask  # F n


@dataclass(frozen=True, eq=False)
class _Transfer:
    """Where the points of a group fall in every frame."""

    z: Array  # F n
    uv: Array  # F n 2
    residual: Array  # F n 2, px
    weight: Array  # F n
    R: Array  # F 3 3, host to frame
    t: Array  # F 3


@dataclass(frozen=True, eq=False)
class _System:
    """Normal equations before the Schur complement."""

    H: Array  # 6F 6F
    g: Array  # 6F
    cross: Array  # P 6F
    h: Array  # P
    g_rho: Array  # P


def solve(problem: Problem, max_iterations: int) -> Solution:
    """Levenberg-Marquardt on free poses and inverse depths, by the Schur complement.

    A step that does not lower the robust cost is not taken, so the result is never worse than the
    start. Cost: sum of log(1 + r^2 / sigma^2) over observations plus the squared prior.
    """
    groups = _groups(problem)
    T, rho = problem.T_cam_world, problem.rho
    transfers, cost = _evaluate(problem, groups, T, rho)
    damping, used = 1e-4, 0
    while used < max_iterations:
        used += 1
        system = _normal_equations(problem, groups, transfers, T, rho)
        for _ in range(_MAX_TRIES):
            xi, d_rho = _step(system, problem.free, damping)
            new_T = rigid.moved(T, xi)
            new_rho = np.clip(rho + d_rho, RHO_MIN, RHO_MAX)
            new_transfers, new_cost = _evaluate(problem, groups, new_T, new_rho)
            if new_cost <= cost:
                break
            damping *= 10.0
        else:
            break
        gain, damping = cost - new_cost, max(damping * 0.3, 1e-7)
        T, rho, transfers, cost = new_T, new_rho, new_transfers, new_cost
        if gain < _LEAST_GAIN * max(cost, 1e-12):
            break
    return _solution(problem, groups, transfers, T, rho, cost, used)


def _groups(problem: Problem) -> list[_Group]:
    groups = []
    for host in np.unique(problem.host):
        rows = np.flatnonzero(problem.host == host)
        uv = problem.uv[rows].transpose(1, 0, 2)
        seen = np.isfinite(uv[..., 0])
        seen[host] = False  # zero by definition
        bearing = rigid.homogeneous(problem.ray[rows])
        groups.append(_Group(int(host), rows, bearing, np.where(seen[..., None], uv, 0.0), seen))
    return groups


def _evaluate(
    problem: Problem, groups: list[_Group], T: Array, rho: Array
) -> tuple[list[_Transfer], float]:
    transfers = [_transfer(problem, group, T, rho) for group in groups]
    cost = (problem.rho_prior_weight * (rho - problem.rho_prior) ** 2).sum()
    for group, transfer in zip(groups, transfers, strict=True):
        squared = _squared(transfer.residual)[group.seen]
        cost += np.log1p(squared / problem.sigma_px**2).sum()
    return transfers, float(cost)


def _transfer(problem: Problem, group: _Group, T: Array, rho: Array) -> _Transfer:
    T_rel = T @ rigid.inverse(T[group.host])
    R, t = T_rel[:, :3, :3], T_rel[:, :3, 3]
    q = group.bearing @ R.transpose(0, 2, 1) + rho[group.rows, None] * t[:, None]
    z = np.maximum(q[..., 2], _MIN_Z)
    uv = q[..., :2] / z[..., None]
    residual = problem.focal_px * (uv - group.uv)
    r2 = _squared(residual) / problem.sigma_px**2
    weight = np.where(group.seen, 1.0 / (1.0 + r2), 0.0) / problem.sigma_px**2
    return _Transfer(z, uv, residual, weight, R, t)


def _squared(vectors: Array) -> Array:
    """Squared lengths of (..., 2): numpy sums over an axis of two are ten times slower."""
    return np.asarray(vectors[..., 0] ** 2 + vectors[..., 1] ** 2)


def _dot(one: Array, other: Array) -> Array:
    """Sum of products (n,) of two (F, n, 2) over frames and coordinates."""
    return np.asarray(np.einsum("fnk,fnk->n", one, other))


def _by_rho(problem: Problem, at: _Transfer) -> Array:
    """Residual by rho (F, n, 2), px."""
    t = at.t[:, None]
    return np.asarray((problem.focal_px / at.z)[..., None] * (t[..., :2] - at.uv * t[..., 2:]))


def _by_pose(problem: Problem, group: _Group, at: _Transfer, rho: Array, frames: Index) -> Array:
    """Residual by the twist of the frame it is seen in (frames, n, 2, 6), px."""
    f, u, v = problem.focal_px, at.uv[frames, :, 0], at.uv[frames, :, 1]
    J = np.zeros((*u.shape, 2, 6))
    near = f * rho[group.rows] / at.z[frames]
    J[..., 0, 0] = J[..., 1, 1] = near
    J[..., 0, 2], J[..., 1, 2] = -near * u, -near * v
    J[..., 0, 3], J[..., 0, 4], J[..., 0, 5] = -f * u * v, f * (1 + u * u), -f * v
    J[..., 1, 3], J[..., 1, 4], J[..., 1, 5] = -f * (1 + v * v), f * u * v, f * u
    return J


def _normal_equations(
    problem: Problem, groups: list[_Group], transfers: list[_Transfer], T: Array, rho: Array
) -> _System:
    num_points, num_frames = len(rho), len(T)
    size = 6 * num_frames
    system = _System(
        H=np.zeros((size, size)),
        g=np.zeros(size),
        cross=np.zeros((num_points, size)),
        h=problem.rho_prior_weight.copy(),
        g_rho=problem.rho_prior_weight * (rho - problem.rho_prior),
    )
    for group, at in zip(groups, transfers, strict=True):
        J_rho = _by_rho(problem, at)
        wJ_rho = at.weight[..., None] * J_rho
        system.h[group.rows] += _dot(wJ_rho, J_rho)
        system.g_rho[group.rows] += _dot(wJ_rho, at.residual)
        _add_poses(problem, group, at, T, rho, J_rho, system)
    return system


def _add_poses(
    problem: Problem,
    group: _Group,
    at: _Transfer,
    T: Array,
    rho: Array,
    J_rho: Array,
    system: _System,
) -> None:
    """The blocks of poses; those of two fixed ones are never used and left out."""
    host = group.host
    frames = np.arange(len(T)) if problem.free[host] else np.flatnonzero(problem.free)
    if len(frames) == 0:
        return
    count = len(group.rows)
    H = system.H.reshape(len(T), 6, len(T), 6)
    g, cross = system.g.reshape(-1, 6), system.cross.reshape(-1, len(T), 6)
    J = _by_pose(problem, group, at, rho, frames).reshape(len(frames), 2 * count, 6)
    weighted = J * np.repeat(at.weight[frames], 2, axis=1)[..., None]
    A = weighted.transpose(0, 2, 1) @ J  # frames 6 6
    residual = at.residual[frames].reshape(len(frames), -1, 1)
    b = (weighted.transpose(0, 2, 1) @ residual)[..., 0]
    wJ = weighted.reshape(len(frames), count, 2, 6)
    by_rho = J_rho[frames]
    c = by_rho[..., :1] * wJ[..., 0, :] + by_rho[..., 1:] * wJ[..., 1, :]  # frames n 6
    H[frames, :, frames] += A
    g[frames] += b
    cross[group.rows[:, None], frames] += c.transpose(1, 0, 2)
    if problem.free[host]:
        # The host moves the other way round: its Jacobian is -J Ad(T_frame_host).
        Ad = -rigid.adjoint(T @ rigid.inverse(T[host]))
        mixed = Ad.transpose(0, 2, 1) @ A
        H[host, :, host] += (mixed @ Ad).sum(0)
        H[host] += mixed.transpose(1, 0, 2)
        H[:, :, host] += mixed.transpose(0, 2, 1)
        g[host] += (Ad.transpose(0, 2, 1) @ b[..., None])[..., 0].sum(0)
        cross[group.rows, host] += (c @ Ad).sum(0)


def _step(system: _System, free_frames: Mask, damping: float) -> tuple[Array, Array]:
    """Damped step: twists (F, 6), zero for fixed frames, and changes of rho (P,)."""
    free = np.repeat(free_frames, 6)
    h = system.h * (1.0 + damping) + 1e-9
    xi = np.zeros(len(free))
    if free.any():
        H, B = system.H[np.ix_(free, free)], system.cross[:, free]
        S = H - B.T @ (B / h[:, None])
        S[np.diag_indices_from(S)] += damping * np.diag(H) + 1e-9
        xi[free] = np.linalg.solve(S, B.T @ (system.g_rho / h) - system.g[free])
    d_rho = -(system.g_rho + system.cross @ xi) / h
    return xi.reshape(-1, 6), d_rho


def _solution(
    problem: Problem,
    groups: list[_Group],
    transfers: list[_Transfer],
    T: Array,
    rho: Array,
    cost: float,
    used: int,
) -> Solution:
    information = problem.rho_prior_weight.copy()
    residual = np.full(problem.uv.shape[:2], np.nan)
    for group, at in zip(groups, transfers, strict=True):
        J_rho = _by_rho(problem, at)
        information[group.rows] += _dot(at.weight[..., None] * J_rho, J_rho)
        length = np.where(group.seen, np.sqrt(_squared(at.residual)), np.nan)
        residual[group.rows] = length.T
    sigma = 1.0 / np.sqrt(np.maximum(information, 1e-12))
    return Solution(T, rho, sigma, residual, cost, used)

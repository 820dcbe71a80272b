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
        squared = (transfer.residual**2).sum(-1)[group.seen]
        cost += np.log1p(squared / problem.sigma_px**2).sum()
    return transfers, float(cost)


def _transfer(problem: Problem, group: _Group, T: Array, rho: Array) -> _Transfer:
    T_rel = T @ rigid.inverse(T[group.host])
    R, t = T_rel[:, :3, :3], T_rel[:, :3, 3]
    q = group.bearing @ R.transpose(0, 2, 1) + rho[group.rows, None] * t[:, None]
    z = np.maximum(q[..., 2], _MIN_Z)
    uv = q[..., :2] / z[..., None]
    residual = problem.focal_px * (uv - group.uv)
    r2 = (residual**2).sum(-1) / problem.sigma_px**2
    weight = np.where(group.seen, 1.0 / (1.0 + r2), 0.0) / problem.sigma_px**2
    return _Transfer(z, uv, residual, weight, R, t)


def _jacobians(problem: Problem, group: _Group, at: _Transfer, rho: Array) -> tuple[Array, Array]:
    """Residual by the frame's twist (F, n, 2, 6) and by rho (F, n, 2), px."""
    f, (u, v) = problem.focal_px, (at.uv[..., 0], at.uv[..., 1])
    J = np.zeros((*u.shape, 2, 6))
    near = f * rho[group.rows] / at.z
    J[..., 0, 0] = J[..., 1, 1] = near
    J[..., 0, 2], J[..., 1, 2] = -near * u, -near * v
    J[..., 0, 3], J[..., 0, 4], J[..., 0, 5] = -f * u * v, f * (1 + u * u), -f * v
    J[..., 1, 3], J[..., 1, 4], J[..., 1, 5] = -f * (1 + v * v), f * u * v, f * u
    t = at.t[:, None]
    J_rho = (f / at.z)[..., None] * (t[..., :2] - at.uv * t[..., 2:])
    return J, J_rho


def _normal_equations(
    problem: Problem, groups: list[_Group], transfers: list[_Transfer], T: Array, rho: Array
) -> _System:
    num_points, num_frames = len(rho), len(T)
    H = np.zeros((num_frames, 6, num_frames, 6))
    g = np.zeros((num_frames, 6))
    cross = np.zeros((num_points, num_frames, 6))
    h = problem.rho_prior_weight.copy()
    g_rho = problem.rho_prior_weight * (rho - problem.rho_prior)
    diagonal = np.arange(num_frames)
    for group, at in zip(groups, transfers, strict=True):
        J, J_rho = _jacobians(problem, group, at, rho)
        rows = len(group.rows)
        J = J.reshape(num_frames, 2 * rows, 6)
        weighted = J * np.repeat(at.weight, 2, axis=1)[..., None]
        A = weighted.transpose(0, 2, 1) @ J  # F 6 6
        b = (weighted.transpose(0, 2, 1) @ at.residual.reshape(num_frames, -1, 1))[..., 0]
        # The host moves the other way round: its Jacobian is -J Ad(T_frame_host).
        Ad = -rigid.adjoint(T @ rigid.inverse(T[group.host]))
        AdT = Ad.transpose(0, 2, 1)
        H[diagonal, :, diagonal] += A
        H[group.host, :, group.host] += (AdT @ A @ Ad).sum(0)
        mixed = AdT @ A
        H[group.host] += mixed.transpose(1, 0, 2)
        H[:, :, group.host] += mixed.transpose(0, 2, 1)
        g += b
        g[group.host] += (AdT @ b[..., None])[..., 0].sum(0)
        wJ = weighted.reshape(num_frames, rows, 2, 6)
        c = (J_rho[..., None] * wJ).sum(2)  # F n 6
        cross[group.rows] += c.transpose(1, 0, 2)
        cross[group.rows, group.host] += (c @ Ad).sum(0)
        wJ_rho = at.weight[..., None] * J_rho
        h[group.rows] += (wJ_rho * J_rho).sum((0, 2))
        g_rho[group.rows] += (wJ_rho * at.residual).sum((0, 2))
    size = 6 * num_frames
    return _System(H.reshape(size, size), g.reshape(size), cross.reshape(-1, size), h, g_rho)


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
        _, J_rho = _jacobians(problem, group, at, rho)
        information[group.rows] += (at.weight[..., None] * J_rho**2).sum((0, 2))
        length = np.where(group.seen, np.linalg.norm(at.residual, axis=-1), np.nan)
        residual[group.rows] = length.T
    sigma = 1.0 / np.sqrt(np.maximum(information, 1e-12))
    return Solution(T, rho, sigma, residual, cost, used)

"""Bundle adjustment over a window with one unknown per point: its inverse depth in its host frame.

A point is born in its host frame as the patch that is tracked afterwards, so its bearing there is
exact by definition and only the inverse depth rho is unknown (Engel et al., Direct Sparse
Odometry, section 2). The point block of the normal equations is then a scalar and the Schur
complement a single matrix product. Points of one host form a dense (frames, points) grid: no loop
over points.

One more unknown is shared by all: how long the camera takes to read an image, row by row, while it
moves (shutter.py). Observations are known as they were seen; the residual undoes the readout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.problem import Problem, Solution
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Index, Mask

RHO_MIN, RHO_MAX = 1e-4, 50.0  # inverse depth, predictor units; 1 is the median at the start
_MIN_Z = 1e-3  # of a transferred unit bearing: behind it a projection means nothing
_MAX_TRIES = 4  # dampings tried per iteration
_LEAST_GAIN = 1e-4  # relative fall of the cost below which it has converged


@dataclass(frozen=True, eq=False)
class _Group:
    """The points of one host frame; grids are (F, n)."""

    host: int
    rows: Index
    ray: Array  # n 2
    host_sweep: Array  # n 2
    uv: Array  # F n 2
    sweep: Array  # F n 2
    seen: Mask  # F n


@dataclass(frozen=True, eq=False)
class _State:
    """What is sought."""

    T: Array  # F 4 4
    rho: Array  # P
    readout_s: float


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
    """Normal equations before the Schur complement: of poses, points and the readout."""

    H: Array  # 6F 6F
    g: Array  # 6F
    cross: Array  # P 6F
    h: Array  # P
    g_rho: Array  # P
    H_readout: Array  # 6F, with the poses
    cross_readout: Array  # P
    readout: Array  # 2, its own entry and its gradient


@dataclass(frozen=True, eq=False)
class _Step:
    """Changes of all unknowns."""

    xi: Array  # F 6, zero for fixed frames
    rho: Array  # P
    readout_s: float
    readout_sigma_s: float


def solve(problem: Problem, max_iterations: int) -> Solution:
    """Levenberg-Marquardt on free poses, inverse depths and readout, by the Schur complement.

    A step that does not lower the robust cost is not taken, so the result is never worse than the
    start. Cost: sum of log(1 + r^2 / sigma^2) over observations plus the squared priors.
    """
    groups = _groups(problem)
    state = _State(problem.T_cam_world, problem.rho, problem.readout.expected.seconds)
    transfers, cost = _evaluate(problem, groups, state)
    damping, used, sigma_s = 1e-4, 0, np.inf
    while used < max_iterations:
        used += 1
        system = _normal_equations(problem, groups, transfers, state)
        for _ in range(_MAX_TRIES):
            step = _step(system, problem.free, damping)
            new = _State(
                rigid.moved(state.T, step.xi),
                np.clip(state.rho + step.rho, RHO_MIN, RHO_MAX),
                state.readout_s + step.readout_s,
            )
            new_transfers, new_cost = _evaluate(problem, groups, new)
            if new_cost <= cost:
                break
            damping *= 10.0
        else:
            break
        gain, damping = cost - new_cost, max(damping * 0.3, 1e-7)
        state, transfers, cost, sigma_s = new, new_transfers, new_cost, step.readout_sigma_s
        if gain < _LEAST_GAIN * max(cost, 1e-12):
            break
    rho_sigma, residual = _uncertainty(problem, groups, transfers)
    return Solution(state.T, state.rho, rho_sigma, residual, state.readout_s, sigma_s, cost, used)


def _groups(problem: Problem) -> list[_Group]:
    groups = []
    for host in np.unique(problem.host):
        rows = np.flatnonzero(problem.host == host)
        uv, sweep = (grid[rows].transpose(1, 0, 2) for grid in (problem.uv, problem.readout.sweep))
        seen = np.isfinite(uv[..., 0])
        seen[host] = False  # zero by definition
        uv, sweep = (np.where(seen[..., None], grid, 0.0) for grid in (uv, sweep))
        host_sweep = problem.readout.host_sweep[rows]
        groups.append(_Group(int(host), rows, problem.ray[rows], host_sweep, uv, sweep, seen))
    return groups


def _evaluate(
    problem: Problem, groups: list[_Group], state: _State
) -> tuple[list[_Transfer], float]:
    transfers = [_transfer(problem, group, state) for group in groups]
    expected = problem.readout.expected
    cost = (problem.rho_prior_weight * (state.rho - problem.rho_prior) ** 2).sum()
    cost += ((state.readout_s - expected.seconds) / expected.sigma_s) ** 2
    for group, transfer in zip(groups, transfers, strict=True):
        squared = _squared(transfer.residual)[group.seen]
        cost += np.log1p(squared / problem.sigma_px**2).sum()
    return transfers, float(cost)


def _transfer(problem: Problem, group: _Group, state: _State) -> _Transfer:
    T_rel = state.T @ rigid.inverse(state.T[group.host])
    R, t = T_rel[:, :3, :3], T_rel[:, :3, 3]
    bearing = rigid.homogeneous(group.ray - state.readout_s * group.host_sweep)
    q = bearing @ R.transpose(0, 2, 1) + state.rho[group.rows, None] * t[:, None]
    z = np.maximum(q[..., 2], _MIN_Z)
    uv = q[..., :2] / z[..., None]
    residual = problem.focal_px * (uv - group.uv + state.readout_s * group.sweep)
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


def _by_readout(problem: Problem, group: _Group, at: _Transfer) -> Array:
    """Residual by the readout (F, n, 2), px per second."""
    q = group.host_sweep @ at.R[:, :, :2].transpose(0, 2, 1)
    moved = (q[..., :2] - at.uv * q[..., 2:]) / at.z[..., None]
    return np.asarray(problem.focal_px * (group.sweep - moved))


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
    problem: Problem, groups: list[_Group], transfers: list[_Transfer], state: _State
) -> _System:
    num_points, size = len(state.rho), 6 * len(state.T)
    expected = problem.readout.expected
    off_s = state.readout_s - expected.seconds
    system = _System(
        H=np.zeros((size, size)),
        g=np.zeros(size),
        cross=np.zeros((num_points, size)),
        h=problem.rho_prior_weight.copy(),
        g_rho=problem.rho_prior_weight * (state.rho - problem.rho_prior),
        H_readout=np.zeros(size),
        cross_readout=np.zeros(num_points),
        readout=np.array([1.0, off_s]) / expected.sigma_s**2,
    )
    for group, at in zip(groups, transfers, strict=True):
        J_rho, J_readout = _by_rho(problem, at), _by_readout(problem, group, at)
        wJ_rho, wJ_readout = (at.weight[..., None] * J for J in (J_rho, J_readout))
        system.h[group.rows] += _dot(wJ_rho, J_rho)
        system.g_rho[group.rows] += _dot(wJ_rho, at.residual)
        system.cross_readout[group.rows] += _dot(wJ_rho, J_readout)
        system.readout[:] += _dot(wJ_readout, J_readout).sum(), _dot(wJ_readout, at.residual).sum()
        _add_poses(problem, group, at, state, (J_rho, J_readout), system)
    return system


def _add_poses(
    problem: Problem,
    group: _Group,
    at: _Transfer,
    state: _State,
    by: tuple[Array, Array],
    system: _System,
) -> None:
    """The blocks of poses; those of two fixed ones are never used and left out."""
    host, num_frames = group.host, len(state.T)
    frames = np.arange(num_frames) if problem.free[host] else np.flatnonzero(problem.free)
    if len(frames) == 0:
        return
    count = len(group.rows)
    H = system.H.reshape(num_frames, 6, num_frames, 6)
    cross = system.cross.reshape(-1, num_frames, 6)
    g, H_readout = (column.reshape(-1, 6) for column in (system.g, system.H_readout))
    J = _by_pose(problem, group, at, state.rho, frames).reshape(len(frames), 2 * count, 6)
    weighted = J * np.repeat(at.weight[frames], 2, axis=1)[..., None]
    A = weighted.transpose(0, 2, 1) @ J  # frames 6 6
    b, d = (
        (weighted.transpose(0, 2, 1) @ r[frames].reshape(len(frames), -1, 1))[..., 0]
        for r in (at.residual, by[1])
    )
    wJ = weighted.reshape(len(frames), count, 2, 6)
    by_rho = by[0][frames]
    c = by_rho[..., :1] * wJ[..., 0, :] + by_rho[..., 1:] * wJ[..., 1, :]  # frames n 6
    H[frames, :, frames] += A
    g[frames] += b
    H_readout[frames] += d
    cross[group.rows[:, None], frames] += c.transpose(1, 0, 2)
    if problem.free[host]:
        # The host moves the other way round: its Jacobian is -J Ad(T_frame_host).
        Ad = -rigid.adjoint(state.T @ rigid.inverse(state.T[host]))
        mixed = Ad.transpose(0, 2, 1) @ A
        H[host, :, host] += (mixed @ Ad).sum(0)
        H[host] += mixed.transpose(1, 0, 2)
        H[:, :, host] += mixed.transpose(0, 2, 1)
        g[host] += np.einsum("fij,fi->j", Ad, b)
        H_readout[host] += np.einsum("fij,fi->j", Ad, d)
        cross[group.rows, host] += (c @ Ad).sum(0)


def _step(system: _System, free_frames: Mask, damping: float) -> _Step:
    """Damped step; poses and readout together after the points are eliminated."""
    free = np.append(np.repeat(free_frames, 6), True)
    size = len(free)
    h = system.h * (1.0 + damping) + 1e-9
    H, g = np.zeros((size, size)), np.append(system.g, system.readout[1])
    H[:-1, :-1], H[:-1, -1], H[-1, :-1] = system.H, system.H_readout, system.H_readout
    H[-1, -1] = system.readout[0]
    cross = np.column_stack([system.cross, system.cross_readout])
    B = cross[:, free]
    S = H[np.ix_(free, free)] - B.T @ (B / h[:, None])
    S[np.diag_indices_from(S)] += damping * np.diag(H)[free] + 1e-9
    right = np.column_stack([B.T @ (system.g_rho / h) - g[free], np.eye(len(S))[-1]])
    solved = np.linalg.solve(S, right)
    change = np.zeros(size)
    change[free] = solved[:, 0]
    d_rho = -(system.g_rho + cross @ change) / h
    variance = max(float(solved[-1, 1]), 0.0)
    return _Step(change[:-1].reshape(-1, 6), d_rho, float(change[-1]), variance**0.5)


def _uncertainty(
    problem: Problem, groups: list[_Group], transfers: list[_Transfer]
) -> tuple[Array, Array]:
    """Standard deviation of rho (P,), poses taken as known, and residuals (P, F) in px."""
    information = problem.rho_prior_weight.copy()
    residual = np.full(problem.uv.shape[:2], np.nan)
    for group, at in zip(groups, transfers, strict=True):
        J_rho = _by_rho(problem, at)
        information[group.rows] += _dot(at.weight[..., None] * J_rho, J_rho)
        length = np.where(group.seen, np.sqrt(_squared(at.residual)), np.nan)
        residual[group.rows] = length.T
    return 1.0 / np.sqrt(np.maximum(information, 1e-12)), residual

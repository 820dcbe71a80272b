"""Bundle adjustment over a window with one unknown per point: its inverse depth in its host frame.

A point is born in its host frame as the patch that is tracked afterwards, so its bearing there is
exact by definition and only the inverse depth rho is unknown (Engel et al., Direct Sparse
Odometry, section 2). The point block of the normal equations is then a scalar and the Schur
complement a single matrix product. The sights lie side by side in flat arrays, those of one pair
of host and frame together: no loop over points, and nothing is computed for what was not seen.

Unknowns that all share: how long the camera takes to read an image, row by row, while it moves
(shutter.py), and its focal length if none was given. Observations are known as they were seen; the
residual undoes the readout.
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
class _Sights:
    """The M observations, ordered by Q pairs of host and frame; pairs with a free pose first.

    Attributes:
        point: (M,) row of the point.
        uv, sweep, ray, host_sweep: (2, M), see `Problem`.
        host, frame, start, size: (Q,) of the pairs; `start` is the first observation.
        num_posed, num_posed_pairs: observations and pairs that a free pose takes part in.
    """

    point: Index
    uv: Array
    sweep: Array
    ray: Array
    host_sweep: Array
    host: Index
    frame: Index
    start: Index
    size: Index
    num_posed: int
    num_posed_pairs: int


@dataclass(frozen=True, eq=False)
class _State:
    """What is sought."""

    T: Array  # F 4 4
    rho: Array  # P
    shared: Array  # S, see `_expected`


@dataclass(frozen=True, eq=False)
class _Transfer:
    """Where the points fall in the frames they are seen in, by a focal length."""

    focal_px: float
    T: Array  # 3 4 M, host to frame
    z: Array  # M
    uv: Array  # 2 M
    residual: Array  # 2 M, px
    weight: Array  # M


@dataclass(frozen=True, eq=False)
class _System:
    """Normal equations before the Schur complement: of K free poses, points and what is shared."""

    H: Array  # 6K 6K
    g: Array  # 6K
    cross: Array  # P 6K
    h: Array  # P
    g_rho: Array  # P
    H_mixed: Array  # S 6K, shared with the poses
    cross_shared: Array  # S P
    H_shared: Array  # S S
    g_shared: Array  # S


@dataclass(frozen=True, eq=False)
class _Step:
    """Changes of all unknowns."""

    xi: Array  # K 6, of the free poses
    rho: Array  # P
    shared: Array  # S
    shared_sigma: Array  # S
    rho_by_last: Array  # P, change that the last of what is shared draws after it, per unit


def solve(problem: Problem, max_iterations: int) -> Solution:
    """Levenberg-Marquardt on poses, inverse depths and what is shared, by the Schur complement.

    A step that does not lower the robust cost is not taken, so the result is never worse than the
    start. Cost: sum of log(1 + r^2 / sigma^2) over observations plus the squared priors.
    """
    sights = _sights(problem)
    shared, _ = _expected(problem)
    state, sigma = _State(problem.T_cam_world, problem.rho, shared), np.full(len(shared), np.inf)
    at, cost = _evaluate(problem, sights, state)
    damping, used = 1e-4, 0
    while used < max_iterations:
        used += 1
        system = _normal_equations(problem, sights, at, state)
        for _ in range(_MAX_TRIES):
            step = _step(system, damping)
            new = _State(
                _moved(state.T, problem.free, step.xi),
                np.clip(state.rho + step.rho, RHO_MIN, RHO_MAX),
                state.shared + step.shared,
            )
            new_at, new_cost = _evaluate(problem, sights, new)
            if new_cost <= cost:
                break
            damping *= 10.0
        else:
            break
        gain, damping = cost - new_cost, max(damping * 0.3, 1e-7)
        state, at, cost, sigma = new, new_at, new_cost, step.shared_sigma
        if gain < _LEAST_GAIN * max(cost, 1e-12):
            break
    rho_sigma, residual = _uncertainty(problem, sights, at)
    focal_sigma, rho_by_focal = _about_focal(problem, sights, at, state)
    return Solution(
        T_cam_world=state.T,
        rho=state.rho,
        rho_sigma=rho_sigma,
        residual_px=residual,
        readout_s=float(state.shared[0]),
        readout_sigma_s=float(sigma[0]),
        focal_px=at.focal_px,
        focal_sigma=focal_sigma,
        rho_by_focal=rho_by_focal,
        cost=cost,
        iterations=used,
    )


def _expected(problem: Problem) -> tuple[Array, Array]:
    """What is expected of the S unknowns that all share, and its standard deviation, (S,) each.

    The readout in seconds and, if it is not known, the log of the focal length over `focal_px`.
    """
    readout = problem.readout.expected
    if problem.focal_sigma == 0:
        return np.array([readout.seconds]), np.array([readout.sigma_s])
    return np.array([readout.seconds, 0.0]), np.array([readout.sigma_s, problem.focal_sigma])


def _moved(T: Array, free: Mask, xi: Array) -> Array:
    """Poses (F, 4, 4) of which the free ones take a step (K, 6)."""
    out: Array = T.copy()
    out[free] = rigid.moved(T[free], xi)
    return out


def _sights(problem: Problem) -> _Sights:
    seen = np.isfinite(problem.uv[..., 0])
    seen[np.arange(len(seen)), problem.host] = False  # zero by definition
    point, frame = np.nonzero(seen)
    is_fixed = ~(problem.free[problem.host[point]] | problem.free[frame])
    num_frames = len(problem.free)
    pair = (is_fixed * num_frames + problem.host[point]) * num_frames + frame
    order = np.argsort(pair, kind="stable")
    _, start, size = np.unique(pair[order], return_index=True, return_counts=True)
    point, frame, is_fixed = point[order], frame[order], is_fixed[order]
    return _Sights(
        point=point,
        uv=problem.uv[point, frame].T.copy(),
        sweep=problem.readout.sweep[point, frame].T.copy(),
        ray=problem.ray[point].T.copy(),
        host_sweep=problem.readout.host_sweep[point].T.copy(),
        host=problem.host[point[start]],
        frame=frame[start],
        start=start,
        size=size,
        num_posed=int((~is_fixed).sum()),
        num_posed_pairs=int((~is_fixed[start]).sum()),
    )


def _evaluate(problem: Problem, sights: _Sights, state: _State) -> tuple[_Transfer, float]:
    at = _transfer(problem, sights, state)
    expected, sigma = _expected(problem)
    cost = (problem.rho_prior_weight * (state.rho - problem.rho_prior) ** 2).sum()
    cost += (((state.shared - expected) / sigma) ** 2).sum()
    cost += np.log1p(_squared(at.residual) / problem.sigma_px**2).sum()
    return at, float(cost)


def _transfer(problem: Problem, sights: _Sights, state: _State) -> _Transfer:
    T_pair = state.T[sights.frame] @ rigid.inverse(state.T)[sights.host]
    T = np.repeat(T_pair[:, :3].transpose(1, 2, 0), sights.size, axis=2)
    readout_s, log_zoom = state.shared if len(state.shared) > 1 else (state.shared[0], 0.0)
    zoom = float(np.exp(log_zoom))
    ray = sights.ray / zoom - readout_s * sights.host_sweep
    q = T[:, 0] * ray[0] + T[:, 1] * ray[1] + T[:, 2] + state.rho[sights.point] * T[:, 3]
    z = np.maximum(q[2], _MIN_Z)
    uv = q[:2] / z
    focal_px = problem.focal_px * zoom
    residual = focal_px * (uv - sights.uv / zoom + readout_s * sights.sweep)
    weight = 1.0 / (problem.sigma_px**2 + _squared(residual))
    return _Transfer(focal_px, T, z, uv, residual, weight)


def _squared(vectors: Array) -> Array:
    """Squared lengths (M,) of (2, M): numpy sums over an axis of two are ten times slower."""
    return np.asarray(vectors[0] ** 2 + vectors[1] ** 2)


def _dot(one: Array, other: Array) -> Array:
    """Products (..., M) of (2, ..., M), summed over the two coordinates."""
    return np.asarray(one[0] * other[0] + one[1] * other[1])


def _by_rho(at: _Transfer) -> Array:
    """Residual by rho (2, M), px."""
    t = at.T[:, 3]
    return np.asarray(at.focal_px / at.z * (t[:2] - at.uv * t[2]))


def _by_ray(at: _Transfer, ray: Array) -> Array:
    """Change of the unit-focal projections (2, M) with one (2, M) of the rays in the hosts."""
    q = at.T[:, 0] * ray[0] + at.T[:, 1] * ray[1]
    return np.asarray((q[:2] - at.uv * q[2]) / at.z)


def _by_readout(sights: _Sights, at: _Transfer) -> Array:
    """Residual by the readout (2, M), px per second."""
    return np.asarray(at.focal_px * (sights.sweep - _by_ray(at, sights.host_sweep)))


def _by_zoom(problem: Problem, sights: _Sights, at: _Transfer) -> Array:
    """Residual by the log of the focal length (2, M), px: rays shrink as the image grows."""
    seen_px = problem.focal_px * sights.uv
    return np.asarray(at.residual + seen_px - problem.focal_px * _by_ray(at, sights.ray))


def _by_pose(at: _Transfer, rho: Array) -> Array:
    """Residual by the twist of the frame it is seen in (2, 6, m), of the first m observations."""
    count, f = len(rho), at.focal_px
    (u, v), near = at.uv[:, :count], f * rho / at.z[:count]
    zero = np.zeros(count)
    return np.array(
        [
            [near, zero, -near * u, -f * u * v, f * (1 + u * u), -f * v],
            [zero, near, -near * v, -f * (1 + v * v), f * u * v, f * u],
        ]
    )


def _normal_equations(problem: Problem, sights: _Sights, at: _Transfer, state: _State) -> _System:
    num_points, size = len(state.rho), 6 * int(problem.free.sum())
    expected, sigma = _expected(problem)
    J_rho, J_shared = _by_rho(at), [_by_readout(sights, at)]
    if len(expected) > 1:
        J_shared.append(_by_zoom(problem, sights, at))

    def by_point(values: Array) -> Array:
        return np.asarray(np.bincount(sights.point, values, num_points), np.float64)

    wJ_rho, wJ_shared = at.weight * J_rho, [at.weight * J for J in J_shared]
    prior = problem.rho_prior_weight
    system = _System(
        H=np.zeros((size, size)),
        g=np.zeros(size),
        cross=np.zeros((num_points, size)),
        h=prior + by_point(_dot(wJ_rho, J_rho)),
        g_rho=prior * (state.rho - problem.rho_prior) + by_point(_dot(wJ_rho, at.residual)),
        H_mixed=np.zeros((len(expected), size)),
        cross_shared=np.array([by_point(_dot(wJ_rho, J)) for J in J_shared]),
        H_shared=np.diag(sigma**-2) + [[_dot(wJ, J).sum() for J in J_shared] for wJ in wJ_shared],
        g_shared=(state.shared - expected) / sigma**2
        + [_dot(wJ, at.residual).sum() for wJ in wJ_shared],
    )
    if sights.num_posed:
        _add_poses(problem, sights, at, state, (J_rho, *J_shared), system)
    return system


def _add_poses(
    problem: Problem,
    sights: _Sights,
    at: _Transfer,
    state: _State,
    by: tuple[Array, ...],
    system: _System,
) -> None:
    """The blocks of the free poses; what falls to a fixed one goes to a last place and is dropped.

    Most hosts of a long stream are fixed: with places of their own, the matrices would be ten
    times as large.
    """
    count, num_free = sights.num_posed, int(problem.free.sum())
    pairs = slice(sights.num_posed_pairs)
    host, frame, start = sights.host[pairs], sights.frame[pairs], sights.start[pairs]
    point = sights.point[:count]
    J = _by_pose(at, state.rho[point])
    wJ = at.weight[:count] * J

    def by_pair(values: Array) -> Array:
        return np.add.reduceat(values, start, axis=-1)

    A = np.zeros((len(start), 6, 6))
    for i in range(6):
        A[:, i, i:] = by_pair(_dot(wJ[:, i : i + 1], J[:, i:])).T
    A += np.triu(A, 1).transpose(0, 2, 1)
    # The host moves the other way round: its Jacobian is -J Ad(T_frame_host).
    Ad = -rigid.adjoint(state.T[frame] @ rigid.inverse(state.T)[host])
    mixed = Ad.transpose(0, 2, 1) @ A
    place = np.where(problem.free, np.cumsum(problem.free) - 1, num_free)
    host, frame = place[host], place[frame]
    H = np.zeros((num_free + 1, num_free + 1, 6, 6))
    H[host, frame] = mixed
    H += H.transpose(1, 0, 3, 2)
    H = H[:num_free, :num_free]
    in_frame, in_host = (row == np.arange(num_free)[:, None] for row in (frame, host))
    own = in_frame @ A.reshape(-1, 36) + in_host @ (mixed @ Ad).reshape(-1, 36)
    H[np.arange(num_free), np.arange(num_free)] += own.reshape(-1, 6, 6)
    system.H[:] = H.transpose(0, 2, 1, 3).reshape(system.H.shape)
    pulls = (at.residual, *by[1:])
    for column, J_other in zip((system.g, *system.H_mixed), pulls, strict=True):
        pull = by_pair(_dot(wJ, J_other[:, None, :count])).T  # pairs 6
        at_host = (pull[:, None] @ Ad)[:, 0]
        column[:] = (in_frame @ pull + in_host @ at_host).reshape(-1)
    pull = _dot(wJ, by[0][:, None, :count])  # 6 m
    cross = np.zeros((len(state.rho), num_free + 1, 6))
    cross[point, np.repeat(frame, sights.size[pairs])] = pull.T
    at_host = [
        np.bincount(point, row, minlength=len(cross)) for row in _at_host(at.T[..., :count], pull)
    ]
    cross[np.arange(len(cross)), place[problem.host]] += np.stack(at_host, axis=1)
    system.cross[:] = cross[:, :num_free].reshape(system.cross.shape)


def _at_host(T: Array, pull: Array) -> Array:
    """Gradients (6, m) by the host's twist of those by the frame's: -Ad(T)^T pull."""
    v, w, t = pull[:3], pull[3:], T[:, 3]
    w = w - np.array(
        [t[1] * v[2] - t[2] * v[1], t[2] * v[0] - t[0] * v[2], t[0] * v[1] - t[1] * v[0]]
    )
    columns = [T[0, j] * x[0] + T[1, j] * x[1] + T[2, j] * x[2] for x in (v, w) for j in range(3)]
    return -np.array(columns)


def _step(system: _System, damping: float) -> _Step:
    """Damped step; poses and what is shared together after the points are eliminated."""
    num_shared = len(system.g_shared)
    poses, shared = slice(-num_shared), slice(-num_shared, None)
    g = np.concatenate([system.g, system.g_shared])
    H = np.zeros((len(g), len(g)))
    H[poses, poses], H[shared, shared] = system.H, system.H_shared
    H[shared, poses], H[poses, shared] = system.H_mixed, system.H_mixed.T
    root = np.sqrt(system.h * (1.0 + damping) + 1e-9)
    B = np.empty((len(root), len(g)))
    np.divide(system.cross, root[:, None], out=B[:, poses])
    B[:, shared] = (system.cross_shared / root).T
    S = H - B.T @ B  # BLAS does half of a product with itself
    S[np.diag_indices_from(S)] += damping * np.diag(H) + 1e-9
    right = np.column_stack([B.T @ (system.g_rho / root) - g, np.eye(len(g))[:, shared]])
    solved = np.linalg.solve(S, right)
    d_rho = -(system.g_rho / root + B @ solved[:, 0]) / root
    variance = np.maximum(np.diag(solved[shared, 1:]), 0.0)
    by_last = -(B @ solved[:, -1]) / (root * solved[-1, -1])
    return _Step(solved[poses, 0].reshape(-1, 6), d_rho, solved[shared, 0], variance**0.5, by_last)


def _uncertainty(problem: Problem, sights: _Sights, at: _Transfer) -> tuple[Array, Array]:
    """Standard deviation of rho (P,), poses taken as known, and residuals (P, F) in px."""
    J_rho = _by_rho(at)
    seen = np.bincount(sights.point, at.weight * _squared(J_rho), minlength=len(problem.rho))
    information = problem.rho_prior_weight + seen
    residual = np.full(problem.uv.shape[:2], np.nan)
    residual[sights.point, np.repeat(sights.frame, sights.size)] = np.sqrt(_squared(at.residual))
    return 1.0 / np.sqrt(np.maximum(information, 1e-12)), residual


def _about_focal(
    problem: Problem, sights: _Sights, at: _Transfer, state: _State
) -> tuple[float, Array]:
    """Relative standard deviation of the focal length, and how rho (P,) follows its log."""
    if problem.focal_sigma == 0:
        return 0.0, np.zeros(len(state.rho))
    step = _step(_normal_equations(problem, sights, at, state), 0.0)
    return float(step.shared_sigma[-1]), step.rho_by_last

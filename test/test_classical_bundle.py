"""Bundle adjustment against finite differences, scipy and scenes whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from sparse_scene import FOCAL, Path, bearings, global_shutter, inverse_depths, project

from recon4d_ros.geometry import se3
from recon4d_ros.predictors.classical import bundle, rigid
from recon4d_ros.predictors.classical.problem import Problem, Readout, Solution
from recon4d_ros.predictors.classical.shutter import ReadoutTime

twists = st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6).map(np.array)


# ------------------------------------------------------------------ rigid motions
@given(twists)
@settings(max_examples=50, deadline=None)
def test_rigid_motions_equal_the_torch_ones(xi):
    assert np.allclose(rigid.exp(xi), se3.exp(torch.from_numpy(xi)).numpy(), atol=1e-12)
    T = rigid.exp(xi)
    assert np.allclose(rigid.inverse(T), se3.inverse(torch.from_numpy(T)).numpy(), atol=1e-12)
    assert np.allclose(rigid.inverse(T) @ T, np.eye(4), atol=1e-12)


@given(twists, st.floats(1e-12, 1e-2))
@settings(max_examples=30, deadline=None)
def test_small_motions_are_exact(xi, size):
    expected = se3.exp(torch.from_numpy(xi * size)).numpy()
    assert np.allclose(rigid.exp(xi * size), expected, rtol=0, atol=1e-13)


@given(twists, twists)
@settings(max_examples=50, deadline=None)
def test_adjoint_moves_a_twist_to_the_other_side(first, second):
    T = rigid.exp(first)
    left = T @ rigid.exp(second) @ rigid.inverse(T)
    assert np.allclose(left, rigid.exp(rigid.adjoint(T) @ second), atol=1e-9)


def constant_velocity(num_steps: int, keep_rigid: bool) -> np.ndarray:
    last, T = np.eye(4), rigid.exp(np.array([0.1, 0.02, -0.03, 0.02, 0.05, -0.01]))
    for _ in range(num_steps):
        step = T @ rigid.inverse(last)
        new = step @ T
        last, T = T, rigid.orthonormal(new) if keep_rigid else new
    return T[:3, :3]


def test_constant_velocity_stays_a_rotation_only_when_made_orthonormal():
    kept, lost = constant_velocity(200, True), constant_velocity(40, False)
    assert np.allclose(kept @ kept.T, np.eye(3), atol=1e-12)
    assert not np.allclose(lost @ lost.T, np.eye(3), atol=1e-3)


# ------------------------------------------------------------------ problems
def problem(
    path: Path | None = None,
    count: int = 60,
    noise_px: float = 0.0,
    start_error: float = 0.0,
    hosts: int = 2,
    seed: int = 3,
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A problem, its true poses and true inverse depths; two frames are fixed."""
    T = (path or Path()).poses()
    random = np.random.default_rng(seed)
    host = np.arange(count) % hosts
    ray, rho = bearings(count, seed), inverse_depths(count, seed)
    uv = np.full((count, len(T), 2), np.nan)
    for frame, pose in enumerate(T):
        for h in range(hosts):
            rows = host == h
            uv[rows, frame] = project(pose @ rigid.inverse(T[h]), ray[rows], rho[rows])
    noise = random.normal(size=uv.shape) * noise_px / FOCAL
    noise[np.arange(count), host] = 0.0
    free = np.arange(len(T)) > 1
    xi = random.normal(size=(len(T), 6)) * start_error * free[:, None]
    given_problem = Problem(
        T_cam_world=rigid.exp(xi) @ T,
        free=free,
        host=host,
        ray=ray,
        rho=rho * (1 + 3 * start_error * random.normal(size=count)),
        uv=uv + noise,
        rho_prior=np.ones(count),
        rho_prior_weight=np.zeros(count),
        focal_px=FOCAL,
        focal_sigma=0.0,
        sigma_px=0.3,
        readout=global_shutter(count, len(T)),
    )
    return given_problem, T, rho


def residuals(
    given_problem: Problem,
    T: np.ndarray,
    rho: np.ndarray,
    readout_s: float = 0.0,
    zoom: float = 1.0,
) -> np.ndarray:
    """Reprojection errors, px, from the pinhole equations alone; zero where not seen."""
    out = np.zeros(given_problem.uv.shape)
    seen = given_problem.uv / zoom - readout_s * given_problem.readout.sweep
    ray = given_problem.ray / zoom - readout_s * given_problem.readout.host_sweep
    for frame, pose in enumerate(T):
        for h in np.unique(given_problem.host):
            rows = given_problem.host == h
            uv = project(pose @ rigid.inverse(T[h]), ray[rows], rho[rows])
            out[rows, frame] = FOCAL * zoom * (uv - seen[rows, frame])
    out[np.arange(len(rho)), given_problem.host] = 0.0
    return np.nan_to_num(out)


def cost(
    given_problem: Problem,
    T: np.ndarray,
    rho: np.ndarray,
    readout_s: float = 0.0,
    zoom: float = 1.0,
) -> float:
    squared = (residuals(given_problem, T, rho, readout_s, zoom) ** 2).sum(-1)
    prior = given_problem.rho_prior_weight * (rho - given_problem.rho_prior) ** 2
    expected = given_problem.readout.expected
    shared = ((readout_s - expected.seconds) / expected.sigma_s) ** 2
    if given_problem.focal_sigma:
        shared += (np.log(zoom) / given_problem.focal_sigma) ** 2
    return float(np.log1p(squared / given_problem.sigma_px**2).sum() + prior.sum() + shared)


def moved(given_problem, T, rho, step):
    """State after a step in all twists and inverse depths."""
    size = 6 * len(T)
    return rigid.exp(step[:size].reshape(-1, 6)) @ T, rho + step[size:]


def test_fixed_poses_change_no_block_of_the_free_ones():
    given_problem, _, _ = problem(noise_px=0.5, start_error=0.01, count=12)
    T, rho = given_problem.T_cam_world, given_problem.rho
    free = np.arange(len(T)) >= len(T) - 2
    systems = []
    for mask in (free, np.ones(len(T), bool)):
        some = replace(given_problem, free=mask)
        sights = bundle._sights(some)
        state = bundle._State(T, rho, np.zeros(1))
        at, _ = bundle._evaluate(some, sights, state)
        systems.append(bundle._normal_equations(some, sights, at, state))
    part, whole = systems
    used = np.repeat(free, 6)
    assert part.H.shape == (12, 12)
    assert np.allclose(part.H, whole.H[np.ix_(used, used)], rtol=1e-12)
    assert np.allclose(part.cross, whole.cross[:, used], rtol=1e-12)
    assert np.allclose(part.g, whole.g[used], rtol=1e-12)
    assert np.allclose(part.h, whole.h) and np.allclose(part.g_rho, whole.g_rho)


def bent(given_problem: Problem) -> Problem:
    """With rows that are read one after the other by a camera of some velocity."""
    random = np.random.default_rng(9)
    count, num_frames = given_problem.uv.shape[:2]
    sweeps = random.normal(size=(count, num_frames, 2)), random.normal(size=(count, 2))
    return replace(given_problem, readout=Readout(*sweeps, ReadoutTime(0.004, 0.01)))


@pytest.mark.parametrize("focal_sigma", [0.0, 0.1])
def test_normal_equations_equal_finite_differences(focal_sigma):
    given_problem, _, _ = problem(noise_px=0.5, start_error=0.01, count=12)
    # Blocks of two fixed poses are left out: with all of them free every block is there.
    everything = np.ones(len(given_problem.free), bool)
    given_problem = replace(given_problem, rho_prior_weight=np.full(12, 0.7), free=everything)
    given_problem = replace(bent(given_problem), focal_sigma=focal_sigma)
    T, rho = given_problem.T_cam_world, given_problem.rho
    shared = np.array([0.006, 0.05] if focal_sigma else [0.006])

    def state(step: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        now = shared + step[size:]
        return *moved(given_problem, T, rho, step[:size]), now[0], float(np.exp(now[1:].sum()))

    sights = bundle._sights(given_problem)
    start = bundle._State(T, rho, shared)
    at, at_start = bundle._evaluate(given_problem, sights, start)
    size = 6 * len(T) + len(rho)
    here = state(np.zeros(size + len(shared)))
    assert at_start == pytest.approx(cost(given_problem, *here), rel=1e-12)
    system = bundle._normal_equations(given_problem, sights, at, start)
    columns, gradient = [], []
    for step in 1e-6 * np.eye(size + len(shared)):
        plus, minus = (residuals(given_problem, *state(sign * step)) for sign in (1, -1))
        columns.append(((plus - minus) / 2e-6).reshape(-1))
        up, down = (cost(given_problem, *state(sign * step)) for sign in (1, -1))
        gradient.append((up - down) / 4e-6)  # half of the gradient: the cost has no 1/2
    J = np.stack(columns, axis=1)
    weight = np.repeat(np.concatenate(weights(given_problem, *here)), 2)
    H = J.T @ (weight[:, None] * J)
    poses, points = slice(0, 6 * len(T)), slice(6 * len(T), size)
    H[points, points] += np.diag(given_problem.rho_prior_weight)
    sigma = [given_problem.readout.expected.sigma_s, focal_sigma][: len(shared)]
    H[size:, size:] += np.diag(np.array(sigma) ** -2)
    scale = np.abs(H[:size, :size]).max()
    assert np.allclose(system.H, H[poses, poses], atol=1e-6 * scale)
    assert np.allclose(system.cross, H[points, poses], atol=1e-6 * scale)
    assert np.allclose(system.h, np.diag(H[points, points]), rtol=1e-5)
    expected, largest = np.array(gradient), np.abs(H[size:]).max(axis=1, keepdims=True)
    assert np.allclose(system.H_mixed, H[size:, poses], atol=1e-6 * largest)
    assert np.allclose(system.cross_shared, H[size:, points], atol=1e-6 * largest)
    assert np.allclose(system.H_shared, H[size:, size:], rtol=1e-5)
    assert np.allclose(system.g_shared, expected[size:], rtol=1e-5)
    assert np.allclose(system.g, expected[poses], atol=1e-5 * np.abs(expected).max())
    assert np.allclose(system.g_rho, expected[points], atol=1e-5 * np.abs(expected).max())


def weights(given_problem, *state) -> list[np.ndarray]:
    """Cauchy weights of every observation."""
    squared = (residuals(given_problem, *state) ** 2).sum(-1) / given_problem.sigma_px**2
    return [row / given_problem.sigma_px**2 for row in 1.0 / (1.0 + squared)]


@pytest.mark.parametrize("zoom", [0.75, 1.3])
def test_a_focal_length_that_is_not_known_is_found(zoom):
    given_problem, T, _ = problem(Path(num_frames=8), count=150, noise_px=0.2)
    wrong = replace(
        given_problem,
        ray=given_problem.ray * zoom,
        uv=given_problem.uv * zoom,
        focal_px=FOCAL / zoom,
        focal_sigma=0.3,
    )
    held, found = (
        bundle.solve(replace(wrong, focal_sigma=sigma), 60) for sigma in (0.0, wrong.focal_sigma)
    )
    assert (held.focal_px, held.focal_sigma) == (FOCAL / zoom, 0.0)
    assert abs(np.log(found.focal_px / FOCAL)) < 3 * found.focal_sigma < 0.06
    error, without = (np.abs(each.T_cam_world - T).max() for each in (found, held))
    assert error < 0.2 * without


def test_depths_follow_the_focal_length_as_stated():
    """Against adjustments that hold a little more and a little less."""
    given_problem, _, _ = problem(Path(num_frames=8))
    given_problem = replace(given_problem, sigma_px=10.0)

    def solved(log_zoom: float, sigma: float) -> Solution:
        z = np.exp(log_zoom)
        seen = {"ray": given_problem.ray / z, "uv": given_problem.uv / z, "focal_px": FOCAL * z}
        return bundle.solve(replace(given_problem, **seen, focal_sigma=sigma), 100)

    stated = solved(0.0, 0.3).rho_by_focal
    less, more = (solved(log_zoom, 0.0) for log_zoom in (-1e-3, 1e-3))
    measured = (more.rho - less.rho) / 2e-3
    assert np.abs(measured).max() > 0.1
    assert np.allclose(stated, measured, atol=0.02 * np.abs(measured).max())
    assert not less.rho_by_focal.any()


def test_noiseless_data_give_the_exact_answer():
    given_problem, T, rho = problem(start_error=0.02)
    solution = bundle.solve(given_problem, 50)
    assert np.allclose(solution.T_cam_world, T, atol=1e-4)
    assert np.allclose(solution.rho, rho, rtol=1e-3)
    assert solution.cost < 1e-3


def test_small_noise_gives_the_least_squares_answer():
    given_problem, _, _ = problem(noise_px=0.05, start_error=0.005, count=18)
    given_problem = replace(given_problem, sigma_px=20.0)  # far beyond every residual
    solution = bundle.solve(given_problem, 60)
    T, rho = given_problem.T_cam_world, given_problem.rho
    held = np.zeros(12)

    def state(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return moved(given_problem, T, rho, np.concatenate([held, x]))

    size = 6 * (len(T) - 2) + len(rho)
    oracle = least_squares(
        lambda x: residuals(given_problem, *state(x)).reshape(-1),
        np.zeros(size),
        x_scale="jac",
        xtol=1e-12,
    )
    T_oracle, rho_oracle = state(oracle.x)
    assert np.allclose(solution.T_cam_world, T_oracle, atol=2e-5)
    assert np.allclose(solution.rho, rho_oracle, atol=2e-4)
    ours = (residuals(given_problem, solution.T_cam_world, solution.rho) ** 2).sum()
    assert ours <= 2 * oracle.cost * (1 + 1e-3)


def test_the_cost_never_grows_and_fixed_frames_stay():
    given_problem, T, _ = problem(noise_px=1.0, start_error=0.05)
    before = cost(given_problem, given_problem.T_cam_world, given_problem.rho)
    for iterations in range(1, 8):
        solution = bundle.solve(given_problem, iterations)
        now = cost(given_problem, solution.T_cam_world, solution.rho)
        assert now <= before * (1 + 1e-9)
        assert now == pytest.approx(solution.cost, rel=1e-6)
        assert np.allclose(solution.T_cam_world[:2], T[:2], atol=1e-12)
        before = now


def test_a_fifth_of_wrong_sights_does_not_matter():
    given_problem, T, rho = problem(count=150, noise_px=0.1, start_error=0.005)
    random = np.random.default_rng(1)
    uv = given_problem.uv.copy()
    wrong = random.random(uv.shape[:2]) < 0.2
    uv[wrong] += random.uniform(-40, 40, (wrong.sum(), 2)) / FOCAL
    solution = bundle.solve(replace(given_problem, uv=uv), 40)
    assert np.abs(solution.T_cam_world - T).max() < 2e-3
    assert np.median(np.abs(solution.rho / rho - 1)) < 0.01


def test_stated_errors_of_depth_are_honest():
    """With the poses known, errors over their stated sigma have unit spread."""
    given_problem, T, rho = problem(count=600, noise_px=0.3)
    given_problem = replace(given_problem, free=np.zeros(len(T), bool))
    solution = bundle.solve(given_problem, 20)
    spread = np.sqrt(np.mean(((solution.rho - rho) / solution.rho_sigma) ** 2))
    assert 0.5 < spread < 1.3  # the Cauchy weights state a little less information


def test_points_without_sights_keep_their_prior():
    given_problem, _, _ = problem(count=20)
    uv = given_problem.uv.copy()
    uv[5] = np.nan
    prior_weight = np.full(20, 1e-6)
    prior_weight[5] = 4.0
    given_problem = replace(
        given_problem, uv=uv, rho_prior=np.full(20, 0.8), rho_prior_weight=prior_weight
    )
    solution = bundle.solve(given_problem, 30)
    assert solution.rho[5] == pytest.approx(0.8, abs=1e-4)
    assert solution.rho_sigma[5] == pytest.approx(0.5, abs=1e-6)
    assert np.isnan(solution.residual_px[5]).all()


@given(st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_scaling_changes_lengths_but_no_image(factor):
    given_problem, _, _ = problem(Path(num_frames=4), noise_px=0.2)
    solution = bundle.solve(given_problem, 3)
    scaled = solution.scaled(factor)
    before = residuals(given_problem, solution.T_cam_world, solution.rho)
    after = residuals(given_problem, scaled.T_cam_world, scaled.rho)
    assert np.allclose(before, after, atol=1e-6)
    assert np.allclose(scaled.T_cam_world[0], solution.T_cam_world[0], atol=1e-12)
    steps = [
        np.linalg.norm((s.T_cam_world[3] @ rigid.inverse(s.T_cam_world[0]))[:3, 3])
        for s in (solution, scaled)
    ]
    assert steps[1] == pytest.approx(factor * steps[0], rel=1e-9)
    assert np.allclose(scaled.rho_sigma / scaled.rho, solution.rho_sigma / solution.rho)

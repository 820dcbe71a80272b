"""Similarities against a plain numpy Umeyama, known transforms and outliers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3, sim3

seeds = st.integers(0, 10_000)


def similarity(seed: int, scale: float) -> torch.Tensor:
    twist = torch.from_numpy(np.random.default_rng(seed).normal(size=6))
    return sim3.make(scale, se3.exp(twist))


def cloud(seed: int, count: int = 60) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)) * [3, 2, 1])


def umeyama_oracle(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Horn's quaternion solution: another route to the same optimum."""
    w = weights / weights.sum()
    a, b = source - w @ source, target - w @ target
    M = (a * w[:, None]).T @ b
    delta = [M[1, 2] - M[2, 1], M[2, 0] - M[0, 2], M[0, 1] - M[1, 0]]
    N = np.zeros((4, 4))
    N[0, 0], N[0, 1:], N[1:, 0] = np.trace(M), delta, delta
    N[1:, 1:] = M + M.T - np.trace(M) * np.eye(3)
    q = np.linalg.eigh(N)[1][:, -1]
    R = se3.quat_xyzw_to_matrix(torch.from_numpy(np.roll(q, -1))).numpy()
    scale = (w * (b * (a @ R.T)).sum(1)).sum() / (w * (a * a).sum(1)).sum()
    S = np.eye(4)
    S[:3, :3], S[:3, 3] = scale * R, w @ target - scale * R @ (w @ source)
    return S


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(0.01, 100.0))
def test_fit_recovers_a_known_similarity(seed: int, scale: float) -> None:
    S, source = similarity(seed, scale), cloud(seed)
    found = sim3.fit(source, se3.transform(S, source))
    torch.testing.assert_close(found, S, rtol=1e-9, atol=1e-9 * scale)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_weighted_fit_equals_horns_solution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = cloud(seed)
    noise = torch.from_numpy(rng.normal(size=source.shape) * 0.3)
    target = se3.transform(similarity(seed, 2.0), source) + noise
    weights = rng.uniform(size=len(source))
    oracle = umeyama_oracle(source.numpy(), target.numpy(), weights)
    found = sim3.fit(source, target, torch.from_numpy(weights))
    np.testing.assert_allclose(found.numpy(), oracle, atol=1e-9)


def test_fit_never_gives_a_reflection() -> None:
    source = cloud(5, 4)
    mirrored = source * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    scale, T = sim3.split(sim3.fit(source, mirrored))
    assert float(torch.linalg.det(T[:3, :3])) == pytest.approx(1.0) and float(scale) > 0


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(0.0, 0.4))
def test_robust_fit_survives_forty_percent_outliers(seed: int, share: float) -> None:
    S, source = similarity(seed, 1.5), cloud(seed, 150)
    rng = np.random.default_rng(seed + 1)
    target = se3.transform(S, source) + torch.from_numpy(rng.normal(size=source.shape)) * 0.005
    wrong = torch.arange(150) < int(share * 150)
    target[wrong] += torch.from_numpy(rng.normal(size=(int(wrong.sum()), 3)) * 4)
    fit = sim3.fit_robust(source, target)
    torch.testing.assert_close(fit.S, S, atol=0.01, rtol=0)
    assert not (fit.inlier & wrong).sum() > 2
    assert (fit.inlier | wrong).sum() > 0.9 * 150


def test_robust_fit_is_exact_and_deterministic_on_exact_pairs() -> None:
    S, source = similarity(3, 0.7), cloud(3, 400)
    target = se3.transform(S, source)
    target[::3] += 5.0
    first, second = sim3.fit_robust(source, target), sim3.fit_robust(source, target)
    torch.testing.assert_close(first.S, S, rtol=1e-12, atol=1e-12)
    assert torch.equal(first.S, second.S)


@settings(deadline=None, max_examples=25)
@given(seeds, seeds)
def test_inverse_split_and_poses(first: int, second: int) -> None:
    S = similarity(first, 3.0)
    torch.testing.assert_close(sim3.inverse(S) @ S, torch.eye(4, dtype=torch.float64))
    scale, T = sim3.split(S)
    torch.testing.assert_close(sim3.make(scale, T), S)
    T_pred_cam, p_cam = (
        se3.exp(torch.from_numpy(np.random.default_rng(second).normal(size=6))),
        cloud(2),
    )
    moved = se3.transform(sim3.transform_pose(S, T_pred_cam), p_cam * 3.0)
    torch.testing.assert_close(moved, se3.transform(S, se3.transform(T_pred_cam, p_cam)))


def test_convention_scale_times_rotation_is_upper_left() -> None:
    T = se3.exp(torch.tensor([1.0, 2.0, 3.0, 0.1, 0.2, 0.3], dtype=torch.float64))
    S = sim3.make(2.0, T)
    torch.testing.assert_close(S[:3, :3], 2.0 * T[:3, :3])
    torch.testing.assert_close(S[:3, 3], T[:3, 3])


LINE = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("fit", [sim3.fit, sim3.fit_robust])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LINE, "line"),
        (torch.ones(20, 3, dtype=torch.float64), "line|point"),
        (cloud(1, 2), "line|three"),
        (torch.full((20, 3), torch.nan, dtype=torch.float64), "not finite"),
    ],
)
def test_degenerate_or_unknown_points_are_an_error(fit, source, message) -> None:
    with pytest.raises(GeometryError, match=message):
        fit(source, source.clone())


def test_bad_weights_and_scales_are_errors() -> None:
    source = cloud(1)
    with pytest.raises(GeometryError, match="negative"):
        sim3.fit(source, source, -torch.ones(len(source)).double())
    with pytest.raises(GeometryError, match="no pairs"):
        sim3.fit(source, source[:5])
    with pytest.raises(GeometryError, match="above zero"):
        sim3.make(0.0, torch.eye(4))
    with pytest.raises(GeometryError, match="above zero"):
        sim3.split(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])))


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.1, 10.0))
def test_coordinates_come_back(seed: int, scale: float) -> None:
    S = similarity(seed, scale)
    torch.testing.assert_close(sim3.from_coordinates(sim3.coordinates(S)), S)


def test_interpolation_meets_its_knots_and_runs_evenly_between() -> None:
    S = torch.stack([similarity(0, 1.0), similarity(0, 1.0) @ similarity(1, 1.2)])
    knots = torch.tensor([10, 20])
    at = torch.tensor([0, 10, 15, 20, 99])
    found = sim3.interpolate(knots, S, at)
    torch.testing.assert_close(found[[0, 1, 3, 4]], S[[0, 0, 1, 1]])
    half = sim3.inverse(S[0]) @ found[2]
    whole = sim3.coordinates(sim3.inverse(S[0]) @ S[1])
    torch.testing.assert_close(sim3.coordinates(half), 0.5 * whole)
    torch.testing.assert_close(sim3.interpolate(knots[:1], S[:1], at), S[:1].expand(5, 4, 4))
    with pytest.raises(GeometryError, match="knots"):
        sim3.interpolate(knots, S[:1], at)


def test_rounding_does_not_grow_with_the_number_of_corrections():
    """Each correction is made of the pose that it moves, as those of a map are."""
    generator = torch.Generator().manual_seed(3)
    T = se3.exp(torch.randn(6, dtype=torch.float64, generator=generator))
    T[:3, :3] *= 1.0 + 1e-9
    for _ in range(100):
        values = 0.3 * torch.randn(7, dtype=torch.float64, generator=generator)
        S = sim3.from_coordinates(values) @ se3.inverse(T)
        T = sim3.transform_pose(S, T)
        error = T[:3, :3] @ T[:3, :3].mT - torch.eye(3, dtype=torch.float64)
        assert float(error.abs().max()) < 1e-13

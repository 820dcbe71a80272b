"""The pose graph against finite differences, scipy's least squares and known rings."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from torch import Tensor

from recon4d_ros.alignment.pose_graph import PoseGraph, jacobians, residuals, solve
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3, sim3

seeds = st.integers(0, 10_000)
torch.set_num_threads(1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def nodes(seed: int, count: int) -> Tensor:
    """A walk whose frames turn, move and grow."""
    values = draw(seed, count, 7) * torch.tensor([1.0] * 3 + [0.5] * 3 + [0.2]).double()
    return sim3.from_coordinates(values.cumsum(0) - values[0])


def graph_of(
    S: Tensor, extra: list[tuple[int, int]], noise: float = 0.0, seed: int = 0
) -> PoseGraph:
    """Chain edges and some more, measured with noise; the extra ones are loops."""
    count = len(S)
    first = torch.tensor([*range(count - 1), *(a for a, _ in extra)])
    second = torch.tensor([*range(1, count), *(b for _, b in extra)])
    error = sim3.from_coordinates(noise * draw(seed, len(first), 7))
    root = draw(seed + 1, len(first), 7, 7) + 3.0 * torch.eye(7)
    return PoseGraph(
        first=first,
        second=second,
        S_first_second=sim3.inverse(S[first]) @ S[second] @ error,
        information=root @ root.mT,
        is_loop=torch.arange(len(first)) >= count - 1,
    )


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_a_consistent_graph_stays_as_it_is(seed: int) -> None:
    S = nodes(seed, 9)
    solution = solve(graph_of(S, [(0, 8), (2, 6)]), S)
    torch.testing.assert_close(solution.S_map_node, S, atol=1e-9, rtol=1e-9)
    assert solution.cost < 1e-15 and bool((solution.weight == 1.0).all())


@settings(deadline=None, max_examples=4)
@given(seeds)
def test_jacobians_equal_finite_differences(seed: int) -> None:
    S = nodes(seed, 4)
    graph = graph_of(S, [(0, 3)], noise=0.3, seed=seed)
    h = 1e-6
    for end, J in zip((graph.first, graph.second), jacobians(graph, S), strict=True):
        for k in range(7):
            for edge, node in enumerate(end.tolist()):
                step = torch.zeros(2, 7, dtype=torch.float64)
                step[0, k], step[1, k] = h, -h
                ends = []
                for D in sim3.from_coordinates(step):
                    moved = S.clone()
                    moved[node] = moved[node] @ D
                    ends.append(residuals(graph, moved)[edge])
                found = (ends[0] - ends[1]) / (2 * h)
                torch.testing.assert_close(J[edge, :, k], found, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_that_of_scipy(seed: int) -> None:
    S = nodes(seed, 5)
    noisy = graph_of(S, [(0, 4), (1, 3)], noise=0.05, seed=seed)
    graph = replace(noisy, is_loop=torch.zeros_like(noisy.is_loop))
    roots = torch.linalg.cholesky(graph.information).mT

    def whitened(values: np.ndarray) -> np.ndarray:
        free = S[1:] @ sim3.from_coordinates(torch.from_numpy(values.reshape(-1, 7)))
        r = residuals(graph, torch.cat([S[:1], free]))
        return torch.einsum("eij,ej->ei", roots, r).numpy().ravel()

    ours = solve(graph, S)
    oracle = least_squares(whitened, np.zeros(7 * 4), xtol=1e-14, ftol=1e-14, gtol=1e-12)
    assert ours.cost == pytest.approx(oracle.cost, rel=1e-6)
    theirs = S[1:] @ sim3.from_coordinates(torch.from_numpy(oracle.x.reshape(-1, 7)))
    torch.testing.assert_close(ours.S_map_node[1:], theirs, atol=1e-4, rtol=1e-4)


def huber_cost(graph: PoseGraph, S: Tensor) -> float:
    r = residuals(graph, S)
    length = torch.einsum("ei,eij,ej->e", r, graph.information, r).sqrt()
    far = graph.is_loop & (length > graph.width)
    linear = graph.width * (length - 0.5 * graph.width)
    return float(torch.where(far, linear, 0.5 * length**2).sum())


def test_no_small_step_improves_the_robust_optimum() -> None:
    S = nodes(1, 6)
    graph = replace(graph_of(S, [(0, 5), (1, 4)], noise=0.3, seed=2), width=0.5)
    solution = solve(graph, S)
    assert float(solution.weight.min()) < 1.0
    assert huber_cost(graph, solution.S_map_node) == pytest.approx(solution.cost, rel=1e-9)
    for k in range(7 * 5):
        for h in (-1e-3, 1e-3):
            step = torch.zeros(6, 7, dtype=torch.float64)
            step[1 + k // 7, k % 7] = h
            moved = solution.S_map_node @ sim3.from_coordinates(step)
            assert huber_cost(graph, moved) >= solution.cost


def ring(count: int) -> Tensor:
    """Cameras on a circle, looking outwards; the last one is the first again."""
    angle = torch.linspace(0, 2 * torch.pi, count, dtype=torch.float64)
    zero = torch.zeros_like(angle)
    R = se3.exp_so3(torch.stack([zero, angle, zero], -1))
    return se3.make(R, 3.0 * (R[..., 2] - torch.tensor([0.0, 0.0, 1.0]).double()))


def drifted(S: Tensor, step: Tensor) -> Tensor:
    """The same walk with an error in every step."""
    walk = [S[0]]
    for a, b in itertools.pairwise(S):
        walk.append(walk[-1] @ sim3.inverse(a) @ b @ sim3.from_coordinates(step))
    return torch.stack(walk)


def closed_ring(error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    truth = ring(41)
    start = drifted(truth, error)
    edges = graph_of(start, [(0, 40)])
    measured = edges.S_first_second.clone()
    measured[-1] = torch.eye(4, dtype=torch.float64)
    tight = torch.eye(7, dtype=torch.float64).expand(41, 7, 7).clone()
    tight[-1] *= 1e6
    edges = PoseGraph(edges.first, edges.second, measured, tight, edges.is_loop, width=1e9)
    return truth, start, solve(edges, start).S_map_node


def centre_error(S: Tensor, truth: Tensor) -> float:
    return float((S[:, :3, 3] - truth[:, :3, 3]).square().sum(-1).mean().sqrt())


def test_one_loop_edge_straightens_a_drifted_ring() -> None:
    error = torch.tensor([0.01, 0.002, -0.004, 0.002, 0.006, 0.001, 0.01]).double()
    truth, start, solved = closed_ring(error)
    torch.testing.assert_close(solved[-1], truth[-1], atol=1e-4, rtol=0)
    assert centre_error(start, truth) > 5 * centre_error(solved, truth)
    scale, _ = sim3.split(solved)
    assert float((scale - 1).abs().max()) < 0.1 < float(sim3.split(start)[0].max() - 1)


@settings(deadline=None, max_examples=8)
@given(seeds)
def test_the_gauge_does_not_matter(seed: int) -> None:
    S = nodes(seed, 7)
    graph = graph_of(S, [(0, 6)], noise=0.05, seed=seed)
    G = sim3.from_coordinates(draw(seed + 5, 7))
    here, there = solve(graph, S), solve(graph, G @ S)
    assert there.cost == pytest.approx(here.cost, rel=1e-6)
    torch.testing.assert_close(there.S_map_node, G @ here.S_map_node, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(here.S_map_node[0], S[0])


def test_a_wrong_loop_among_right_ones_bends_little() -> None:
    S = nodes(3, 12)
    graph = graph_of(S, [(0, 11), (1, 10), (2, 9), (3, 8)])
    wrong = graph.S_first_second.clone()
    wrong[-1] = wrong[-1] @ sim3.from_coordinates(torch.full((7,), 2.0, dtype=torch.float64))
    information = torch.eye(7, dtype=torch.float64).expand(15, 7, 7) * 1e3
    bad = PoseGraph(graph.first, graph.second, wrong, information, graph.is_loop)
    solution = solve(bad, S)
    assert float(solution.weight[-1]) < 0.2
    plain = solve(replace(bad, is_loop=torch.zeros(15, dtype=torch.bool)), S)
    bent = (plain.S_map_node - S)[:, :3, 3].norm(dim=-1).max()
    assert float((solution.S_map_node - S)[:, :3, 3].norm(dim=-1).max()) < 0.3 * float(bent)


def test_nodes_without_an_edge_are_named() -> None:
    S = nodes(0, 4)
    graph = graph_of(S[:3], [])
    with pytest.raises(AlignmentError, match=r"\[3\]"):
        solve(graph, S)

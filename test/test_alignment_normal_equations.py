"""Rows against autodiff, and eliminated depths against the whole system solved at once."""

import pytest
import torch
from analytic_scene import depth, intrinsics, pose

from recon4d_ros.alignment import edge_rows, normal_equations
from recon4d_ros.alignment.normal_equations import FIXED, Block
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, se3

VIEW = intrinsics(9, 12)
UV = camera.pixel_grid(VIEW.size, torch.float64).reshape(-1, 2)[::7]
CENTRE = (VIEW.cx, VIEW.cy)
FOCAL = torch.tensor(VIEW.fx, dtype=torch.float64)
T_1, T_2 = pose(4), pose(13)
P = len(UV)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_depth_of(T: torch.Tensor) -> torch.Tensor:
    pixels = UV.long()
    return depth(T, VIEW)[pixels[:, 1], pixels[:, 0]].log()


def carried() -> torch.Tensor:
    """Points of frame 2 in camera 1, exact, in a unit of 0.7."""
    rays = edge_rows.directions(UV, FOCAL, CENTRE)
    return edge_rows.carry(se3.relative(T_1, T_2), rays, log_depth_of(T_2)).point / 0.7


POINTS = carried() * (1 + 0.05 * normal(3, P))
WHITEN = edge_rows.whitening(POINTS, 0.02, 0.005)


def relative(x: torch.Tensor) -> torch.Tensor:
    return se3.inverse(T_1 @ se3.exp(x[:6])) @ T_2 @ se3.exp(x[6:12])


def carried_by(x: torch.Tensor) -> edge_rows.Carried:
    rays = edge_rows.directions(UV, VIEW.fx * x[13].exp(), CENTRE)
    return edge_rows.carry(relative(x), rays, log_depth_of(T_2) + x[14:])


def other(x: torch.Tensor) -> edge_rows.Rows:
    """Rows at unknowns (14 + P): twists, log scale, log focal, log depths; in that order."""
    return edge_rows.other_rows(carried_by(x), x[12] - 0.3, POINTS, WHITEN)


def own(x: torch.Tensor) -> edge_rows.Rows:
    rays = edge_rows.directions(UV, VIEW.fx * x[13].exp(), CENTRE)
    return edge_rows.own_rows(rays, log_depth_of(T_1) + x[14:], x[12], POINTS, WHITEN)


def flow(x: torch.Tensor, in_px: bool) -> edge_rows.Rows:
    focal = VIEW.fx * x[13].exp()
    matched = POINTS[:2] / POINTS[2:]
    matched = matched * VIEW.fx / focal if in_px else matched
    return edge_rows.flow_rows(carried_by(x), matched, focal, in_px)


CASES = {
    "other": (other, list(range(14))),
    "own": (own, [12, 13]),
    "matched directions": (lambda x: flow(x, False), list(range(14))),
    "matched pixels": (lambda x: flow(x, True), list(range(14))),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_autodiff(case):
    rows_at, columns = CASES[case]
    zero = torch.zeros(14 + P, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda x: rows_at(x).residual, zero)
    rows = rows_at(zero)
    found = rows.jacobian
    if case != "own":
        found = torch.einsum("kl,krp->lrp", edge_rows.lift(relative(zero)), found)
    by_hand = exact[..., columns].movedim(-1, 0)
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-9)
    by_depth = torch.diagonal(exact[..., 14:], dim1=1, dim2=-1)
    torch.testing.assert_close(rows.log_depth, by_depth, rtol=1e-9, atol=1e-9)


def test_residuals_alone_equal_those_of_the_rows():
    zero = torch.zeros(14 + P, dtype=torch.float64)
    scale = zero[12] - 0.3
    alone = edge_rows.other_residual(carried_by(zero), scale, POINTS, WHITEN)
    torch.testing.assert_close(alone, other(zero).residual)
    rays = edge_rows.directions(UV, FOCAL, CENTRE)
    alone = edge_rows.own_residual(rays, log_depth_of(T_1), zero[12], POINTS, WHITEN)
    torch.testing.assert_close(alone, own(zero).residual)


def test_whitening_measures_in_standard_deviations():
    distance = POINTS.norm(dim=0)
    along = 0.02 * POINTS
    side = torch.linalg.cross(along, normal(3, P), dim=0)
    side = distance * 0.005 * side / side.norm(dim=0)
    for deviation in (along, side):
        length = WHITEN.apply(deviation).norm(dim=0)
        torch.testing.assert_close(length, torch.ones(P).double())


def test_a_point_behind_the_camera_has_nan_rows():
    x = torch.zeros(14 + P).double()
    x[2] = 50.0
    rows = flow(x, True)
    assert bool(rows.residual.isnan().all())


# ---------------------------------------------------------------- normal equations
def stacked(rows: list[edge_rows.Rows]) -> edge_rows.Rows:
    parts = [(r.residual, r.jacobian, r.log_depth) for r in rows]
    return edge_rows.Rows(*(torch.stack(each) for each in zip(*parts, strict=True)))


def blocks() -> list[Block]:
    """Two pairs see the pixels of frame 1; frame 0 is its own witness; pose 1 (0) is fixed."""
    zero = torch.zeros(14 + P, dtype=torch.float64)
    shared = torch.arange(14)
    first = torch.where(shared < 6, FIXED, shared - 6)  # D: twist 0..5, scale 6, focal 7, ...
    second = torch.cat([torch.arange(8, 14), torch.arange(6), torch.tensor([14, 7])])
    two = stacked([other(zero), other(zero + 1e-3)])
    weight = normal(2, P, seed=3).abs()
    weight[0, 0] = 0.0
    two.residual[0, :, 0], two.jacobian[0, ..., 0], two.log_depth[0, :, 0] = (torch.nan,) * 3
    lift = torch.stack([edge_rows.lift(relative(zero)), edge_rows.lift(relative(zero + 1e-3))])
    own_columns = torch.tensor([[6, 7]])
    return [
        Block(two, weight, torch.stack([first, second]), torch.tensor([1, 1]), lift),
        Block(stacked([own(zero)]), torch.ones(1, P).double(), own_columns, torch.tensor([0])),
    ]


NUM_UNKNOWNS = 15


def whole_system(parts: list[Block]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row with every unknown, the depths of two frames behind the shared ones."""
    J_all, r_all = [], []
    for block in parts:
        for e in range(len(block.frame)):
            for p in range(P):
                w = block.weight[e, p]
                if w == 0:
                    continue
                slopes = block.rows.jacobian[e, :, :, p].T
                slopes = slopes if block.lift is None else slopes @ block.lift[e]
                J = torch.zeros(len(slopes), NUM_UNKNOWNS + 2 * P).double()
                for k, column in enumerate(block.columns[e].tolist()):
                    if column != FIXED:
                        J[:, column] += slopes[:, k]
                J[:, NUM_UNKNOWNS + int(block.frame[e]) * P + p] = block.rows.log_depth[e, :, p]
                J_all.append(w.sqrt() * J)
                r_all.append(w.sqrt() * block.rows.residual[e, :, p])
    return torch.cat(J_all), torch.cat(r_all)


def test_eliminated_depths_give_the_step_of_the_whole_system():
    parts = blocks()
    J, r = whole_system(parts)
    damped = J.T @ J + 1e-3 * torch.diag((J * J).sum(0)) + 1e-12 * torch.eye(J.shape[1]).double()
    exact = -torch.linalg.solve(damped, J.T @ r)
    equations = normal_equations.eliminate_depth(parts, NUM_UNKNOWNS, 2, damping=1e-3)
    step = -torch.linalg.solve(equations.H, equations.g)
    torch.testing.assert_close(step, exact[:NUM_UNKNOWNS], rtol=1e-6, atol=1e-9)
    depths = normal_equations.depth_steps(equations, step)
    torch.testing.assert_close(depths.flatten(), exact[NUM_UNKNOWNS:], rtol=1e-6, atol=1e-9)


def test_assembled_with_fixed_depths():
    parts = blocks()
    J, r = whole_system(parts)
    H, g = normal_equations.assemble(parts, NUM_UNKNOWNS)
    torch.testing.assert_close(H, (J.T @ J)[:NUM_UNKNOWNS, :NUM_UNKNOWNS])
    torch.testing.assert_close(g, (J.T @ r)[:NUM_UNKNOWNS])


def test_a_column_out_of_range_is_an_error():
    with pytest.raises(GeometryError, match="columns"):
        normal_equations.assemble(blocks(), NUM_UNKNOWNS - 1)

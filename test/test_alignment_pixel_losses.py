"""The losses over all pixels with gradients by hand, against the objectives and autograd."""

import pytest
import torch

from recon4d_ros.alignment import objectives
from recon4d_ros.alignment.pixel_losses import Measured, PixelLosses
from recon4d_ros.geometry import se3, sim3

FRAMES, PIXELS, MAX_PX = 3, 40, 20.0
EDGES = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 0]])


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem():
    """Unknowns that ask for a gradient, and what was measured."""
    T = se3.exp(0.05 * drawn(FRAMES, 6))
    S = sim3.from_coordinates(0.05 * drawn(len(EDGES), 7))
    log_depth, focal = 0.1 * drawn(FRAMES, PIXELS) + 1.0, torch.tensor(50.0).double()
    points = drawn(2 * len(EDGES), 3, PIXELS) + torch.tensor([0.0, 0.0, 3.0]).double()[:, None]
    weight = drawn(2 * len(EDGES), PIXELS, seed=1).abs()
    weight[:, ::7] = 0.0
    static = (drawn(len(EDGES), PIXELS, seed=2) > -1.0).double()
    uv, matched = 10 * drawn(2, PIXELS, seed=3), 0.2 * drawn(len(EDGES), 2, PIXELS, seed=4)
    log_depth[0, 3] = -30.0  # all but behind other cameras
    unknowns = [each.requires_grad_() for each in (log_depth, T, S, focal)]
    return unknowns, Measured(EDGES, uv, points, weight, matched, static)


def slow_twin(log_depth, T, S, focal, measured, weight):
    """The same by the public objectives, an edge's view at a time."""
    i, j = measured.edges.T
    depth = log_depth.exp().unsqueeze(1)
    cam = torch.cat([measured.uv / focal * depth, depth], dim=1).mT
    world = cam @ T[:, :3, :3].mT + T[:, None, :3, 3]
    E = len(measured.edges)
    first, second = (
        objectives.global_alignment(world[frames], measured.points[rows].mT, S, weights)
        for frames, rows, weights in (
            (i, slice(E), measured.weight[:E]),
            (j, slice(E, None), measured.weight[E:]),
        )
    )
    seen = (world[j] - T[i, None, :3, 3]) @ T[i, :3, :3]
    in_front = seen[..., 2:] > 0
    ego = focal * seen[..., :2] / torch.where(in_front, seen[..., 2:], 1.0)
    ego = torch.where(in_front, ego, torch.nan)
    flow = focal.detach() * measured.matched.mT
    return first + second + weight * 2.0 * objectives.camera_movement(ego, flow, measured.static)


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0])
def test_values_and_gradients_equal_those_of_the_objectives(weight):
    unknowns, measured = problem()
    fast = PixelLosses.apply(*unknowns, measured, weight, 1e9)
    slow = slow_twin(*unknowns, measured, weight)
    assert torch.allclose(fast, slow, rtol=1e-9)
    by_hand, by_autograd = (torch.autograd.grad(loss, unknowns) for loss in (fast, slow))
    for one, other in zip(by_hand, by_autograd, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-10 * float(other.abs().max()))


def test_movement_beyond_its_bound_does_not_count():
    unknowns, measured = problem()
    alone = PixelLosses.apply(*unknowns, measured, 0.0, MAX_PX)
    bounded = PixelLosses.apply(*unknowns, measured, 1.0, 1e-3)
    assert torch.equal(alone, bounded)

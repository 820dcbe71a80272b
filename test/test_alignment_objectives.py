"""C4D's objectives: values by hand, gradients against finite differences in float64."""

import numpy as np
import pytest
import torch
from analytic_scene import depth, intrinsics, pose
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.alignment import objectives
from recon4d_ros.geometry import camera, epipolar, pointmap, se3, sim3

VIEW = intrinsics(12, 16)
UV = camera.pixel_grid(VIEW.size, torch.float64).reshape(-1, 2)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def poses(count: int, step: int = 5) -> torch.Tensor:
    return torch.stack([pose(step * index) for index in range(count)])


def finite_difference(function, x: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of a scalar function, one entry at a time."""
    slopes = torch.zeros_like(x).reshape(-1)
    for k in range(x.numel()):
        probe = torch.zeros(x.numel(), dtype=x.dtype)
        probe[k] = step
        probe = probe.reshape(x.shape)
        slopes[k] = (function(x + probe) - function(x - probe)) / (2 * step)
    return slopes.reshape(x.shape)


def check_gradient(function, x: torch.Tensor) -> None:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(found, finite_difference(function, x), rtol=1e-5, atol=1e-7)


def test_global_alignment_is_the_weighted_mean_distance():
    points, pair, weight = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, seed=2).abs()
    S = sim3.make(torch.tensor([0.5, 2.0]).double(), poses(2))
    by_hand = 0.0
    for e in range(2):
        for p in range(5):
            moved = S[e, :3, :3] @ pair[e, p] + S[e, :3, 3]
            by_hand += float(weight[e, p]) * np.linalg.norm(points[e, p] - moved) / 10
    assert float(objectives.global_alignment(points, pair, S, weight)) == pytest.approx(by_hand)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.1, 10.0))
def test_global_alignment_scales_with_the_world_and_is_blind_to_its_gauge(scale):
    points, pair, weight = normal(2, 5, 3), normal(2, 5, 3, seed=1), torch.ones(2, 5).double()
    S = sim3.make(torch.tensor([0.5, 2.0]).double(), poses(2))
    gauge = sim3.make(scale, pose(40))
    before = objectives.global_alignment(points, pair, S, weight)
    after = objectives.global_alignment(se3.transform(gauge, points), pair, gauge @ S, weight)
    torch.testing.assert_close(after, scale * before)


def test_gradient_of_global_alignment():
    points, pair, weight = normal(2, 4, 3), normal(2, 4, 3, seed=1), normal(2, 4, seed=2).abs()
    S = sim3.make(torch.tensor([0.5, 2.0]).double(), poses(2))
    check_gradient(lambda x: objectives.global_alignment(x, pair, S, weight), points)

    def of_log_scale(log_scale):
        similarity = sim3.make(log_scale.exp(), poses(2))
        return objectives.global_alignment(points, pair, similarity, weight)

    check_gradient(of_log_scale, torch.tensor([0.1, -0.4]).double())


def test_pixels_without_weight_bring_no_nan():
    points, pair, weight = normal(1, 4, 3), normal(1, 4, 3, seed=1), torch.ones(1, 4).double()
    weight[0, 0], pair[0, 0], points[0, 0] = 0.0, torch.nan, torch.inf
    leaf = points.clone().requires_grad_()
    loss = objectives.global_alignment(leaf, pair, torch.eye(4).double()[None], weight)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert bool(loss.isfinite()) and bool(slope.isfinite().all())
    exact = objectives.global_alignment(pair, pair, torch.eye(4).double()[None], weight)
    assert float(exact) == 0.0


# ---------------------------------------------------------------- CMA
def scene_depth(index: int = 0) -> torch.Tensor:
    return depth(pose(index), VIEW).reshape(-1)


def test_ego_flow_is_the_difference_of_projections():
    """Against points carried by hand, and against the dense flow of one pair."""
    T_b_a = se3.relative(pose(7), pose(0))
    flow = objectives.ego_flow(UV, scene_depth(), T_b_a, VIEW.K)
    points = (UV - UV.new_tensor([VIEW.cx, VIEW.cy])) / VIEW.fx * scene_depth()[:, None]
    carried = torch.cat([points, scene_depth()[:, None]], dim=-1) @ T_b_a[:3, :3].T + T_b_a[:3, 3]
    by_hand = VIEW.fx * carried[:, :2] / carried[:, 2:] + UV.new_tensor([VIEW.cx, VIEW.cy]) - UV
    torch.testing.assert_close(flow, by_hand)
    dense = epipolar.ego_flow(scene_depth().reshape(VIEW.size), T_b_a, VIEW, VIEW)
    torch.testing.assert_close(flow, dense.reshape(-1, 2))


def test_ego_flow_is_the_velocity_of_the_image():
    """Against a finite difference of the projection along the camera's motion."""
    twist = torch.tensor([0.3, -0.2, 0.4, 0.1, 0.2, -0.1], dtype=torch.float64)
    step = 1e-5

    def flow(share: float) -> torch.Tensor:
        return objectives.ego_flow(UV, scene_depth(), se3.exp(share * twist), VIEW.K)

    velocity = (flow(step) - flow(-step)) / (2 * step)
    x, y = ((UV - UV.new_tensor([VIEW.cx, VIEW.cy])) / VIEW.fx).unbind(-1)
    z = scene_depth()
    (a, b, c), (p, q, r) = twist[:3].tolist(), twist[3:].tolist()
    # Longuet-Higgins and Prazdny 1980, with points moving by the twist.
    horizontal = (a - x * c) / z - p * x * y + q * (1 + x * x) - r * y
    vertical = (b - y * c) / z - p * (1 + y * y) + q * x * y + r * x
    torch.testing.assert_close(velocity, VIEW.fx * torch.stack([horizontal, vertical], -1))


def test_camera_movement_is_zero_for_the_true_motion_and_smooth_l1_off_it():
    flow = objectives.ego_flow(UV, scene_depth(), se3.relative(pose(7), pose(0)), VIEW.K)
    ones = torch.ones(len(UV)).double()
    assert float(objectives.camera_movement(flow, flow, ones)) == 0.0
    off = flow + flow.new_tensor([3.0, 0.5])
    expected = ((3.0 - 0.5) + 0.5 * 0.5**2) / 2
    assert float(objectives.camera_movement(off, flow, ones)) == pytest.approx(expected)


def test_camera_movement_leaves_out_what_does_not_count():
    flow = torch.zeros(4, 2).double()
    ego = torch.tensor([[0.5, 0.0], [60.0, 0.0], [torch.nan, 0.0], [9.0, 9.0]]).double()
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    leaf = ego.clone().requires_grad_()
    loss = objectives.camera_movement(leaf, flow, weight)
    assert float(loss.detach()) == pytest.approx(0.5 * 0.25 / 2)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert bool((slope[1:] == 0).all()) and float(slope[0, 0]) > 0
    assert float(objectives.camera_movement(ego, flow, torch.zeros(4).double())) == 0.0


def test_gradient_of_camera_movement_in_pose_depth_and_focal():
    T_b_a = se3.relative(pose(7), pose(0))
    truth = objectives.ego_flow(UV, scene_depth(), T_b_a, VIEW.K)
    flow = truth + 2.0 * normal(*truth.shape)
    weight = normal(len(UV), seed=1).abs()

    def loss(twist, log_depth, log_focal):
        focal = log_focal.exp() * torch.diag(torch.tensor([1.0, 1.0, 0.0]).double())
        centre = torch.tensor([[0.0, 0.0, VIEW.cx], [0.0, 0.0, VIEW.cy], [0.0, 0.0, 1.0]]).double()
        ego = objectives.ego_flow(UV, log_depth.exp(), T_b_a @ se3.exp(twist), focal + centre)
        return objectives.camera_movement(ego, flow, weight)

    twist, log_depth = torch.zeros(6).double(), scene_depth().log()
    log_focal = torch.tensor(VIEW.fx, dtype=torch.float64).log()
    check_gradient(lambda x: loss(x, log_depth, log_focal), twist + 1e-3)
    check_gradient(lambda x: loss(twist, x, log_focal), log_depth)
    check_gradient(lambda x: loss(twist, log_depth, x), log_focal)


def test_forward_backward_confirms_true_flow_and_refuses_hidden_and_wrong_pixels():
    size = (40, 60)
    flow = torch.zeros(*size, 2)
    flow[..., 0] = 4.0
    back = -flow
    back[10:20, 24:34] = 0.0
    ok = objectives.forward_backward(flow, back)
    assert not bool(ok[10:20, 21:29].any())  # lands where the way back differs
    assert bool(ok[25:, :55].all())
    assert not bool(ok[:, 56:].any())  # leaves the image
    flow[0, 0] = torch.nan
    assert not bool(objectives.forward_backward(flow, back)[0, 0])
    slightly_off = -flow + 0.9
    assert not bool(objectives.forward_backward(flow, slightly_off).any())
    assert bool(objectives.forward_backward(flow, -flow + 0.6)[25:, :55].all())


# ---------------------------------------------------------------- CTS, PTS
def screw(count: int) -> torch.Tensor:
    """A camera that repeats one motion, turning included."""
    twist = torch.tensor([0.3, -0.2, 0.4, 0.1, 0.2, -0.1], dtype=torch.float64)
    return torch.stack([pose(3) @ se3.exp(k * twist) for k in range(count)])


def test_smoothness_is_zero_for_standing_cameras():
    still = pose(4).repeat(5, 1, 1)
    assert float(objectives.smoothness_first_order(still)) < 1e-12
    assert float(objectives.smoothness_second_order(still)) < 1e-12
    for smoothness in (objectives.smoothness_first_order, objectives.smoothness_second_order):
        assert float(smoothness(still[:1])) == 0.0


def test_second_order_smoothness_is_zero_for_constant_velocity_and_first_order_is_not():
    assert float(objectives.smoothness_second_order(screw(6))) < 1e-10
    step = se3.relative(*screw(2)).numpy()
    one = np.linalg.norm(step[:3, :3] - np.eye(3)) + 0.5 * np.linalg.norm(step[:3, 3])
    found = objectives.smoothness_first_order(screw(6), translation_weight=0.5)
    assert float(found) == pytest.approx(5 * one)


@pytest.mark.parametrize(
    "smoothness", [objectives.smoothness_first_order, objectives.smoothness_second_order]
)
def test_gradient_of_smoothness(smoothness):
    def of_twists(twists):
        return smoothness(poses(5) @ se3.exp(twists))

    check_gradient(of_twists, 0.05 * normal(5, 6))


def test_smoothness_is_blind_to_the_gauge():
    for smoothness in (objectives.smoothness_first_order, objectives.smoothness_second_order):
        torch.testing.assert_close(smoothness(pose(50) @ poses(5)), smoothness(poses(5)))


def test_point_smoothness_is_the_mean_l1_distance_of_known_points():
    points, targets = normal(3, 4, 3), normal(3, 4, 3, seed=1)
    targets[0, 0] = torch.nan
    known = (points - targets).abs().sum(-1)
    expected = known[known.isfinite()].mean()
    torch.testing.assert_close(objectives.point_smoothness(points, targets), expected)
    check_gradient(lambda x: objectives.point_smoothness(x, targets), points)
    assert float(objectives.point_smoothness(points, torch.full_like(points, torch.nan))) == 0.0


def test_exact_predictions_make_all_objectives_vanish():
    """A room seen by two cameras: points, flow and poses are of one world."""
    both, weight = torch.stack([pose(0), pose(7)]), torch.ones(2, len(UV)).double()
    maps = torch.stack([depth(T, VIEW) for T in both])
    cam = pointmap.from_depth(maps, VIEW).reshape(2, -1, 3)
    world = cam @ both[:, :3, :3].mT + both[:, None, :3, 3]
    S = sim3.make(torch.tensor([2.0, 0.25]).double(), both)
    pair = cam / torch.tensor([2.0, 0.25]).double()[:, None, None]
    assert float(objectives.global_alignment(world, pair, S, weight)) < 1e-12

"""Rigid motions against scipy's Rotation and matrix exponential."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 9.9e-4, 1.1e-3, 0.5, 2.0, np.pi - 1e-4, np.pi - 1e-9, np.pi]
number = st.floats(-1.0, 1.0, allow_subnormal=False)
twists = st.tuples(*[number] * 6).map(lambda v: torch.tensor(v, dtype=torch.float64) * 1.7)


def axis(seed: int) -> torch.Tensor:
    vector = np.random.default_rng(seed).normal(size=3)
    return torch.from_numpy(vector / np.linalg.norm(vector))


def generator_matrix(twist: torch.Tensor) -> np.ndarray:
    rho, (x, y, z) = twist[:3].numpy(), twist[3:].tolist()
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    matrix[:3, 3] = rho
    return matrix


@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("seed", range(3))
def test_rotation_exponential_and_logarithm_equal_scipy(theta: float, seed: int) -> None:
    phi = axis(seed) * theta
    R = se3.exp_so3(phi)
    np.testing.assert_allclose(
        R.numpy(), Rotation.from_rotvec(phi.numpy()).as_matrix(), atol=1e-14
    )
    # At exactly pi both signs of the axis are the same rotation.
    again = se3.exp_so3(se3.log_so3(R))
    np.testing.assert_allclose(again.numpy(), R.numpy(), atol=1e-14)
    assert float(se3.angle(R)) == pytest.approx(theta, abs=1e-8 if theta > 3 else 1e-14)


@settings(deadline=None, max_examples=50)
@given(twists)
def test_exponential_equals_the_matrix_exponential(twist: torch.Tensor) -> None:
    T = se3.exp(twist)
    np.testing.assert_allclose(T.numpy(), expm(generator_matrix(twist)), atol=1e-12)
    np.testing.assert_allclose(se3.log(T).numpy(), twist.numpy(), atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(twists, twists)
def test_inverse_and_relative_pose_cancel(first: torch.Tensor, second: torch.Tensor) -> None:
    T_world_a, T_world_b = se3.exp(first), se3.exp(second)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(se3.compose(T_world_a, se3.inverse(T_world_a)), eye)
    torch.testing.assert_close(T_world_a @ se3.relative(T_world_a, T_world_b), T_world_b)


def test_convention_neighbouring_frames_cancel() -> None:
    T_world_cam, T_cam_obj = se3.exp(torch.randn(2, 6, dtype=torch.float64))
    p_obj = torch.randn(5, 3, dtype=torch.float64)
    step_by_step = se3.transform(T_world_cam, se3.transform(T_cam_obj, p_obj))
    torch.testing.assert_close(se3.transform(T_world_cam @ T_cam_obj, p_obj), step_by_step)


@settings(deadline=None, max_examples=50)
@given(st.tuples(*[number] * 4).filter(lambda q: sum(x * x for x in q) > 1e-2))
def test_convention_quaternions_are_hamilton_in_the_order_xyzw(q: tuple[float, ...]) -> None:
    R = se3.quat_xyzw_to_matrix(torch.tensor(q, dtype=torch.float64))
    oracle = Rotation.from_quat(q)
    np.testing.assert_allclose(R.numpy(), oracle.as_matrix(), atol=1e-12)
    canonical = oracle.as_quat(canonical=True)
    back = se3.matrix_to_quat_xyzw(R).numpy()
    assert min(np.abs(back - canonical).max(), np.abs(back + canonical).max()) < 1e-12
    assert back[3] >= 0


@pytest.mark.parametrize("theta", [0.0, 1e-6, 0.3, 2.0, 3.0, np.pi])
def test_left_and_right_jacobian_equal_finite_differences(theta: float) -> None:
    phi, step = axis(4) * theta, 1e-6
    left, right = [], []
    for unit in torch.eye(3, dtype=torch.float64):
        change = se3.exp_so3(phi + step * unit) @ se3.exp_so3(phi - step * unit).mT
        left.append(se3.log_so3(change) / (2 * step))
        change = se3.exp_so3(phi - step * unit).mT @ se3.exp_so3(phi + step * unit)
        right.append(se3.log_so3(change) / (2 * step))
    torch.testing.assert_close(se3.left_jacobian(phi), torch.stack(left, -1), atol=1e-8, rtol=0)
    torch.testing.assert_close(se3.right_jacobian(phi), torch.stack(right, -1), atol=1e-8, rtol=0)
    product = se3.left_jacobian_inverse(phi) @ se3.left_jacobian(phi)
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_interpolation_moves_along_the_screw() -> None:
    twist = torch.tensor([0.3, -0.2, 1.0, 0.4, 0.9, -0.5], dtype=torch.float64)
    T_a = se3.exp(-0.3 * twist.flip(0))
    T_b = T_a @ se3.exp(twist)
    fractions = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    poses = se3.interpolate(T_a.expand(3, 4, 4), T_b.expand(3, 4, 4), fractions)
    torch.testing.assert_close(poses[0], T_a)
    torch.testing.assert_close(poses[1], T_a @ se3.exp(0.25 * twist))
    torch.testing.assert_close(poses[2], T_b)


def test_gradients_are_finite_at_the_identity() -> None:
    phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(se3.exp_so3, (phi,))
    rotation = torch.eye(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(se3.log_so3(rotation).sum(), rotation)
    assert torch.isfinite(gradient).all()


def test_orthonormalise_gives_the_nearest_rotation() -> None:
    R = se3.exp_so3(torch.tensor([0.2, -1.0, 0.4], dtype=torch.float64))
    noisy = R + 1e-3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()
    oracle, _ = Rotation.align_vectors(noisy.numpy(), np.eye(3)), None
    nearest = se3.orthonormalise(noisy)
    torch.testing.assert_close(nearest @ nearest.mT, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(nearest.mT, torch.from_numpy(oracle[0].as_matrix()))


def test_float32_and_batches_agree_with_float64() -> None:
    twist = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))
    T = se3.exp(twist)
    assert T.dtype == torch.float32 and T.shape == (2, 5, 4, 4)
    torch.testing.assert_close(T.double(), se3.exp(twist.double()), atol=1e-5, rtol=0)
    torch.testing.assert_close(se3.log(T), se3.log(T.double()).float(), atol=1e-4, rtol=0)


def test_finite_values_are_so_whatever_their_sum() -> None:
    huge = torch.full((3,), 3e38)
    assert torch.equal(se3.assemble(torch.eye(3), huge)[:3, 3], huge)
    with pytest.raises(GeometryError, match="1 of 3 values that are not finite"):
        se3.assemble(torch.eye(3), torch.tensor([3e38, 3e38, torch.inf]))


@pytest.mark.parametrize("function", [se3.inverse, lambda T: se3.log_so3(T[..., :3, :3])])
def test_one_bad_matrix_is_an_error_alone_and_among_others(function) -> None:
    good = se3.exp(torch.tensor([0.1, -0.3, 0.2, 0.5, 2.0, -1.0]))
    function(good), function(good.expand(3, 4, 4))
    mirrored = good * torch.tensor([1.0, 1.0, -1.0, 1.0])
    sheared = good + 2e-3 * torch.eye(4)[:, [1, 0, 2, 3]] * torch.tensor([1.0, 0.0, 0.0, 0.0])
    for bad in (mirrored, sheared, 1.001 * good, good * torch.tensor([1.0, 1.0, 1.001, 1.0])):
        bad[3] = good[3]
        for T in (bad, torch.stack([good, bad, good])):
            with pytest.raises(GeometryError, match="no rotation"):
                function(T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: se3.exp(torch.full((6,), torch.nan)), "not finite"),
        (lambda: se3.exp(torch.zeros(5)), "expected"),
        (lambda: se3.inverse(torch.zeros(4, 4)), "last row"),
        (lambda: se3.inverse(torch.zeros(2, 4, 4)), "last row"),
        (lambda: se3.inverse(torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))), "no rotation"),
        (lambda: se3.log_so3(-torch.eye(3)), "no rotation"),
        (lambda: se3.log_so3(torch.eye(3) + 0.01), "no rotation"),
        (lambda: se3.quat_xyzw_to_matrix(torch.zeros(4)), "zero length"),
        (lambda: se3.orthonormalise(torch.zeros(3, 3)), "rank"),
        (lambda: se3.compose(), "at least one"),
        (lambda: se3.transform(torch.full((4, 4), torch.nan), torch.zeros(2, 3)), "not finite"),
        (lambda: se3.exp(torch.zeros(6, dtype=torch.int64)), "float"),
    ],
)
def test_bad_input_is_an_error(call, message) -> None:
    with pytest.raises(GeometryError, match=message):
        call()

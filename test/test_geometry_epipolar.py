"""Two-view relations against OpenCV and analytic scenes."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, epipolar, pointmap, se3

A = Intrinsics(fx=210.0, fy=205.0, cx=79.3, cy=61.8, width=160, height=120)
B = Intrinsics(fx=190.0, fy=195.0, cx=81.0, cy=58.0, width=160, height=120)
small = st.floats(-0.2, 0.2)
poses = st.tuples(*[small] * 6).map(
    lambda v: se3.exp(torch.tensor(v, dtype=torch.float64) + torch.tensor([0.3, 0, 0, 0, 0, 0]))
)


def scene(T_b_a: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    p_a = torch.from_numpy(rng.uniform([-1, -1, 3], [1, 1, 8], size=(200, 3)))
    return camera.project(p_a, A), camera.project(se3.transform(T_b_a, p_a), B)


@settings(deadline=None, max_examples=30)
@given(poses)
def test_static_points_have_no_sampson_error_and_views_may_swap(T_b_a: torch.Tensor) -> None:
    uv_a, uv_b = scene(T_b_a)
    F = epipolar.fundamental(T_b_a, A, B)
    assert epipolar.sampson(F, uv_a, uv_b).max() < 1e-9
    moved = uv_b + torch.tensor([3.0, -4.0], dtype=torch.float64)
    forward, backward = epipolar.sampson(F, uv_a, moved), epipolar.sampson(F.mT, moved, uv_a)
    torch.testing.assert_close(forward, backward)
    F_swapped = epipolar.fundamental(se3.inverse(T_b_a), B, A)
    torch.testing.assert_close(epipolar.sampson(F_swapped, moved, uv_a), forward)


def test_fundamental_matrix_and_sampson_error_equal_opencv() -> None:
    T_b_a = se3.exp(torch.tensor([0.4, -0.1, 0.2, 0.05, -0.1, 0.02], dtype=torch.float64))
    uv_a, uv_b = scene(T_b_a)
    oracle, _ = cv2.findFundamentalMat(uv_a.numpy(), uv_b.numpy(), cv2.FM_8POINT)
    F = epipolar.fundamental(T_b_a, A, B)
    torch.testing.assert_close(F / F[2, 2], torch.from_numpy(oracle), atol=1e-7, rtol=1e-5)
    noisy = uv_b + torch.randn(uv_b.shape, generator=torch.Generator().manual_seed(0))
    for a, b, error in zip(uv_a, noisy, epipolar.sampson(F, uv_a, noisy), strict=True):
        x_a, x_b = np.append(a.numpy(), 1.0), np.append(b.numpy(), 1.0)
        assert float(error) == pytest.approx(cv2.sampsonDistance(x_a, x_b, F.numpy()), rel=1e-9)


def test_sampson_error_approximates_the_geometric_distance() -> None:
    """A shift of d px across the epipolar line splits evenly over two views: d^2 / 2."""
    T_b_a = se3.exp(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64))
    uv_a, _ = scene(T_b_a)
    F = epipolar.fundamental(T_b_a, A, A)
    across = uv_a + torch.tensor([-5.0, 2.0], dtype=torch.float64)
    expected = torch.full((200,), 2.0, dtype=torch.float64)
    torch.testing.assert_close(epipolar.sampson(F, uv_a, across), expected)


def test_batched_sampson_equals_single_pairs() -> None:
    T = se3.exp(torch.tensor([[0.4, 0, 0.2, 0, 0.1, 0], [0, 0.3, 0, 0.1, 0, 0]]).double())
    F = epipolar.fundamental(T, A, B)
    uv_a, uv_b = torch.rand(2, 2, 50, 2, dtype=torch.float64) * 100
    batched = epipolar.sampson(F, uv_a, uv_b)
    for pair in range(2):
        torch.testing.assert_close(
            batched[pair], epipolar.sampson(F[pair], uv_a[pair], uv_b[pair])
        )


def test_epipoles_are_the_other_cameras_centre() -> None:
    T_b_a = se3.exp(torch.tensor([0.1, -0.1, 0.6, 0.02, -0.1, 0.02], dtype=torch.float64))
    in_a, in_b = epipolar.epipoles(epipolar.fundamental(T_b_a, A, B))
    centre_b = se3.inverse(T_b_a)[:3, 3]
    expected_a = camera.project(centre_b * torch.sign(centre_b[2]), A)
    expected_b = camera.project(T_b_a[:3, 3] * torch.sign(T_b_a[2, 3]), B)
    torch.testing.assert_close(in_a[:2] / in_a[2], expected_a)
    torch.testing.assert_close(in_b[:2] / in_b[2], expected_b)


@settings(deadline=None, max_examples=20)
@given(poses)
def test_ego_flow_equals_the_projection_of_each_pixel(T_b_a: torch.Tensor) -> None:
    depth = torch.linspace(2, 5, 120 * 160, dtype=torch.float64).reshape(120, 160)
    depth[3, 4] = torch.nan
    flow = epipolar.ego_flow(depth, T_b_a, A, B)
    assert flow[3, 4].isnan().all()
    rvec, tvec = se3.log_so3(T_b_a[:3, :3]).numpy(), T_b_a[:3, 3].numpy()
    grid = camera.pixel_grid((120, 160), torch.float64)
    p_a = pointmap.from_depth(depth, A)[::17, ::13].reshape(-1, 3)
    oracle, _ = cv2.projectPoints(p_a.numpy(), rvec, tvec, B.K.numpy(), None)
    expected = torch.from_numpy(oracle[:, 0]) - grid[::17, ::13].reshape(-1, 2)
    torch.testing.assert_close(flow[::17, ::13].reshape(-1, 2), expected)


def test_pure_rotation_moves_pixels_by_a_homography() -> None:
    T_b_a = se3.exp(torch.tensor([0, 0, 0, 0.05, -0.1, 0.08], dtype=torch.float64))
    uv_a, uv_b = scene(T_b_a)
    H = epipolar.rotation_homography(T_b_a[:3, :3], A, B)
    torch.testing.assert_close(epipolar.transfer(H, uv_a), uv_b)
    oracle = cv2.perspectiveTransform(uv_a.numpy()[:, None], H.numpy())[:, 0]
    np.testing.assert_allclose(epipolar.transfer(H, uv_a).numpy(), oracle)
    with pytest.raises(GeometryError, match="no translation"):
        epipolar.essential(T_b_a)


def test_a_plane_moves_by_its_homography() -> None:
    T_b_a = se3.exp(torch.tensor([0.3, 0.1, -0.2, 0.05, -0.1, 0.08], dtype=torch.float64))
    normal = torch.tensor([0.2, -0.1, 1.0], dtype=torch.float64)
    normal = normal / normal.norm()
    uv_a, _ = scene(T_b_a)
    rays = camera.directions(uv_a, A)
    p_a = rays * (4.0 / (rays @ normal))[:, None]
    uv_b = camera.project(se3.transform(T_b_a, p_a), B)
    H = epipolar.plane_homography(T_b_a, normal, 4.0, A, B)
    torch.testing.assert_close(epipolar.transfer(H, uv_a), uv_b)


def test_unknown_pixels_stay_unknown_and_unknown_matrices_are_errors() -> None:
    uv = torch.full((1, 2), torch.nan)
    assert epipolar.sampson(torch.eye(3), uv, uv).isnan().all()
    with pytest.raises(GeometryError, match="not finite"):
        epipolar.sampson(torch.full((3, 3), torch.nan), torch.ones(1, 2), torch.ones(1, 2))

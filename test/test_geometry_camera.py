"""Cameras, pointmaps and image grids against OpenCV, and the pixel conventions."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, image_grid, pointmap, se3

CAMERA = Intrinsics(fx=210.0, fy=205.0, cx=79.3, cy=61.8, width=160, height=120)
sizes = st.tuples(st.integers(2, 90), st.integers(2, 90))


def points(seed: int, count: int = 200) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform([-1, -1, 1], [1, 1, 6], size=(count, 3)))


def smooth_image(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, size=(7, 9, 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)


@pytest.mark.parametrize("seed", range(3))
def test_projection_equals_opencv(seed: int) -> None:
    p_world, twist = points(seed), torch.tensor([0.1, 0.2, 0.3, 0.1, -0.2, 0.15]).double()
    T_cam_world = se3.exp(twist)
    rvec, tvec = se3.log_so3(T_cam_world[:3, :3]).numpy(), T_cam_world[:3, 3].numpy()
    oracle, _ = cv2.projectPoints(p_world.numpy(), rvec, tvec, CAMERA.K.numpy(), None)
    uv = camera.project(se3.transform(T_cam_world, p_world), CAMERA)
    np.testing.assert_allclose(uv.numpy(), oracle[:, 0], atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_unprojection_inverts_projection(seed: int) -> None:
    p = points(seed)
    torch.testing.assert_close(camera.unproject(camera.project(p, CAMERA), p[:, 2], CAMERA), p)
    batch_K = CAMERA.K.expand(4, 1, 3, 3)
    uv = camera.project(p.reshape(4, 50, 3), batch_K)
    torch.testing.assert_close(uv.reshape(-1, 2), camera.project(p, CAMERA))


def test_points_behind_the_camera_have_no_pixel() -> None:
    p = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    uv = camera.project(p, CAMERA)
    assert uv[:2].isnan().all() and torch.isfinite(uv[2]).all()
    (gradient,) = torch.autograd.grad(uv[2].sum(), p)
    assert torch.isfinite(gradient).all()


def test_convention_depth_is_z_and_not_the_length_of_the_ray() -> None:
    depth = torch.full((120, 160), 2.0)
    cloud = pointmap.from_depth(depth, CAMERA)
    torch.testing.assert_close(cloud[..., 2], depth)
    assert float(cloud[0, 0].norm()) > 2.1
    torch.testing.assert_close(pointmap.to_depth(cloud), depth)


def test_convention_camera_looks_along_z_with_x_right_and_y_down() -> None:
    right, down = torch.tensor([1.0, 0.0, 4.0]), torch.tensor([0.0, 1.0, 4.0])
    assert camera.project(right, CAMERA)[0] > CAMERA.cx
    assert camera.project(down, CAMERA)[1] > CAMERA.cy
    axis = camera.project(torch.tensor([0.0, 0.0, 1.0]), CAMERA)
    torch.testing.assert_close(axis, torch.tensor([CAMERA.cx, CAMERA.cy]))


def test_convention_first_pixel_centre_is_zero() -> None:
    grid = camera.pixel_grid((2, 3))
    assert grid.shape == (2, 3, 2) and grid[0, 0].tolist() == [0, 0]
    assert grid[1, 2].tolist() == [2, 1]
    edges = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-0.1, 0.0], [2.0, 1.1], [torch.nan, 0.0]])
    assert camera.inside(edges, (2, 3)).tolist() == [True, True, False, False, False]


@settings(deadline=None, max_examples=40)
@given(sizes, sizes)
def test_convention_resizing_moves_pixels_and_intrinsics_together(source, target) -> None:
    before = Intrinsics(50.0, 60.0, 0.4 * source[1], 0.6 * source[0], source[1], source[0])
    after = image_grid.resize_intrinsics(before, target)
    p = points(1, 20)
    moved = image_grid.resize_uv(camera.project(p, before), source, target)
    torch.testing.assert_close(camera.project(p, after), moved)
    factor = target[1] / source[1]
    assert after.fx == pytest.approx(50.0 * factor)
    assert after.cx == pytest.approx((before.cx + 0.5) * factor - 0.5)


@pytest.mark.parametrize("size", [(120, 160), (97, 131), (240, 320)])
def test_enlarging_equals_opencv_linear(size: tuple[int, int]) -> None:
    image = smooth_image(60, 80)
    oracle = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = image_grid.resize_image(torch.from_numpy(image), size)
    np.testing.assert_allclose(found.numpy(), oracle, atol=2e-3 * 255)


@pytest.mark.parametrize("size", [(60, 80), (50, 70)])
def test_shrinking_equals_the_smoothed_filter_of_pillow(size: tuple[int, int]) -> None:
    image = smooth_image(120, 160)
    planes = [Image.fromarray(image[..., c]).resize(size[::-1], Image.BILINEAR) for c in range(3)]
    found = image_grid.resize_image(torch.from_numpy(image), size).numpy()
    np.testing.assert_allclose(found, np.stack(planes, -1), atol=1e-2)
    whole = image_grid.resize_image(torch.from_numpy(image.astype(np.uint8)), size)
    assert whole.dtype == torch.uint8 and np.abs(whole.numpy() - found).max() < 2.0


@settings(deadline=None, max_examples=30)
@given(sizes, sizes)
def test_resizing_a_ramp_samples_it_at_the_mapped_pixels(source, target) -> None:
    grid = camera.pixel_grid(source, torch.float64)
    found = image_grid.resize_image(grid, target)
    expected = image_grid.resize_uv(camera.pixel_grid(target, torch.float64), target, source)
    # Away from the border, where no filter is cut off, a linear ramp is reproduced: exactly when
    # enlarged, up to the sampling of the smoothing filter when shrunk.
    tolerance = 1e-6 if min(t / s for s, t in zip(source, target, strict=True)) >= 1 else 0.1
    rows, columns = (2 + max(1, t // s) for s, t in zip(source, target, strict=True))
    centre = (slice(rows, -rows), slice(columns, -columns))
    torch.testing.assert_close(found[centre], expected[centre], atol=tolerance, rtol=0)


def test_depth_is_resized_to_nearest_values_only() -> None:
    depth = torch.arange(48.0).reshape(6, 8)
    depth[2, 3] = torch.nan
    for size in [(3, 4), (12, 16), (5, 7)]:
        uv = image_grid.resize_uv(camera.pixel_grid(size), size, (6, 8)).reshape(-1, 2)
        uv = uv.clamp(min=0)
        found = image_grid.resize_depth(depth, size).reshape(-1)
        exact = (uv - uv.floor() == 0.5).any(-1)  # a tie may fall to either side
        expected = pointmap.sample_nearest(depth[..., None], uv)[:, 0]
        inside = ~exact & expected.isfinite()
        torch.testing.assert_close(found[inside], expected[inside])
        assert set(found[found.isfinite()].tolist()) <= set(depth.flatten().tolist())


def test_masks_are_averaged_before_the_threshold() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    assert image_grid.resize_mask(mask, (4, 4)).sum() == 8
    lone = torch.zeros(8, 8, dtype=torch.bool)
    lone[3, 3] = True
    assert not image_grid.resize_mask(lone, (4, 4)).any()


def test_flow_keeps_pointing_at_the_same_place() -> None:
    source, target = (40, 60), (20, 30)
    grid = camera.pixel_grid(source)
    flow = torch.stack([0.1 * grid[..., 0] - 2, 0.05 * grid[..., 1] + 1], -1)
    small = image_grid.resize_flow(flow, target)
    ends = image_grid.resize_uv((grid + flow), source, target)
    expected = image_grid.resize_image(ends, target) - camera.pixel_grid(target)
    torch.testing.assert_close(small[3:-3, 3:-3], expected[3:-3, 3:-3], atol=1e-4, rtol=0)


def test_cropping_moves_maps_intrinsics_and_pixels_together() -> None:
    box = image_grid.Box(top=5, left=7, height=20, width=30)
    grid = camera.pixel_grid(CAMERA.size)
    assert image_grid.crop_image(grid, box)[0, 0].tolist() == [7, 5]
    assert image_grid.crop_map(grid[..., 0], box).shape == (20, 30)
    p, cropped = points(3), image_grid.crop_intrinsics(CAMERA, box)
    moved = image_grid.crop_uv(camera.project(p, CAMERA), box)
    torch.testing.assert_close(camera.project(p, cropped), moved)
    with pytest.raises(GeometryError, match="does not lie"):
        image_grid.crop_intrinsics(CAMERA, image_grid.Box(110, 0, 20, 20))


def test_fit_long_side() -> None:
    assert image_grid.fit_long_side((480, 640), 320) == (240, 320)
    assert image_grid.fit_long_side((100, 50), 320) == (100, 50)
    assert image_grid.fit_long_side(CAMERA, 80).size == (60, 80)
    assert image_grid.fit_long_side((1, 1000), 100) == (1, 100)
    with pytest.raises(GeometryError, match="max_side"):
        image_grid.fit_long_side((10, 10), 0)


def test_bilinear_sampling_equals_opencv_remap() -> None:
    image = smooth_image(60, 80)
    rng = np.random.default_rng(1)
    uv = rng.uniform([0, 0], [79, 59], size=(300, 2)).astype(np.float32)
    oracle = cv2.remap(image, uv[None, :, 0], uv[None, :, 1], cv2.INTER_LINEAR)[0]
    found = pointmap.sample_bilinear(torch.from_numpy(image), torch.from_numpy(uv))
    np.testing.assert_allclose(found.numpy(), oracle, atol=4.0)  # OpenCV rounds to 1/32 px
    outside = torch.tensor([[-0.6, 0.0], [80.0, 3.0], [torch.nan, 1.0]])
    assert pointmap.sample_bilinear(torch.from_numpy(image), outside).isnan().all()
    assert pointmap.sample_nearest(torch.from_numpy(image), outside).isnan().all()


def test_depth_sampling_never_mixes_two_surfaces() -> None:
    depth = torch.full((10, 10), 1.0)
    depth[:, 5:] = 4.0
    uv = torch.tensor([[4.4, 3.5], [4.6, 3.5], [2.5, 2.5]])
    assert pointmap.sample_depth(depth, uv).tolist() == [1.0, 4.0, 1.0]
    depth[3, 2] = torch.nan
    assert pointmap.sample_depth(depth, torch.tensor([[1.4, 3.0]])).tolist() == [1.0]


def test_pointmaps_move_with_one_pose_each() -> None:
    maps = torch.randn(3, 4, 5, 3, dtype=torch.float64)
    maps[0, 0, 0] = torch.nan
    poses = se3.exp(torch.randn(3, 6, dtype=torch.float64))
    moved = pointmap.transform(poses, maps)
    for one, pose, source in zip(moved, poses, maps, strict=True):
        torch.testing.assert_close(one, pointmap.transform(pose, source), equal_nan=True)
    assert moved[0, 0, 0].isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: camera.project(torch.zeros(3, 2), CAMERA), "expected"),
        (lambda: camera.project(torch.ones(3), torch.zeros(3, 3)), "focal"),
        (lambda: camera.project(torch.ones(3), torch.full((3, 3), torch.nan)), "not finite"),
        (lambda: camera.unproject(torch.ones(3, 2), torch.ones(4), CAMERA), "one per pixel"),
        (lambda: image_grid.resize_image(torch.ones(3, 4, 3), (0, 4)), "empty"),
        (lambda: image_grid.resize_mask(torch.ones(3, 4), (2, 2)), "bool"),
        (lambda: pointmap.sample_nearest(torch.ones(3, 4), torch.ones(1, 2)), "expected"),
    ],
)
def test_bad_input_is_an_error(call, message) -> None:
    with pytest.raises(GeometryError, match=message):
        call()

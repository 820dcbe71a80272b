"""Camera descriptions and rectification against OpenCV's point functions and round trips."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import camera_info, picture

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import FrameError
from recon4d_ros.geometry.image_grid import resize_intrinsics
from recon4d_ros.storage.messages import camera_model, is_rectified_topic
from recon4d_ros.storage.rectification import (
    CameraModel,
    DistortionModel,
    Rectifier,
    undistort_points,
)

PINHOLE = Intrinsics(150.0, 152.0, 98.5, 76.0, 200, 150)
PLUMB_BOB = CameraModel(PINHOLE, DistortionModel.PLUMB_BOB, (-0.25, 0.08, 0.001, -0.002, 0.01))
RATIONAL = CameraModel(
    PINHOLE,
    DistortionModel.RATIONAL_POLYNOMIAL,
    (0.4, 0.1, 0.0005, -0.0003, 0.02, 0.6, 0.15, 0.03),
)
FISHEYE = CameraModel(PINHOLE, DistortionModel.EQUIDISTANT, (0.05, -0.01, 0.003, -0.001))
LENSES = pytest.mark.parametrize(
    "camera", [PLUMB_BOB, RATIONAL, FISHEYE], ids=lambda c: c.distortion_model.value
)


def distort(camera: CameraModel, uv: np.ndarray) -> np.ndarray:
    """Input pixels of rectified pixels: OpenCV projects the rays through the lens."""
    K, coefficients = camera.intrinsics.K.numpy(), np.array(camera.coefficients)
    rays = (uv - K[:2, 2]) / np.diag(K)[:2]
    if camera.distortion_model is DistortionModel.EQUIDISTANT:
        return cv2.fisheye.distortPoints(rays[None], K, coefficients)[0]
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, coefficients)[0][:, 0]


@LENSES
def test_undistorted_points_project_back(camera: CameraModel) -> None:
    uv = np.stack(np.meshgrid(np.linspace(20, 180, 17), np.linspace(15, 135, 13)), -1)
    uv = uv.reshape(-1, 2)
    np.testing.assert_allclose(distort(camera, undistort_points(camera, uv)), uv, atol=1e-3)


@LENSES
def test_rectified_pixels_show_what_the_lens_put_there(camera: CameraModel) -> None:
    rgb = picture(1, 150, 200)
    rectified = Rectifier(camera, (150, 200)).rectify(rgb)
    assert rectified.shape == rgb.shape
    grid = np.stack(np.meshgrid(np.arange(60, 140, 7), np.arange(45, 105, 7)), -1).reshape(-1, 2)
    source = distort(camera, grid.astype(np.float64)).astype(np.float32)
    expected = cv2.remap(rgb.numpy(), source[:, None], None, cv2.INTER_LINEAR)[:, 0]
    found = rectified.numpy()[grid[:, 1], grid[:, 0]]
    assert np.abs(found.astype(int) - expected).max() <= 3


@LENSES
def test_a_mask_lands_on_the_pixels_it_came_from(camera: CameraModel) -> None:
    rectifier = Rectifier(camera, (150, 200))
    in_input = torch.zeros(150, 200, dtype=torch.bool)
    in_input[50:90, 60:120] = True
    white = in_input.to(torch.uint8).unsqueeze(-1).expand(-1, -1, 3).contiguous() * 255
    in_rectified = rectifier.rectify(white)[..., 0] > 127
    assert not torch.equal(in_rectified, in_input)
    back = rectifier.mask_to_input(in_rectified)
    iou = float((back & in_input).sum() / (back | in_input).sum())
    assert iou > 0.97


@LENSES
def test_depth_comes_back_unmixed(camera: CameraModel) -> None:
    rectifier = Rectifier(camera, (150, 200))
    depth = torch.full((75, 100), 2.0)
    depth[:, 50:] = 8.0
    depth[:10] = math.nan
    back = rectifier.depth_to_input(depth)
    assert back.shape == (150, 200)
    assert set(back[back.isfinite()].unique().tolist()) == {2.0, 8.0}
    edge = undistort_points(camera, np.array([[99.5, 75.0]]))[0, 0]
    row = back[75].numpy()
    assert abs(np.argmax(row == 8.0) - (99.5 + (99.5 - edge))) < 3


def test_outside_of_the_rectified_view_is_unknown() -> None:
    pincushion = CameraModel(PINHOLE, DistortionModel.PLUMB_BOB, (-0.3, 0.09, 0.0, 0.0, 0.0))
    rectifier = Rectifier(pincushion, (150, 200))
    assert undistort_points(pincushion, np.array([[0.0, 0.0]])).max() < -0.5
    assert not rectifier.mask_to_input(torch.ones(15, 20, dtype=torch.bool))[0, 0]
    assert rectifier.depth_to_input(torch.ones(15, 20))[0, 0].isnan()
    assert rectifier.depth_to_input(torch.ones(15, 20))[75, 100] == 1.0


@pytest.mark.parametrize(
    "camera",
    [None, CameraModel(PINHOLE), CameraModel(PINHOLE, DistortionModel.PLUMB_BOB, (0.0,) * 5)],
)
def test_without_distortion_nothing_is_touched(camera: CameraModel | None) -> None:
    rectifier = Rectifier(camera, (150, 200))
    rgb = picture(2, 150, 200)
    assert rectifier.rectify(rgb) is rgb
    mask = torch.rand(150, 200) > 0.5
    assert torch.equal(rectifier.mask_to_input(mask), mask)
    depth = torch.rand(150, 200)
    assert torch.equal(rectifier.depth_to_input(depth), depth)


def test_coarse_masks_and_depth_keep_their_place() -> None:
    rectifier = Rectifier(None, (150, 200))
    mask = torch.zeros(15, 20, dtype=torch.bool)
    mask[5:10, 4:12] = True
    expected = torch.zeros(150, 200, dtype=torch.bool)
    expected[50:100, 40:120] = True
    found = rectifier.mask_to_input(mask)
    # Soft upsampling rounds the corners and nothing else.
    assert int((found ^ expected).sum()) <= 4 * 16
    assert torch.equal(found, found.flip(0))
    coarse = torch.arange(300.0).reshape(15, 20)
    expected_depth = coarse.repeat_interleave(10, 0).repeat_interleave(10, 1)
    assert torch.equal(rectifier.depth_to_input(coarse), expected_depth)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(3, 90),
    width=st.integers(3, 90),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)
def test_depth_is_only_ever_copied(height: int, width: int, rows: int, columns: int) -> None:
    depth = torch.arange(float(rows * columns)).reshape(rows, columns)
    found = Rectifier(None, (height, width)).depth_to_input(depth)
    assert found.shape == (height, width)
    assert set(found.unique().tolist()) <= set(depth.reshape(-1).tolist())


def test_another_size_is_refused() -> None:
    with pytest.raises(FrameError, match="calibration is for 200x150"):
        Rectifier(PLUMB_BOB, (300, 400))
    with pytest.raises(FrameError, match="100x80"):
        Rectifier(PLUMB_BOB, (150, 200)).rectify(torch.zeros(80, 100, 3, dtype=torch.uint8))


def test_a_lens_that_leaves_nothing_is_refused() -> None:
    wild = CameraModel(PINHOLE, DistortionModel.PLUMB_BOB, (900.0, 900.0, 0.0, 0.0, 0.0))
    with pytest.raises(FrameError, match="of the picture"):
        Rectifier(wild, (150, 200))


def test_camera_info_is_read() -> None:
    camera = camera_model(camera_info())
    assert camera is not None
    assert camera.intrinsics == Intrinsics(500.0, 510.0, 320.0, 240.0, 640, 480)
    assert camera.coefficients == (0.1, -0.2, 0.001, -0.002, 0.05)
    assert camera.distortion_model is DistortionModel.PLUMB_BOB


def test_rclpy_camera_info_reads_alike() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="needs the ROS 2 messages")
    message = sensor_msgs.CameraInfo(
        height=480, width=640, distortion_model="equidistant", d=[0.1, 0.0, 0.0, 0.0]
    )
    message.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    camera = camera_model(message)
    assert camera is not None
    assert camera.distortion_model is DistortionModel.EQUIDISTANT


def test_uncalibrated_is_unknown() -> None:
    assert camera_model(camera_info(k=[0.0] * 9, p=[0.0] * 12, d=[])) is None


def test_binning_follows_the_pixel_convention() -> None:
    full = Intrinsics(500.0, 510.0, 320.0, 240.0, 640, 480)
    camera = camera_model(camera_info(binning_x=2, binning_y=2))
    assert camera is not None
    assert camera.intrinsics == resize_intrinsics(full, (240, 320))


def test_region_of_interest_shifts_the_centre() -> None:
    roi = {"x_offset": 100, "y_offset": 50, "width": 320, "height": 240}
    camera = camera_model(camera_info(roi=roi))
    assert camera is not None
    assert camera.intrinsics == Intrinsics(500.0, 510.0, 220.0, 190.0, 320, 240)


def test_rectified_images_use_the_projection() -> None:
    assert is_rectified_topic("/cam/image_rect_color/compressed")
    assert not is_rectified_topic("/cam/image_raw")
    camera = camera_model(camera_info(), is_rectified=True)
    assert camera is not None
    assert not camera.is_distorted
    assert (camera.intrinsics.fx, camera.intrinsics.cx) == (450.0, 310.0)


def k(**changes: float) -> list[float]:
    values = {
        "fx": 500.0,
        "skew": 0.0,
        "cx": 320.0,
        "fy": 510.0,
        "cy": 240.0,
        "last": 1.0,
    } | changes
    return [
        values["fx"],
        values["skew"],
        values["cx"],
        0.0,
        values["fy"],
        values["cy"],
        0.0,
        0.0,
        values["last"],
    ]


ABSURD = {
    "NaN focal": {"k": k(fx=math.nan)},
    "NaN centre": {"k": k(cy=math.nan)},
    "infinite": {"k": k(fy=math.inf)},
    "negative": {"k": k(fx=-500.0)},
    "one focal zero": {"k": k(fy=0.0)},
    "tiny focal": {"k": k(fx=0.5)},
    "huge focal": {"k": k(fx=1e7)},
    "centre far away": {"k": k(cx=5000.0)},
    "skew": {"k": k(skew=30.0)},
    "not homogeneous": {"k": k(last=0.0)},
    "zero size": {"width": 0, "height": 0},
    "NaN distortion": {"d": [0.1, math.nan, 0.0, 0.0, 0.0]},
    "three coefficients": {"d": [0.1, 0.2, 0.3]},
    "unknown model": {"distortion_model": "kannala"},
    "region leaves the sensor": {"roi": {"x_offset": 600, "width": 100, "height": 100}},
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_cameras_are_refused(case: str) -> None:
    with pytest.raises(FrameError):
        camera_model(camera_info(**ABSURD[case]))


def test_an_unknown_model_without_coefficients_is_a_pinhole() -> None:
    camera = camera_model(camera_info(distortion_model="none", d=[]))
    assert camera is not None
    assert not camera.is_distorted

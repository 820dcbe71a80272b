"""Lens distortion is taken out at the door and put back into what goes out.

The core sees rectified images only: the same size and the same camera matrix K as the input, no
distortion. Masks and depth travel back through the inverse map, so that their pixels are those of
the input image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import FrameError

FloatArray = npt.NDArray[np.float32]
Maps = tuple[npt.NDArray[Any], npt.NDArray[Any]]

# A real calibration keeps most of the picture; below this share the coefficients are nonsense.
_MIN_KEPT_SHARE = 0.1
_UNDISTORT_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-9)


class DistortionModel(Enum):
    """Distortion models of sensor_msgs/CameraInfo, under their ROS names."""

    PLUMB_BOB = "plumb_bob"
    RATIONAL_POLYNOMIAL = "rational_polynomial"
    EQUIDISTANT = "equidistant"


# Numbers of coefficients OpenCV accepts for each model.
_NUM_COEFFICIENTS = {
    DistortionModel.PLUMB_BOB: (4, 5),
    DistortionModel.RATIONAL_POLYNOMIAL: (4, 5, 8, 12, 14),
    DistortionModel.EQUIDISTANT: (4,),
}


@dataclass(frozen=True)
class CameraModel:
    """A calibrated camera: pinhole and lens distortion, for exactly one image size.

    Attributes:
        intrinsics: the pinhole, pixels of the input image.
        distortion_model: what the coefficients mean.
        coefficients: k1 k2 p1 p2 [k3 ...] (plumb_bob, rational_polynomial) or k1 k2 k3 k4
            (equidistant), as OpenCV orders them; empty for a lens without distortion.

    Raises:
        FrameError: a number is not finite or outside what a camera can have.
    """

    intrinsics: Intrinsics
    distortion_model: DistortionModel = DistortionModel.PLUMB_BOB
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no camera has."""
        _check_pinhole(self.intrinsics)
        allowed = _NUM_COEFFICIENTS[self.distortion_model]
        if self.coefficients and len(self.coefficients) not in allowed:
            raise FrameError(
                f"{len(self.coefficients)} distortion coefficients with the model "
                f"{self.distortion_model.value}; expected {' or '.join(map(str, allowed))} or "
                "none; correct the calibration"
            )
        if not all(map(math.isfinite, self.coefficients)):
            raise FrameError(
                f"distortion coefficients {list(self.coefficients)} are not finite; "
                "correct the calibration"
            )

    @property
    def is_distorted(self) -> bool:
        """True when rectification changes the image."""
        return any(value != 0.0 for value in self.coefficients) or (
            self.distortion_model is DistortionModel.EQUIDISTANT and bool(self.coefficients)
        )


def _check_pinhole(camera: Intrinsics) -> None:
    """Refuse a pinhole that no lens has: field of view 1 to 175 degrees, centre near the image."""
    text = (
        f"fx={camera.fx:g} fy={camera.fy:g} cx={camera.cx:g} cy={camera.cy:g} "
        f"for {camera.width}x{camera.height}"
    )
    if camera.width <= 0 or camera.height <= 0:
        raise FrameError(f"camera of zero size ({text}); set width and height to the image's")
    if not all(map(math.isfinite, (camera.fx, camera.fy, camera.cx, camera.cy))):
        raise FrameError(f"camera matrix is not finite ({text}); correct the calibration")
    side = max(camera.width, camera.height)
    if not all(0.02 * side <= focal <= 60.0 * side for focal in (camera.fx, camera.fy)):
        raise FrameError(
            f"absurd focal length ({text}); expected {0.02 * side:g} to {60.0 * side:g} px, "
            "or 0 where it is unknown; correct the calibration"
        )
    inside = -camera.width <= camera.cx <= 2 * camera.width
    if not (inside and -camera.height <= camera.cy <= 2 * camera.height):
        raise FrameError(
            f"absurd principal point ({text}); expected it near the image; correct the calibration"
        )


class Rectifier:
    """Moves pixels between the input image and the rectified image of the same size and K.

    Attributes:
        size: (height, width) of input and rectified images.
        intrinsics: of both; None when the camera is unknown.
    """

    def __init__(self, camera: CameraModel | None, size: tuple[int, int]) -> None:
        """Prepare the maps.

        Args:
            camera: calibration, or None when unknown (nothing is moved then).
            size: (height, width) of the images that will come.

        Raises:
            FrameError: the calibration is for another size, or throws the picture away.
        """
        self.size = size
        self.intrinsics = camera.intrinsics if camera is not None else None
        self._camera = camera if camera is not None and camera.is_distorted else None
        if camera is not None and camera.intrinsics.size != size:
            given = camera.intrinsics
            raise FrameError(
                f"the calibration is for {given.width}x{given.height} but the image is "
                f"{size[1]}x{size[0]}; expected equal sizes; calibrate this size or set the "
                "binning of the camera info"
            )
        # Of the newest shape; masks and depth of one stream come on one grid.
        self._grid_of: tuple[tuple[int, ...], Maps] | None = None
        if self._camera is not None:
            self._maps = _rectify_maps(self._camera)
            self._check_kept_share()

    def rectify(self, rgb: Tensor) -> Tensor:
        """Take the distortion out of an image.

        Args:
            rgb: (H, W, 3) uint8.

        Returns:
            (H, W, 3) uint8, black where the input shows nothing; `rgb` itself without distortion.

        Raises:
            FrameError: the image has another size.
        """
        if tuple(rgb.shape[:2]) != self.size:
            raise FrameError(
                f"image of {rgb.shape[1]}x{rgb.shape[0]} in a stream of "
                f"{self.size[1]}x{self.size[0]}; expected one size; start anew for the new one"
            )
        if self._camera is None:
            return rgb
        rectified = _remap(rgb.numpy(), self._maps, cv2.INTER_LINEAR)
        return torch.from_numpy(rectified)

    def mask_to_input(self, mask: Tensor) -> Tensor:
        """A mask of the rectified view in the pixels of the input.

        Args:
            mask: (h, w) bool on any grid that covers the image.

        Returns:
            (H, W) bool; the soft upsampled mask at 0.5; False outside the rectified view.
        """
        soft = mask.numpy().astype(np.float32)
        sampled = self._sample(soft, cv2.INTER_LINEAR, outside=0.0)
        return torch.from_numpy(sampled >= 0.5)

    def depth_to_input(self, depth: Tensor) -> Tensor:
        """A depth image of the rectified view in the pixels of the input.

        Args:
            depth: (h, w) float32 on any grid that covers the image, NaN where invalid.

        Returns:
            (H, W) float32, nearest sample (never a mixture across an edge), NaN outside.
        """
        sampled = self._sample(depth.numpy(), cv2.INTER_NEAREST, outside=math.nan)
        return torch.from_numpy(sampled)

    def _sample(self, values: FloatArray, interpolation: int, outside: float) -> FloatArray:
        """Value of the (h, w) grid at each input pixel, `outside` beyond the rectified view."""
        cached = self._grid_of
        if cached is None or cached[0] != values.shape:
            cached = self._grid_of = values.shape, self._grid(values.shape)
        return np.asarray(_remap(values, cached[1], interpolation, outside), np.float32)

    def _grid(self, shape: tuple[int, ...]) -> Maps:
        """Where each input pixel lies on a (h, w) grid over the image, (-2, -2) beyond it."""
        scale = np.array(shape[::-1], np.float32) / np.array(self.size[::-1], np.float32)
        uv = (self._rectified_uv + np.float32(0.5)) * scale - np.float32(0.5)
        # Half a cell at the border belongs to the grid too: its nearest cell continues there.
        last = np.array(shape[::-1], np.float32) - 1
        is_inside = ((uv >= -0.5) & (uv <= last + 0.5)).all(axis=-1, keepdims=True)
        grid = np.where(is_inside, uv.clip(0, last), np.float32(-2))
        return np.ascontiguousarray(grid[..., 0]), np.ascontiguousarray(grid[..., 1])

    @cached_property
    def _rectified_uv(self) -> FloatArray:
        """(H, W, 2): where each input pixel lies in the rectified image."""
        height, width = self.size
        uv = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        if self._camera is None:
            return uv
        return (
            undistort_points(self._camera, uv.reshape(-1, 2)).astype(np.float32).reshape(uv.shape)
        )

    def _check_kept_share(self) -> None:
        ones = np.ones(self.size, np.uint8)
        kept = float(_remap(ones, self._maps, cv2.INTER_NEAREST).mean())
        if kept < _MIN_KEPT_SHARE:
            raise FrameError(
                f"the distortion coefficients leave {kept:.0%} of the picture; expected at least "
                f"{_MIN_KEPT_SHARE:.0%}; correct the calibration"
            )


def _matrices(camera: CameraModel) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return camera.intrinsics.K.numpy(), np.asarray(camera.coefficients, np.float64)


def _remap(
    image: npt.NDArray[Any], maps: Maps, interpolation: int, outside: float = 0.0
) -> npt.NDArray[Any]:
    border = cv2.BORDER_CONSTANT
    return np.asarray(
        cv2.remap(image, *maps, interpolation, borderMode=border, borderValue=outside)
    )


def _rectify_maps(camera: CameraModel) -> Maps:
    """Fixed-point maps of cv2.remap from the rectified image into the input."""
    K, coefficients = _matrices(camera)
    size = (camera.intrinsics.width, camera.intrinsics.height)
    kind = cv2.CV_16SC2
    if camera.distortion_model is DistortionModel.EQUIDISTANT:
        maps = cv2.fisheye.initUndistortRectifyMap(K, coefficients, np.eye(3), K, size, kind)
    else:
        maps = cv2.initUndistortRectifyMap(K, coefficients, np.eye(3), K, size, kind)
    return np.asarray(maps[0]), np.asarray(maps[1])


def undistort_points(camera: CameraModel, uv: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Rectified positions of input pixels.

    Args:
        camera: the calibration.
        uv: (P, 2) px of the input.

    Returns:
        (P, 2) px of the rectified image; far outside it where a fisheye ray lies behind.
    """
    K, coefficients = _matrices(camera)
    points = uv.astype(np.float64)[:, None]
    if camera.distortion_model is DistortionModel.EQUIDISTANT:
        rectified = cv2.fisheye.undistortPoints(points, K, coefficients, P=K)
    else:
        rectified = cv2.undistortPointsIter(
            points, K, coefficients, np.eye(3), K, _UNDISTORT_CRITERIA
        )
    return np.asarray(rectified, np.float64).reshape(-1, 2)

"""Images and camera descriptions of ROS messages, as tensors and back.

Works on anything with the fields of sensor_msgs (a message of rclpy or of rosbags), so it needs no
ROS. Every defect of a message is a `FrameError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import FrameError
from recon4d_ros.storage.images import decode_picture
from recon4d_ros.storage.rectification import CameraModel, DistortionModel

ByteArray = npt.NDArray[np.uint8]

# Four times 8K; a larger claim is a broken message, not a camera.
_MAX_PIXELS = 1 << 27


class ImageMessage(Protocol):
    """Fields of sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


class CompressedImageMessage(Protocol):
    """Fields of sensor_msgs/CompressedImage."""

    format: str
    data: Any


class RegionMessage(Protocol):
    """Fields of sensor_msgs/RegionOfInterest."""

    x_offset: int
    y_offset: int
    height: int
    width: int


class CameraInfoMessage(Protocol):
    """Fields of sensor_msgs/CameraInfo."""

    height: int
    width: int
    distortion_model: str
    d: Sequence[float]
    k: Sequence[float]
    p: Sequence[float]
    binning_x: int
    binning_y: int
    roi: Any


class StampMessage(Protocol):
    """Fields of builtin_interfaces/Time."""

    sec: int
    nanosec: int


@dataclass(frozen=True)
class _Layout:
    """Bytes of one pixel and how OpenCV makes RGB of them."""

    channels: int
    conversion: int | None
    depth_bytes: int = 1
    needs_even_width: bool = False


_UYVY = _Layout(2, cv2.COLOR_YUV2RGB_UYVY, needs_even_width=True)
_YUYV = _Layout(2, cv2.COLOR_YUV2RGB_YUYV, needs_even_width=True)
_LAYOUTS = {
    "rgb8": _Layout(3, None),
    "bgr8": _Layout(3, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(4, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout(1, cv2.COLOR_GRAY2RGB),
    "mono16": _Layout(1, cv2.COLOR_GRAY2RGB, depth_bytes=2),
    "bayer_rggb8": _Layout(1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": _Layout(1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": _Layout(1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": _Layout(1, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
}


def decode_image(message: ImageMessage) -> Tensor:
    """RGB of a raw image message.

    Args:
        message: any encoding of `_LAYOUTS`; rows may be padded to `step` bytes.

    Returns:
        (H, W, 3) uint8, contiguous and owning its memory; mono16 is scaled by 1/257 as cv_bridge
        does.

    Raises:
        FrameError: unknown encoding, zero size, or data that does not fit height and step.
    """
    layout = _LAYOUTS.get(message.encoding.lower())
    if layout is None:
        raise FrameError(
            f"image encoding '{message.encoding}' is not supported; expected one of "
            f"{', '.join(_LAYOUTS)}; let the driver publish one of these"
        )
    pixels = _pixels(message, layout)
    if layout.depth_bytes == 2:
        pixels = _to_8_bit(pixels, bool(message.is_bigendian))
    return torch.from_numpy(_to_rgb(pixels, layout))


def _pixels(message: ImageMessage, layout: _Layout) -> ByteArray:
    """(H, W, bytes per pixel) view of the data without the padding of the rows."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    text = f"{width}x{height} {message.encoding}"
    if height <= 0 or width <= 0:
        raise FrameError(f"image of zero size ({text}); expected pixels; check the camera driver")
    if height * width > _MAX_PIXELS:
        raise FrameError(
            f"image of absurd size ({text}); expected at most {_MAX_PIXELS} pixels; "
            "check the camera driver"
        )
    if layout.needs_even_width and width % 2:
        raise FrameError(f"odd width ({text}); 4:2:2 images have an even width; check the driver")
    row_bytes = width * layout.channels * layout.depth_bytes
    if step < row_bytes:
        raise FrameError(
            f"step={step} does not fit {text}; expected at least {row_bytes} bytes per row; "
            "check the camera driver"
        )
    flat = _bytes(message.data)
    # Some drivers leave the padding of the last row out.
    if not step * (height - 1) + row_bytes <= flat.size <= step * height:
        raise FrameError(
            f"image data of {flat.size} bytes for {text} with step={step}; expected "
            f"{step * height}; the message is truncated or its size is wrong"
        )
    rows = np.lib.stride_tricks.as_strided(flat, (height, row_bytes), (step, 1), writeable=False)
    return rows.reshape(height, width, -1)


def _bytes(data: Any) -> ByteArray:
    """The data field (array.array, bytes or numpy) as a flat array, without a copy."""
    return np.frombuffer(data, np.uint8)


def _to_8_bit(pixels: ByteArray, is_bigendian: bool) -> ByteArray:
    values = np.ascontiguousarray(pixels).view(">u2" if is_bigendian else "<u2")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_rgb(pixels: ByteArray, layout: _Layout) -> ByteArray:
    if layout.conversion is None:
        return np.array(pixels, np.uint8, order="C")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), layout.conversion), np.uint8)


def decode_compressed_image(message: CompressedImageMessage) -> Tensor:
    """RGB of a JPEG or PNG message.

    The format text follows compressed_image_transport: 'jpeg', 'png', or
    'rgb8; jpeg compressed bgr8', where the last word is the channel order given to the encoder.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FrameError: another compression, truncated or undecodable data.
    """
    original, _, compression = message.format.lower().partition(";")
    layout = _LAYOUTS.get(original.strip())
    is_mosaic = layout is not None and original.startswith("bayer") and "bgr" not in compression
    flags = cv2.IMREAD_GRAYSCALE if is_mosaic else cv2.IMREAD_COLOR
    name = f"compressed image ('{message.format}')"
    image = decode_picture(_bytes(message.data).tobytes(), name, flags)
    if is_mosaic and layout is not None:
        return torch.from_numpy(_to_rgb(image[..., None], layout))
    if "compressed rgb" in compression:
        return torch.from_numpy(image)
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1]))


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The fields of sensor_msgs/Image below the header; rows without padding.

    Attributes:
        height, width: px.
        encoding: ROS name.
        is_bigendian: always 0.
        step: bytes per row.
        data: (height * step,) uint8.
    """

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: ByteArray


def encode_image(image: Tensor) -> EncodedImage:
    """Fields of an image message for a tensor.

    Args:
        image: (H, W, 3) uint8 -> rgb8; (H, W) bool or uint8 -> mono8 (True is 255);
            (H, W) float32 -> 32FC1.

    Raises:
        FrameError: another shape or type.
    """
    encoding = _ENCODINGS.get((image.ndim, image.dtype))
    if encoding is None or (image.ndim == 3 and image.shape[2] != 3):
        raise FrameError(
            f"image of shape {tuple(image.shape)} and type {image.dtype} has no encoding; "
            "expected (H, W, 3) uint8, (H, W) uint8 or bool, or (H, W) float32"
        )
    pixels = image.to(torch.uint8) * 255 if image.dtype == torch.bool else image
    # The item size is stated, so a big-endian machine would be honest too.
    rows = np.ascontiguousarray(pixels.cpu().numpy())
    rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    flat = rows.reshape(-1).view(np.uint8)
    height, width = image.shape[:2]
    return EncodedImage(height, width, encoding, 0, flat.size // height, flat)


_ENCODINGS = {
    (3, torch.uint8): "rgb8",
    (2, torch.uint8): "mono8",
    (2, torch.bool): "mono8",
    (2, torch.float32): "32FC1",
}


def stamp_ns(stamp: StampMessage) -> int:
    """Nanoseconds of a header's stamp."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def is_rectified_topic(topic: str) -> bool:
    """True for the topics image_proc publishes after rectification (image_rect, image_rect_color).

    They share the camera_info of the raw image, whose distortion must not be taken out twice.
    """
    return any(part.startswith("image_rect") for part in topic.split("/"))


def camera_model(message: CameraInfoMessage, *, is_rectified: bool = False) -> CameraModel | None:
    """The camera of a CameraInfo message.

    Binning and region of interest are applied: K describes the full sensor, the image is the
    region after binning.

    Args:
        message: the camera info.
        is_rectified: the image is image_proc's rectified one: its camera matrix is the left part
            of P and it has no distortion.

    Returns:
        The camera, or None when the message says that it is not calibrated (K[0] == 0).

    Raises:
        FrameError: NaN, negative or absurd numbers, or an unknown distortion model.
    """
    K = [float(value) for value in message.k]
    if is_rectified and float(message.p[0]) != 0.0:
        p = [float(value) for value in message.p]
        K = [*p[0:3], *p[4:7], *p[8:11]]
    if K[0] == 0.0:
        return None
    _check_camera_matrix(K)
    intrinsics = _of_region(message, K)
    if is_rectified:
        return CameraModel(intrinsics)
    coefficients = tuple(float(value) for value in message.d)
    return CameraModel(intrinsics, _distortion_model(message, coefficients), coefficients)


def _check_camera_matrix(K: list[float]) -> None:
    if not all(map(math.isfinite, K)):
        raise FrameError(
            f"camera_info K={K} is not finite; expected [fx 0 cx 0 fy cy 0 0 1], or K[0] = 0 for "
            "an uncalibrated camera; correct the calibration"
        )
    skew = max(abs(K[1]), abs(K[3]), abs(K[6]), abs(K[7]))
    if skew > 1e-6 * abs(K[0]) or abs(K[8] - 1.0) > 1e-6:
        raise FrameError(
            f"camera_info K={K} is no pinhole; expected [fx 0 cx 0 fy cy 0 0 1]; "
            "correct the calibration"
        )


def _of_region(message: CameraInfoMessage, K: list[float]) -> Intrinsics:
    """Pinhole of the image: the region of interest, then binned (pixel centres are integers)."""
    roi: RegionMessage = message.roi
    width, height = int(roi.width) or int(message.width), int(roi.height) or int(message.height)
    if roi.x_offset + width > message.width or roi.y_offset + height > message.height:
        raise FrameError(
            f"camera_info region {width}x{height} at ({roi.x_offset}, {roi.y_offset}) leaves the "
            f"{message.width}x{message.height} sensor; correct the region of interest"
        )
    bin_x, bin_y = max(int(message.binning_x), 1), max(int(message.binning_y), 1)
    return Intrinsics(
        K[0] / bin_x,
        K[4] / bin_y,
        (K[2] - roi.x_offset + 0.5) / bin_x - 0.5,
        (K[5] - roi.y_offset + 0.5) / bin_y - 0.5,
        width // bin_x,
        height // bin_y,
    )


def _distortion_model(
    message: CameraInfoMessage, coefficients: tuple[float, ...]
) -> DistortionModel:
    name = message.distortion_model.lower()
    known = {model.value: model for model in DistortionModel}
    if name in known:
        return known[name]
    if not any(coefficients):
        return DistortionModel.PLUMB_BOB
    raise FrameError(
        f"distortion model '{message.distortion_model}' is not supported; expected "
        f"{', '.join(known)}; recalibrate with one of these or publish rectified images"
    )

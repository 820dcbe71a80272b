"""Image files: RGB, 16-bit depth with its scale, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recon4d_ros.errors import FrameError, OutputError, SourceError

# Depth files say "nothing here" with 0; Kinect files also with the largest number.
_NO_DEPTH = (0, 65535)
_MAX_DEPTH = 65534


def decode_picture(content: bytes, name: str, flags: int) -> npt.NDArray[np.uint8]:
    """Decode the bytes of a JPEG or PNG to 8 bits.

    Args:
        content: the bytes.
        name: what to call them in an error.
        flags: cv2.IMREAD_COLOR or cv2.IMREAD_GRAYSCALE.

    Returns:
        (H, W, 3) uint8 BGR, or (H, W) uint8.

    Raises:
        FrameError: neither JPEG nor PNG, truncated or undecodable.
    """
    _check_complete(content, name)
    try:
        # The calibration belongs to the pixels as stored, so an EXIF rotation is not applied.
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:  # a size beyond OpenCV's limits
        image = None
    if image is None:
        raise FrameError(
            f"{name} of {len(content)} bytes cannot be decoded; expected an intact JPEG or PNG; "
            "it is damaged, record it again"
        )
    return np.asarray(image, np.uint8)


def _check_complete(content: bytes, name: str) -> None:
    """Refuse what is not JPEG or PNG and what ends early.

    Decoders differ in what they make of a truncated file (some fill with grey), so the end mark is
    looked for here. In JPEG it cannot occur inside the scan, whose 0xFF bytes are stuffed.
    """
    if content.startswith(b"\xff\xd8\xff"):
        is_complete = content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda") > 0
    elif content.startswith(b"\x89PNG\r\n"):
        is_complete = b"IEND" in content[-4096:]
    else:
        raise FrameError(
            f"{name} of {len(content)} bytes is neither JPEG nor PNG; expected one of these; "
            "choose one of them where it is made"
        )
    if not is_complete:
        raise FrameError(
            f"{name} of {len(content)} bytes ends early; expected a complete file; "
            "it was truncated, record or send it again"
        )


def read_rgb(path: Path) -> Tensor:
    """A JPEG or PNG file.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FrameError: the file is missing, truncated or no image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FrameError(
            f"cannot read the image {path}: {error.strerror}; restore the file"
        ) from error
    image = decode_picture(content, str(path), cv2.IMREAD_COLOR)
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1]))


def write_rgb(path: Path, rgb: Tensor) -> None:
    """Write (H, W, 3) uint8 RGB; the suffix decides the format (.png, .jpg).

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, np.ascontiguousarray(rgb.numpy()[..., ::-1]))


def write_depth(path: Path, depth: Tensor, scale: float) -> None:
    """Write a depth image as 16-bit PNG.

    Args:
        path: file to write.
        depth: (H, W) float32, NaN where invalid.
        scale: stored units per unit of depth; 0 is stored for what is invalid or out of range.

    Raises:
        OutputError: the file cannot be written.
    """
    stored = np.rint(depth.numpy().astype(np.float64) * scale)
    # A comparison with NaN is false, so invalid pixels become 0 with the rest.
    in_range = (stored >= 1) & (stored <= _MAX_DEPTH)
    _write(path, np.where(in_range, stored, 0).astype(np.uint16))


def read_depth(path: Path, scale: float) -> Tensor:
    """Read a 16-bit depth PNG.

    Args:
        path: the file.
        scale: stored units per unit of depth.

    Returns:
        (H, W) float32, NaN where nothing was stored.

    Raises:
        SourceError: the file is missing, damaged or not 16 bit, or the scale makes depths
            infinite or zero.
    """
    largest = float(np.finfo(np.float32).max)
    if not np.iinfo(np.uint16).max / largest < scale <= largest:
        raise SourceError(
            f"{path}: with {scale} stored units per unit of depth, depths are infinite or zero; "
            "expected some thousands, see depth_scale in intrinsics.json"
        )
    stored = _read(path, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise SourceError(
            f"{path} holds {stored.dtype} of shape {stored.shape}; expected a 16-bit grey PNG"
        )
    depth = stored.astype(np.float32) / np.float32(scale)
    depth[np.isin(stored, _NO_DEPTH)] = np.nan
    return torch.from_numpy(depth)


def write_mask(path: Path, mask: Tensor) -> None:
    """Write (H, W) bool as 8-bit PNG, 255 where True.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, mask.numpy().astype(np.uint8) * 255)


def read_mask(path: Path) -> Tensor:
    """Read a mask.

    Returns:
        (H, W) bool, True above 127.

    Raises:
        SourceError: the file is missing or damaged.
    """
    return torch.from_numpy(_read(path, cv2.IMREAD_GRAYSCALE) > 127)


def _read(path: Path, flags: int) -> npt.NDArray[Any]:
    # imread prints its own warning for a missing file; imdecode leaves the words to us.
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; restore the file") from error
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if image is None:
        raise SourceError(f"{path} is damaged or no image; expected a PNG; restore the file")
    return np.asarray(image)


def _write(path: Path, image: npt.NDArray[Any]) -> None:
    done, content = cv2.imencode(path.suffix, image)
    if not done:
        raise OutputError(f"cannot encode {path}; expected a name that ends in .png or .jpg")
    try:
        path.write_bytes(content.tobytes())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; free the disk or choose another place"
        ) from error

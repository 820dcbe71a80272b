"""Image messages against OpenCV's and our own arithmetic, for rosbags and rclpy alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import (
    HEIGHT,
    TYPES,
    WIDTH,
    compressed_message,
    image_message,
    picture,
)

from recon4d_ros.errors import FrameError
from recon4d_ros.storage.messages import (
    decode_compressed_image,
    decode_image,
    encode_image,
    stamp_ns,
)

RGB = picture().numpy()
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
GREY_RGB = np.repeat(GREY[..., None], 3, axis=-1)
ALPHA = np.full((HEIGHT, WIDTH, 1), 77, np.uint8)


def yuv422(order: str) -> np.ndarray:
    """Hand-made 4:2:2 of RGB: one U and one V for two pixels (BT.601, studio range)."""
    yuv = cv2.cvtColor(RGB, cv2.COLOR_RGB2YUV_I420)
    y = yuv[:HEIGHT]
    chroma = yuv[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    u, v = (np.repeat(plane, 2, axis=0) for plane in chroma)
    parts = {"y0": y[:, 0::2], "y1": y[:, 1::2], "u": u, "v": v}
    quads = np.stack([parts[name] for name in order.split()], axis=-1)
    return quads.reshape(HEIGHT, WIDTH, 2)


def mosaic(rows: str) -> np.ndarray:
    """The 2x2 colour filter array named from its top-left pixel, row by row."""
    channels = {"r": 0, "g": 1, "b": 2}
    result = np.empty((HEIGHT, WIDTH), np.uint8)
    for position, colour in enumerate(rows):
        v, u = divmod(position, 2)
        result[v::2, u::2] = RGB[v::2, u::2, channels[colour]]
    return result


EXACT = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, ALPHA], -1), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], ALPHA], -1), RGB),
    "mono8": (GREY, GREY_RGB),
    "mono16": (GREY.astype(np.uint16) * 257, GREY_RGB),
}
NEAR = {
    "yuv422": yuv422("u y0 v y1"),
    "uyvy": yuv422("u y0 v y1"),
    "yuv422_yuy2": yuv422("y0 u y1 v"),
    "yuyv": yuv422("y0 u y1 v"),
} | {f"bayer_{rows}8": mosaic(rows) for rows in ("rggb", "bggr", "gbrg", "grbg")}


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", EXACT)
def test_exact_encodings(encoding: str, padding: int) -> None:
    pixels, expected = EXACT[encoding]
    decoded = decode_image(image_message(pixels, encoding, padding=padding))
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    np.testing.assert_array_equal(decoded.numpy(), expected)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", NEAR)
def test_subsampled_encodings_come_back(encoding: str, padding: int) -> None:
    decoded = decode_image(image_message(NEAR[encoding], encoding, padding=padding))
    inner = np.abs(decoded.numpy().astype(int) - RGB)[2:-2, 2:-2]
    # Smooth colours survive subsampling; swapped channels or a shifted pattern would not.
    assert inner.mean() < 6.0
    assert np.percentile(inner, 99) < 40


def test_big_endian_mono16() -> None:
    pixels = (GREY.astype(np.uint16) * 257).astype(">u2")
    decoded = decode_image(image_message(pixels, "mono16", is_bigendian=1))
    np.testing.assert_array_equal(decoded.numpy(), GREY_RGB)
    uneven = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 21
    big = decode_image(image_message(uneven.astype(">u2"), "mono16", is_bigendian=1))
    assert torch.equal(big, decode_image(image_message(uneven, "mono16")))


def test_last_row_may_lack_its_padding() -> None:
    message = image_message(RGB, "rgb8", padding=10)
    message.data = message.data[:-10]
    np.testing.assert_array_equal(decode_image(message).numpy(), RGB)


def test_the_result_owns_its_memory() -> None:
    message = image_message(RGB.copy(), "rgb8")
    message.data = message.data.copy()
    decoded = decode_image(message)
    message.data[:] = 0
    np.testing.assert_array_equal(decoded.numpy(), RGB)


def test_rclpy_messages_decode_alike() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="needs the ROS 2 messages")
    serialization = pytest.importorskip("rclpy.serialization", reason="needs rclpy")
    message = image_message(RGB[..., ::-1], "bgr8", padding=4)
    content = bytes(TYPES.serialize_cdr(message, "sensor_msgs/msg/Image"))
    twin = serialization.deserialize_message(content, sensor_msgs.Image)
    np.testing.assert_array_equal(decode_image(twin).numpy(), RGB)
    assert stamp_ns(twin.header.stamp) == stamp_ns(message.header.stamp)


def broken(**changes: object) -> object:
    message = image_message(RGB, "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


DEFECTS = {
    "truncated": (broken(data=RGB.reshape(-1)[:-1]), "truncated"),
    "empty": (broken(data=np.empty(0, np.uint8)), "0 bytes"),
    "oversized": (broken(data=np.zeros(RGB.size + 1, np.uint8)), "expected"),
    "step too small": (broken(step=WIDTH * 3 - 1), "step="),
    "step does not fit": (broken(step=WIDTH * 3 + 1), "step="),
    "unknown encoding": (broken(encoding="rgb12"), "rgb12"),
    "no encoding": (broken(encoding=""), "not supported"),
    "zero height": (broken(height=0), "zero size"),
    "zero width": (broken(width=0, data=np.empty(0, np.uint8)), "zero size"),
    "absurd size": (broken(height=2**31, width=2**31), "absurd"),
    "odd 4:2:2": (image_message(np.zeros((4, 5, 2), np.uint8), "yuyv"), "even"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_refused(defect: str) -> None:
    message, word = DEFECTS[defect]
    with pytest.raises(FrameError, match=word):
        decode_image(message)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(0, 20),
    width=st.integers(0, 20),
    step=st.integers(0, 80),
    size=st.integers(0, 400),
    encoding=st.sampled_from([*EXACT, *NEAR]),
)
def test_any_geometry_decodes_or_is_refused(
    height: int, width: int, step: int, size: int, encoding: str
) -> None:
    message = broken(
        height=height, width=width, step=step, data=np.zeros(size, np.uint8), encoding=encoding
    )
    try:
        decoded = decode_image(message)  # type: ignore[arg-type]
    except FrameError:
        return
    assert decoded.shape == (height, width, 3)
    assert size <= step * height


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1].tobytes())


@pytest.mark.parametrize(
    "text", ["png", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8", "", "PNG"]
)
def test_compressed_png_is_exact(text: str) -> None:
    message = compressed_message(encoded(".png", RGB[..., ::-1]), text)
    np.testing.assert_array_equal(decode_compressed_image(message).numpy(), RGB)


def test_compressed_with_swapped_channels() -> None:
    message = compressed_message(encoded(".png", RGB), "rgb8; png compressed rgb8")
    np.testing.assert_array_equal(decode_compressed_image(message).numpy(), RGB)


def test_compressed_jpeg_is_near_and_in_rgb_order() -> None:
    message = compressed_message(encoded(".jpg", RGB[..., ::-1]), "rgb8; jpeg compressed bgr8")
    error = np.abs(decode_compressed_image(message).numpy().astype(int) - RGB)
    assert error.mean() < 3.0


def test_compressed_grey_and_16_bit() -> None:
    grey = compressed_message(encoded(".png", GREY), "mono8; png compressed ")
    np.testing.assert_array_equal(decode_compressed_image(grey).numpy(), GREY_RGB)
    deep = compressed_message(
        encoded(".png", GREY.astype(np.uint16) * 257), "mono16; png compressed "
    )
    np.testing.assert_allclose(decode_compressed_image(deep).numpy(), GREY_RGB, atol=1)


def test_compressed_mosaic() -> None:
    raw = decode_image(image_message(mosaic("rggb"), "bayer_rggb8"))
    message = compressed_message(encoded(".png", mosaic("rggb")), "bayer_rggb8; png compressed ")
    assert torch.equal(decode_compressed_image(message), raw)


def test_jpeg_with_trailing_padding_is_complete() -> None:
    content = encoded(".jpg", RGB[..., ::-1]) + bytes(4096)
    assert decode_compressed_image(compressed_message(content, "jpeg")).shape == RGB.shape


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_truncated_compressed_images_are_refused(suffix: str, share: float) -> None:
    content = encoded(suffix, RGB[..., ::-1])
    with pytest.raises(FrameError):
        decode_compressed_image(compressed_message(content[: int(share * len(content))], "x"))


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(50), b"\xff\xd8\xff" + bytes(90)])
def test_other_compressed_content_is_refused(content: bytes) -> None:
    with pytest.raises(FrameError, match="bytes"):
        decode_compressed_image(compressed_message(content, "32FC1; compressedDepth"))


def test_damaged_png_is_refused() -> None:
    content = bytearray(encoded(".png", RGB))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(FrameError, match="cannot be decoded"):
        decode_compressed_image(compressed_message(bytes(content), "png"))


def test_encoded_images_decode_to_themselves() -> None:
    image = encode_image(picture())
    assert (image.encoding, image.step, image.data.size) == ("rgb8", WIDTH * 3, RGB.size)
    assert torch.equal(decode_image(image), picture())
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[2, 3] = True
    assert encode_image(mask).encoding == "mono8"
    assert encode_image(mask).data.tolist() == (mask.reshape(-1) * 255).tolist()
    depth = torch.tensor([[1.5, torch.nan, -0.25]])
    encoded_depth = encode_image(depth)
    assert encoded_depth.encoding == "32FC1"
    np.testing.assert_array_equal(encoded_depth.data.view("<f4"), depth.numpy()[0])


@pytest.mark.parametrize("shape", [(4, 4, 2), (4,), (2, 4, 4, 3)])
def test_what_has_no_encoding_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FrameError, match="no encoding"):
        encode_image(torch.zeros(shape, dtype=torch.uint8))

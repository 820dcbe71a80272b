"""Small recordings and messages for the tests of storage/ and cli/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.sequence_writer import SequenceSample, write_sequence

TYPES = get_typestore(Stores.ROS2_JAZZY)
HEIGHT, WIDTH = 48, 64
CAMERA = CameraModel(Intrinsics(60.0, 61.0, 31.0, 24.5, WIDTH, HEIGHT))
START_NS, PERIOD_NS = 1_700_000_000_123_456_789, 33_333_333


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Smooth colours, so that JPEG and interpolation stay close."""
    generator = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width]
    phase = generator.uniform(0, 6.28, 3)
    wave = np.stack(
        [
            np.sin(u / 9.0 + phase[0]),
            np.cos(v / 7.0 + phase[1]),
            np.sin((u + v) / 11.0 + phase[2]),
        ],
        axis=-1,
    )
    return torch.from_numpy((127.5 + 120.0 * wave).astype(np.uint8))


def make(name: str, **fields: Any) -> Any:
    """A rosbags message; nested names like header are made by `header`."""
    return TYPES.types[name](**fields)


def header(stamp_ns: int = START_NS, frame_id: str = "camera") -> Any:
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def image_message(
    pixels: np.ndarray,
    encoding: str,
    *,
    stamp_ns: int = START_NS,
    padding: int = 0,
    is_bigendian: int = 0,
) -> Any:
    """An Image of an (H, W, ...) array, each row followed by `padding` bytes of 0xEE."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return make(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=is_bigendian,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed_message(content: bytes, text: str, stamp_ns: int = START_NS) -> Any:
    return make(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns),
        format=text,
        data=np.frombuffer(content, np.uint8),
    )


def camera_info(**changes: Any) -> Any:
    """A plausible CameraInfo with some fields changed."""
    region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    roi = make("sensor_msgs/msg/RegionOfInterest", **(region | changes.pop("roi", {})))
    fields: dict[str, Any] = {
        "header": header(),
        "height": 480,
        "width": 640,
        "distortion_model": "plumb_bob",
        "d": [0.1, -0.2, 0.001, -0.002, 0.05],
        "k": [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0],
        "r": np.eye(3).reshape(-1),
        "p": [450.0, 0, 310.0, 0, 0, 460.0, 230.0, 0, 0, 0, 1.0, 0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    } | changes
    for name in "dkrp":
        fields[name] = np.asarray(fields[name], np.float64)
    return make("sensor_msgs/msg/CameraInfo", **fields)


def write_messages(
    path: Path, messages: list[tuple[str, Any]], storage: StoragePlugin = StoragePlugin.MCAP
) -> Path:
    """A bag of (topic, message), one recorded per millisecond."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections: dict[str, Any] = {}
        for number, (topic, message) in enumerate(messages):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            content = TYPES.serialize_cdr(message, kind)
            writer.write(connections[topic], START_NS + number * 1_000_000, content)
    return path


def write_folder(
    path: Path, num_frames: int = 4, *, camera: CameraModel | None = CAMERA, suffix: str = ".png"
) -> SequenceFolder:
    """A sequence folder with depth, masks and poses."""
    return write_sequence(path, camera, samples(num_frames), suffix=suffix)


def samples(num_frames: int) -> list[SequenceSample]:
    found = []
    for number in range(num_frames):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 0.1 * number
        depth = torch.full((HEIGHT, WIDTH), 1.5 + 0.25 * number)
        depth[:4] = torch.nan
        mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        mask[10:20, 5 + number : 15 + number] = True
        stamp_ns = START_NS + number * PERIOD_NS
        found.append(SequenceSample(stamp_ns, picture(number), depth, mask, pose))
    return found

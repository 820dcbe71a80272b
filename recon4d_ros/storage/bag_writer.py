"""Writes recordings as rosbag2, readable by ROS 2 and by `BagRecording`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore
from torch import Tensor

from recon4d_ros.errors import OutputError
from recon4d_ros.storage.bag import CAMERA_INFO, IMAGE
from recon4d_ros.storage.messages import encode_image
from recon4d_ros.storage.recording import Recording
from recon4d_ros.storage.rectification import CameraModel

# Version 9 is that of Jazzy and newer.
_BAG_VERSION: Literal[9] = 9
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
OPTICAL_FRAME = "camera_optical_frame"


class BagWriter:
    """Writes the images of one camera and their camera_info; use `open_bag`."""

    def __init__(self, writer: Writer, camera: CameraModel | None, namespace: str) -> None:
        self._writer = writer
        self._camera = camera
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._image = self._connect(f"{namespace}/image_raw", IMAGE)
        self._info = self._connect(f"{namespace}/camera_info", CAMERA_INFO)

    def write(self, stamp_ns: int, rgb: Tensor) -> None:
        """Append one image and its camera_info.

        Args:
            stamp_ns: acquisition time; also the time of recording.
            rgb: (H, W, 3) uint8, distorted as the camera saw it.
        """
        image = encode_image(rgb)
        message = self._make(
            IMAGE,
            header=self._header(stamp_ns),
            height=image.height,
            width=image.width,
            encoding=image.encoding,
            is_bigendian=image.is_bigendian,
            step=image.step,
            data=image.data,
        )
        self._append(self._image, stamp_ns, message)
        self._append(self._info, stamp_ns, self._camera_info(stamp_ns, image.height, image.width))

    def _camera_info(self, stamp_ns: int, height: int, width: int) -> Any:
        """Zeros in K say "not calibrated" (REP-104)."""
        K, P = np.zeros((3, 3)), np.zeros((3, 4))
        if self._camera is not None:
            K = self._camera.intrinsics.K.numpy()
            P[:, :3] = K
        return self._make(
            CAMERA_INFO,
            header=self._header(stamp_ns),
            height=height,
            width=width,
            distortion_model=self._camera.distortion_model.value if self._camera else "",
            d=self._coefficients(),
            k=K.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=P.reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._make(
                "sensor_msgs/msg/RegionOfInterest",
                x_offset=0,
                y_offset=0,
                height=0,
                width=0,
                do_rectify=False,
            ),
        )

    def _coefficients(self) -> npt.NDArray[np.float64]:
        return np.asarray(self._camera.coefficients if self._camera else (), np.float64)

    def _header(self, stamp_ns: int) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=OPTICAL_FRAME)

    def _make(self, name: str, **fields: Any) -> Any:
        return self._types.types[name](**fields)

    def _connect(self, topic: str, msgtype: str) -> Connection:
        return self._writer.add_connection(topic, msgtype, typestore=self._types)

    def _append(self, connection: Connection, stamp_ns: int, message: Any) -> None:
        content = self._types.serialize_cdr(message, connection.msgtype)
        self._writer.write(connection, stamp_ns, content)


@contextmanager
def open_bag(
    path: Path, camera: CameraModel | None, *, storage: str = "mcap", namespace: str = "/camera"
) -> Iterator[BagWriter]:
    """A new rosbag2 folder for one camera; it is complete when the block is left.

    Args:
        path: folder to make.
        camera: calibration of the images; None when unknown.
        storage: mcap or sqlite3.
        namespace: the topics are `<namespace>/image_raw` and `<namespace>/camera_info`.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    if path.exists():
        raise OutputError(f"{path} exists; expected a new folder; choose another name")
    try:
        with Writer(path, version=_BAG_VERSION, storage_plugin=STORAGES[storage]) as writer:
            yield BagWriter(writer, camera, namespace)
    except (WriterError, OSError) as error:
        raise OutputError(
            f"cannot write the bag {path}: {error}; free the disk or choose another place"
        ) from error


def write_bag(
    recording: Recording, path: Path, *, storage: str = "mcap", namespace: str = "/camera"
) -> Generator[int, None, None]:
    """Copy a recording into a new bag; iterate to do the work.

    Yields:
        Number of images written so far.

    Raises:
        OutputError: the bag exists or cannot be written.
        FrameError: an image cannot be read.
        SourceError: the recording breaks off.
    """
    with open_bag(path, recording.camera, storage=storage, namespace=namespace) as bag:
        for number, image in enumerate(recording.images(), start=1):
            bag.write(image.stamp_ns, image.load())
            yield number

"""Images of ROS 2 bags (mcap or sqlite3), read without ROS."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore
from torch import Tensor

from recon4d_ros.errors import FrameError, SourceError
from recon4d_ros.storage.bag_damage import DAMAGE
from recon4d_ros.storage.messages import (
    camera_model,
    decode_compressed_image,
    decode_image,
    is_rectified_topic,
    stamp_ns,
)
from recon4d_ros.storage.recording import StampedImage
from recon4d_ros.storage.rectification import CameraModel

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_DECODERS: Mapping[str, Callable[[Any], Tensor]] = {
    IMAGE: decode_image,
    COMPRESSED_IMAGE: decode_compressed_image,
}

# These messages are the same in every ROS 2; the definitions inside a bag may be damaged.
_TYPES = get_typestore(Stores.ROS2_JAZZY)

_MCAP_MAGIC = b"\x89MCAP0\r\n"
_MCAP_RECORD = struct.Struct("<BQ")
# A footer that says "no summary": readers then scan the records.
_MCAP_EMPTY_FOOTER = _MCAP_RECORD.pack(0x02, 20) + bytes(20) + _MCAP_MAGIC


class BagRecording:
    """The images of one topic of a bag, and the camera_info beside them.

    Attributes:
        path: a rosbag2 folder, or one .mcap or .db3 file.
        name: its last part.
        topic: the image topic.
        camera: from the first camera_info beside the image topic; None when there is none.
        size: (height, width) of the first image.
        num_images: messages on the topic.
    """

    def __init__(
        self, path: Path, image_topic: str | None = None, *, allow_break: bool = False
    ) -> None:
        """Choose the topic; read the first image and the camera.

        Args:
            path: the bag.
            image_topic: which topic to read; needed when several hold images.
            allow_break: read a broken mcap up to the break instead of refusing it.

        Raises:
            SourceError: the bag is broken, or no topic or several could be meant.
        """
        self.path = path
        self.name = path.resolve().name
        self._allow_break = allow_break
        with self._open() as reader:
            connection = _choose(reader.connections, image_topic, path)
            self.topic = connection.topic
            self.num_images = int(connection.msgcount)
            self.camera = self._read_camera(reader)
        self.size = self._first_size()

    def images(self) -> Iterator[StampedImage]:
        """The images in the order of the bag, decoded when asked for.

        Raises:
            SourceError: the bag breaks off.
        """
        with self._open() as reader:
            chosen = [item for item in reader.connections if item.topic == self.topic]
            for connection, received_ns, content in reader.messages(chosen):
                yield _stamped_image(connection.msgtype, received_ns, content)
        if self._allow_break and _broken_mcap(self.path):
            raise SourceError(f"{self.path} breaks off; what follows the last image is lost")

    @contextmanager
    def _open(self) -> Iterator[AnyReader]:
        with (
            _complete(self.path, self._allow_break) as path,
            _reading(self.path),
            AnyReader([path], default_typestore=_TYPES) as reader,
        ):
            yield reader

    def _read_camera(self, reader: AnyReader) -> CameraModel | None:
        topics = _camera_info_topics(self.topic)
        beside = [item for item in reader.connections if item.topic in topics]
        chosen = [item for item in beside if item.msgtype == CAMERA_INFO]
        for connection, _, content in reader.messages(chosen) if chosen else ():
            message: Any = _TYPES.deserialize_cdr(content, connection.msgtype)
            try:
                return camera_model(message, is_rectified=is_rectified_topic(self.topic))
            except FrameError as error:
                raise SourceError(f"{self.path}, {connection.topic}: {error}") from error
        return None

    def _first_size(self) -> tuple[int, int]:
        reason = "the topic holds no message"
        for image in self.images():
            try:
                rgb = image.load()
            except FrameError as error:
                reason = str(error)
                if self._allow_break:
                    continue
                break
            return rgb.shape[0], rgb.shape[1]
        raise SourceError(f"{self.path}, {self.topic}: no usable image: {reason}")


def _stamped_image(msgtype: str, received_ns: int, content: bytes) -> StampedImage:
    try:
        message: Any = _TYPES.deserialize_cdr(content, msgtype)
    except DAMAGE as error:
        reason = f"its {len(content)} bytes are no {msgtype} ({error}); record the bag again"
        return StampedImage(received_ns, partial(_refuse, reason))
    return StampedImage(stamp_ns(message.header.stamp), partial(_DECODERS[msgtype], message))


def _refuse(reason: str) -> Tensor:
    raise FrameError(reason)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file provokes in the parsers into one clear error."""
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"cannot read the bag {path}: {reason}; expected a complete rosbag2 (mcap, sqlite3); "
            "it is broken or still being written; 'ros2 bag reindex' may mend it, and "
            "--skip-bad-frames uses an mcap up to the break"
        ) from error


def _choose(connections: list[Connection], wanted: str | None, path: Path) -> Connection:
    images = {item.topic: item for item in connections if item.msgtype in _DECODERS}
    if wanted is not None and wanted in images:
        return images[wanted]
    if wanted is not None:
        raise SourceError(
            f"{path} has no image topic '{wanted}'; image topics: {', '.join(images) or 'none'}; "
            "choose one of them with --image-topic"
        )
    if not images:
        topics = ", ".join(f"{item.topic} ({item.msgtype})" for item in connections)
        raise SourceError(
            f"{path} has no image topic; expected {IMAGE} or {COMPRESSED_IMAGE}; it has: "
            f"{topics or 'nothing'}; record the camera's topic"
        )
    if len(images) > 1:
        raise SourceError(
            f"{path} has {len(images)} image topics: {', '.join(images)}; "
            "choose one of them with --image-topic"
        )
    return next(iter(images.values()))


def _camera_info_topics(topic: str) -> tuple[str, ...]:
    """Where image_transport's publishers put the camera_info of an image topic."""
    base = topic.removesuffix("/compressed")
    return f"{base.rpartition('/')[0]}/camera_info", f"{base}/camera_info"


@contextmanager
def _complete(path: Path, allow_break: bool) -> Iterator[Path]:
    """The bag itself, or, where that is allowed, a completed copy of a broken mcap."""
    mcap = _broken_mcap(path)
    if not allow_break or mcap is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="recon4d_") as folder:
        copy = Path(folder) / "until_the_break.mcap"
        with mcap.open("rb") as broken, copy.open("wb") as completed:
            _copy_whole_records(broken, completed)
            completed.write(_MCAP_EMPTY_FOOTER)
        yield copy


def _broken_mcap(path: Path) -> Path | None:
    """The bag's mcap file, if it has exactly one and that one does not end as it should."""
    files = [path] if path.suffix == ".mcap" else sorted(path.glob("*.mcap"))
    if len(files) != 1:
        return None
    with files[0].open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_MCAP_MAGIC)))
        has_end = file.read() == _MCAP_MAGIC and size > len(_MCAP_MAGIC)
    return None if has_end else files[0]


def _copy_whole_records(broken: BinaryIO, completed: BinaryIO) -> None:
    """Copy the magic and every complete record (opcode, length, content; MCAP specification)."""
    size = broken.seek(0, 2)
    broken.seek(0)
    completed.write(broken.read(len(_MCAP_MAGIC)))
    while len(head := broken.read(_MCAP_RECORD.size)) == _MCAP_RECORD.size:
        _, length = _MCAP_RECORD.unpack(head)
        if length > size - broken.tell():
            return
        completed.write(head + broken.read(length))

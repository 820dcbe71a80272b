"""From image messages to frames: what may enter, what is dropped, when everything starts anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from recon4d_ros.config import InputConfig
from recon4d_ros.datatypes import Frame
from recon4d_ros.errors import FrameError
from recon4d_ros.storage.messages import (
    camera_model,
    decode_compressed_image,
    decode_image,
    stamp_ns,
)
from recon4d_ros.storage.rectification import CameraModel, Rectifier


class DropCause(Enum):
    """Why an image did not enter; each is counted in the diagnostics."""

    NEWER_IMAGE = "newer_image"  # live mode: a newer one came before this one's turn
    UNDECODABLE = "undecodable"
    DUPLICATE_STAMP = "duplicate_stamp"
    OUT_OF_ORDER = "out_of_order"
    CHANGED_CAMERA = "changed_camera"
    REFUSED = "refused"  # by the reconstruction
    INTERNAL_ERROR = "internal_error"


class DroppedImageError(FrameError):
    """An image that may not enter, with its cause."""

    def __init__(self, cause: DropCause, message: str) -> None:
        """Keep the cause beside the message."""
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, eq=False)
class Admitted:
    """An image that may enter.

    Attributes:
        frame: rectified.
        header: of the message.
        rectifier: from the pixels of the input to those of the frame and back.
        restart: why the reconstruction has to start anew before it, or None.
    """

    frame: Frame
    header: Any
    rectifier: Rectifier
    restart: str | None


@dataclass(frozen=True)
class _Stream:
    """What stays the same from image to image of one camera."""

    size: tuple[int, int]
    frame_id: str

    def __str__(self) -> str:
        return f"{self.size[1]}x{self.size[0]} in frame '{self.frame_id}'"


# Kind of note, text.
Note = Callable[[str, str], None]


class Intake:
    """Checks, decodes and rectifies images; keeps what the next one is compared with.

    `set_camera_info` and `close` may be called from any thread, the rest from one thread only.
    """

    def __init__(self, config: InputConfig, note: Note, *, is_rectified: bool) -> None:
        """Wait for a stream.

        Args:
            config: of the stream.
            note: told of everything about the camera that a user should know.
            is_rectified: the image topic is image_proc's rectified one.
        """
        self._config = config
        self._decode = (
            decode_compressed_image if config.transport == "compressed" else decode_image
        )
        self._camera = CameraSource(config, note, is_rectified=is_rectified)
        self.restart()

    def restart(self) -> None:
        """Forget the stream; the camera description stays."""
        self._index = 0
        self._last_stamp_ns: int | None = None
        self._stream: _Stream | None = None
        self._num_changed = 0
        self._rectifier: Rectifier | None = None

    def set_camera_info(self, message: Any) -> None:
        """Leave the newest CameraInfo."""
        self._camera.set(message)

    def close(self) -> None:
        """Stop waiting for a CameraInfo."""
        self._camera.close()

    @property
    def num_refused_camera_infos(self) -> int:
        """CameraInfo messages that describe no camera, or not this one."""
        return self._camera.num_refused

    def admit(self, message: Any) -> Admitted:
        """The frame of an image message.

        Nothing is remembered until `commit`.

        Raises:
            DroppedImageError: the image may not enter.
        """
        stamp = stamp_ns(message.header.stamp)
        restart = self._check_stamp(stamp)
        rgb = self._decoded(message)
        stream = _Stream((rgb.shape[0], rgb.shape[1]), message.header.frame_id)
        restart = self._check_stream(stream) or restart
        rectifier = self._camera.rectifier(stream.size)
        if self._rectifier is not None and rectifier is not self._rectifier:
            restart = restart or "the camera_info changed"
        index = 0 if restart else self._index
        frame = Frame(index, stamp, rectifier.rectify(rgb), rectifier.intrinsics)
        return Admitted(frame, message.header, rectifier, restart)

    def commit(self, admitted: Admitted) -> None:
        """The frame has entered: the next one is compared with it."""
        frame = admitted.frame
        self._index = frame.index + 1
        self._last_stamp_ns = frame.stamp_ns
        self._stream = _Stream(frame.size, admitted.header.frame_id)
        self._num_changed = 0
        self._rectifier = admitted.rectifier

    def _check_stamp(self, stamp: int) -> str | None:
        """Why to start anew, or None; a stamp that is no later than the last one is dropped."""
        if self._last_stamp_ns is None or stamp > self._last_stamp_ns:
            return None
        back_s = (self._last_stamp_ns - stamp) / 1e9
        if back_s > self._config.time_jump:
            return f"time jumped back by {back_s:.3f} s"
        if back_s == 0.0:
            raise DroppedImageError(
                DropCause.DUPLICATE_STAMP,
                f"two images with the stamp {stamp} ns; expected increasing stamps; "
                "check that one driver publishes and that it stamps its images",
            )
        raise DroppedImageError(
            DropCause.OUT_OF_ORDER,
            f"an image is {back_s:.3f} s older than the one before; expected increasing stamps "
            f"(a jump of more than input.time_jump={self._config.time_jump} s starts anew)",
        )

    def _decoded(self, message: Any) -> Tensor:
        try:
            return self._decode(message)
        except FrameError as error:
            raise DroppedImageError(DropCause.UNDECODABLE, str(error)) from error

    def _check_stream(self, stream: _Stream) -> str | None:
        """Why to start anew, or None; a single image of another kind is dropped."""
        if self._stream is None or stream == self._stream:
            self._num_changed = 0
            return None
        self._num_changed += 1
        text = f"the images changed from {self._stream} to {stream}"
        if self._num_changed >= self._config.change_after:
            return text
        raise DroppedImageError(
            DropCause.CHANGED_CAMERA,
            f"{text}; expected one kind; after {self._config.change_after} in a row "
            "(input.change_after) the reconstruction starts anew with the new kind",
        )


class CameraSource:
    """The newest usable camera description, as a rectifier.

    The same rectifier object is given out as long as the description stays the same.
    """

    def __init__(self, config: InputConfig, note: Note, *, is_rectified: bool) -> None:
        """Know no camera yet; the wait for one starts at the first image."""
        self._config = config
        self._note = note
        self._is_rectified = is_rectified
        self._newest: Any = None
        self._wake = threading.Event()
        self._examined: Any = None
        self._examined_key: tuple[Any, ...] | None = None
        self._is_refused = False
        self._model: CameraModel | None = None
        self._rectifier: Rectifier | None = None
        self.num_refused = 0

    def set(self, message: Any) -> None:
        """Leave the newest CameraInfo; called by the receiving thread."""
        self._newest = message
        self._wake.set()

    def close(self) -> None:
        """Wait no longer."""
        self._wake.set()

    def rectifier(self, size: tuple[int, int]) -> Rectifier:
        """For images of `size` = (height, width); it has no intrinsics when they are unknown."""
        self._wait_for_first()
        message = self._newest
        if message is not None:
            self._examine(message, size)
        if self._rectifier is None or self._rectifier.size != size:
            self._model, self._rectifier = None, Rectifier(None, size)
        return self._rectifier

    def _wait_for_first(self) -> None:
        if self._wake.is_set():
            return
        started = time.monotonic()
        if not self._wake.wait(self._config.camera_info_timeout):
            self._wake.set()
            self._note(
                "camera_info_missing",
                f"no camera_info within {time.monotonic() - started:.1f} s "
                "(input.camera_info_timeout); the intrinsics are estimated; publish camera_info "
                "beside the image or remap it",
            )

    def _examine(self, message: Any, size: tuple[int, int]) -> None:
        """Take what is new; count every message that is refused, but report it once."""
        key = (_key(message), size)
        if key != self._examined_key:
            self._examined_key = key
            self._is_refused = not self._take(message, size)
        if self._is_refused and message is not self._examined:
            self.num_refused += 1
        self._examined = message

    def _take(self, message: Any, size: tuple[int, int]) -> bool:
        """Use a description; False if it is refused and what there was stays."""
        try:
            model = camera_model(message, is_rectified=self._is_rectified)
            rectifier = Rectifier(model, size)
        except FrameError as error:
            self._note("camera_info_refused", str(error))
            return False
        if model is None:
            self._note(
                "camera_info_uncalibrated",
                "camera_info says the camera is not calibrated (K[0] = 0); the intrinsics are "
                "estimated; calibrate the camera for better results",
            )
        is_same = self._rectifier is not None and self._rectifier.size == size
        if not is_same or model != self._model:
            self._model, self._rectifier = model, rectifier
        return True


def _key(message: Any) -> tuple[Any, ...]:
    """What makes two camera descriptions different; text, so that NaN equals NaN."""
    roi = message.roi
    numbers = (*message.d, *message.k, *message.p)
    return (
        message.width,
        message.height,
        message.distortion_model,
        tuple(map(repr, numbers)),
        (message.binning_x, message.binning_y),
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )

"""Images of video files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from recon4d_ros.errors import SourceError
from recon4d_ros.storage.recording import StampedImage

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class VideoRecording:
    """The images of a video file, turned upright as the file asks; the camera is unknown.

    Stamps are the presentation times of the file, which follow a phone's uneven frame rate; where
    the container has none, they are counted with its frame rate. The first is near 0.

    Attributes:
        path: the file.
        name: its last part.
        size: (height, width) of the first image.
        camera: None.
        num_images: what the container says, or None.
    """

    camera = None

    def __init__(self, path: Path) -> None:
        """Read the first two images to learn the size and how the file tells time.

        Raises:
            SourceError: OpenCV cannot read the file.
        """
        self.path = path
        self.name = path.name
        with self._open() as capture:
            frames_per_second = float(capture.get(cv2.CAP_PROP_FPS))
            count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            self.num_images = count if count > 0 else None
            self.size = self._first_size(capture)
            first_ms = float(capture.get(cv2.CAP_PROP_POS_MSEC))
            has_times = capture.grab() and capture.get(cv2.CAP_PROP_POS_MSEC) > first_ms
        self._period_ns = None if has_times else self._counted_period(frames_per_second)

    def images(self) -> Iterator[StampedImage]:
        """The images from the start.

        Raises:
            SourceError: the file breaks off.
        """
        with self._open() as capture:
            index = 0
            while True:
                done, bgr = capture.read()
                if not done:
                    self._check_end(index)
                    return
                stamp_ns = self._stamp_ns(index, float(capture.get(cv2.CAP_PROP_POS_MSEC)))
                yield StampedImage(stamp_ns, partial(_rgb, np.asarray(bgr, np.uint8)))
                index += 1

    def _stamp_ns(self, index: int, position_ms: float) -> int:
        if self._period_ns is None:
            return round(position_ms * 1e6)
        return round(index * self._period_ns)

    def _check_end(self, num_read: int) -> None:
        """Refuse a file that holds fewer images than it promises (some counts are rounded)."""
        promised = self.num_images or 0
        if num_read < promised - max(2, promised // 50):
            raise SourceError(
                f"{self.path} holds {num_read} of the {promised} images its header promises; "
                "it is broken; --skip-bad-frames uses it up to the break"
            )

    def _first_size(self, capture: cv2.VideoCapture) -> tuple[int, int]:
        done, bgr = capture.read()
        if not done:
            raise SourceError(
                f"{self.path} holds no image that OpenCV can decode; expected a video; "
                "convert it to H.264 in mp4"
            )
        return bgr.shape[0], bgr.shape[1]

    def _counted_period(self, frames_per_second: float) -> float:
        if not (math.isfinite(frames_per_second) and 0.1 <= frames_per_second <= 1000.0):
            raise SourceError(
                f"{self.path} has neither image times nor a frame rate ({frames_per_second:g}); "
                "expected one of them; convert it to H.264 in mp4"
            )
        return 1e9 / frames_per_second

    @contextmanager
    def _open(self) -> Iterator[cv2.VideoCapture]:
        capture = cv2.VideoCapture(str(self.path))
        try:
            if not capture.isOpened():
                raise SourceError(
                    f"OpenCV cannot open the video {self.path}; expected a complete video file "
                    f"({', '.join(SUFFIXES)}); it is broken or of an unknown kind"
                )
            yield capture
        finally:
            capture.release()


def _rgb(bgr: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1]))

"""From the images of any recording to the frames of the core: numbered, rectified, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from recon4d_ros.datatypes import Frame
from recon4d_ros.errors import FrameError, SourceError
from recon4d_ros.storage.rectification import CameraModel, Rectifier
from recon4d_ros.storage.trajectory import seconds_text


@dataclass(frozen=True)
class StampedImage:
    """An image that is decoded only when asked for.

    Attributes:
        stamp_ns: acquisition time.
        load: gives (H, W, 3) uint8 RGB, distorted as the camera saw it; raises `FrameError`.
    """

    stamp_ns: int
    load: Callable[[], Tensor]


class Recording(Protocol):
    """A sequence folder, a bag or a video: images in the order in which they are stored."""

    @property
    def name(self) -> str:
        """What to call it in messages and reports."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first image."""
        ...

    @property
    def camera(self) -> CameraModel | None:
        """The calibration; None when unknown."""
        ...

    @property
    def num_images(self) -> int | None:
        """Number of images; None when only reading tells."""
        ...

    def images(self) -> Iterator[StampedImage]:
        """The images from the start.

        Raises:
            SourceError: the recording breaks off.
        """
        ...


class FrameSource:
    """Frames of a recording, index 0 first, stamps strictly increasing, one size.

    Attributes:
        recording: where they come from.
        rectifier: between the pixels of the recording and those of the frames.
        drops: why images were left out in the latest iteration, in order.
    """

    def __init__(self, recording: Recording, *, skip_bad_frames: bool = False) -> None:
        """Prepare the rectification.

        Args:
            recording: the images.
            skip_bad_frames: leave out (and note in `drops`) what cannot be used, and stop at the
                point where the recording breaks off, instead of raising.

        Raises:
            SourceError: the calibration does not fit the images.
        """
        self.recording = recording
        self.drops: list[str] = []
        self._skip_bad_frames = skip_bad_frames
        try:
            self.rectifier = Rectifier(recording.camera, recording.size)
        except FrameError as error:
            raise SourceError(f"{recording.name}: {error}") from error

    @property
    def name(self) -> str:
        """Name of the recording."""
        return self.recording.name

    @property
    def num_frames(self) -> int | None:
        """Number of images, bad ones included; None when only reading tells."""
        return self.recording.num_images

    def __iter__(self) -> Iterator[Frame]:
        """The frames from the start.

        Raises:
            FrameError: an image cannot be used (unless such images are skipped).
            SourceError: the recording breaks off (unless skipped).
        """
        self.drops = []
        index = 0
        previous_ns: int | None = None
        for image in self._images():
            try:
                rgb = self._usable(image, previous_ns)
            except FrameError as error:
                self._drop(f"{self.name}, image at {seconds_text(image.stamp_ns)} s: {error}")
                continue
            yield Frame(index, image.stamp_ns, rgb, self.rectifier.intrinsics)
            previous_ns = image.stamp_ns
            index += 1

    def _images(self) -> Iterator[StampedImage]:
        try:
            yield from self.recording.images()
        except SourceError as error:
            if not self._skip_bad_frames:
                raise
            self.drops.append(str(error))

    def _usable(self, image: StampedImage, previous_ns: int | None) -> Tensor:
        if previous_ns is not None and image.stamp_ns <= previous_ns:
            kind = "repeats" if image.stamp_ns == previous_ns else "is older than"
            raise FrameError(
                f"its stamp {kind} the one before ({seconds_text(previous_ns)} s); "
                "expected increasing stamps"
            )
        return self.rectifier.rectify(image.load())

    def _drop(self, reason: str) -> None:
        if not self._skip_bad_frames:
            raise FrameError(f"{reason}; --skip-bad-frames leaves such images out")
        self.drops.append(reason)

"""Opens whatever holds images: a sequence folder, a bag or a video file."""

from __future__ import annotations

from pathlib import Path

from recon4d_ros.errors import SourceError
from recon4d_ros.storage.bag import BagRecording
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.recording import FrameSource, Recording
from recon4d_ros.storage.video import SUFFIXES, VideoRecording

_BAG_SUFFIXES = (".mcap", ".db3")


def open_source(
    path: Path, image_topic: str | None = None, *, skip_bad_frames: bool = False
) -> FrameSource:
    """Open a recording; what it is follows from the path.

    Args:
        path: a sequence folder, a rosbag2 folder or file, or a video file.
        image_topic: of a bag; needed when it has several.
        skip_bad_frames: leave bad images out and stop where a recording breaks off, instead of
            raising.

    Raises:
        SourceError: nothing there, an unknown kind, or broken.
    """
    recording = open_recording(path, image_topic, allow_break=skip_bad_frames)
    return FrameSource(recording, skip_bad_frames=skip_bad_frames)


def open_recording(
    path: Path, image_topic: str | None = None, *, allow_break: bool = False
) -> Recording:
    """Open a recording without the checks of `FrameSource`.

    Raises:
        SourceError: nothing there, an unknown kind, or broken.
    """
    if not path.exists():
        raise SourceError(f"{path} does not exist; expected {_KINDS}; check the path")
    if _is_bag(path):
        return BagRecording(path, image_topic, allow_break=allow_break)
    if image_topic is not None:
        raise SourceError(
            f"{path} is no bag, but the image topic '{image_topic}' was given; leave it out"
        )
    if path.is_dir():
        return SequenceFolder(path)
    if path.suffix.lower() in SUFFIXES:
        return VideoRecording(path)
    raise SourceError(f"{path} is of an unknown kind; expected {_KINDS}; rename or convert it")


_KINDS = (
    "a sequence folder (rgb.txt, rgb/, intrinsics.json), a rosbag2 (folder, .mcap or .db3) or a "
    f"video ({', '.join(SUFFIXES)})"
)


def _is_bag(path: Path) -> bool:
    if path.is_file():
        return path.suffix in _BAG_SUFFIXES
    has_parts = any(path.glob("*.mcap")) or any(path.glob("*.db3"))
    return (path / "metadata.yaml").is_file() or has_parts

"""What the node published, read back from a recording, and its figures against the truth.

Each message was recorded with the wall clock of its arrival and carries the stamp of its image, so
the recording tells how long after an image its pose came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rosbags.highlevel import AnyReader, AnyReaderError
from scipy.spatial.transform import Rotation

from recon4d_ros.datatypes import PointCloud, Trajectory
from recon4d_ros.errors import EvaluationError, SourceError
from recon4d_ros.evaluation.depth import (
    BoolImage,
    DepthFrame,
    DepthImage,
    DepthReport,
    evaluate_depth,
    resize_nearest,
)
from recon4d_ros.evaluation.masks import MaskFrame, MaskReport, evaluate_masks
from recon4d_ros.evaluation.report import TrajectoryReport, evaluate_trajectory
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.messages import stamp_ns

Figures = TypeVar("Figures")

NODE = "/recon4d_node"
IMAGE_TOPIC, INFO_TOPIC = "/camera/image_raw", "/camera/camera_info"
TF, MAP = "/tf", f"{NODE}/static_map"
DEPTH, MASK = f"{NODE}/depth/image", f"{NODE}/dynamic_mask"


@dataclass(frozen=True)
class Received:
    """One message of a recording.

    Attributes:
        arrival_ns: wall clock of the recorder.
        message: as rosbags gives it.
    """

    arrival_ns: int
    message: Any


class RecordedRun:
    """A recording of the node's topics; messages are read when asked for, never held together."""

    def __init__(self, bag: Path) -> None:
        """Remember the bag."""
        self._bag = bag

    def messages(self, topic: str) -> Iterator[Received]:
        """The messages of a topic in the order of their arrival.

        Raises:
            SourceError: the recording cannot be read.
        """
        try:
            with AnyReader([self._bag]) as reader:
                chosen = [each for each in reader.connections if each.topic == topic]
                for connection, arrival_ns, content in reader.messages(chosen) if chosen else ():
                    yield Received(arrival_ns, reader.deserialize(content, connection.msgtype))
        except (AnyReaderError, OSError) as error:
            raise SourceError(
                f"cannot read the recording {self._bag}: {error}; record it again"
            ) from error

    def poses(self) -> dict[int, Received]:
        """Arrivals of the camera's transforms by image stamp."""
        return {
            stamp_ns(transform.header.stamp): Received(received.arrival_ns, transform)
            for received in self.messages(TF)
            for transform in received.message.transforms
        }

    def trajectory(self) -> Trajectory:
        """Camera poses in the map as they went out on TF, sorted by stamp."""
        poses = self.poses()
        stamps = sorted(poses)
        matrices = [_pose(poses[stamp].message.transform) for stamp in stamps]
        stacked = np.stack(matrices) if matrices else np.empty((0, 4, 4))
        return Trajectory(torch.tensor(stamps, dtype=torch.int64), torch.from_numpy(stacked))

    def arrivals_ns(self, topic: str) -> dict[int, int]:
        """When the message of each stamp arrived, for a topic whose messages have a header."""
        return {
            stamp_ns(received.message.header.stamp): received.arrival_ns
            for received in self.messages(topic)
        }

    def depths(self) -> Iterator[tuple[int, DepthImage]]:
        """Stamps and depth images (h, w) float32, NaN where unknown."""
        for received in self.messages(DEPTH):
            yield _stamped_plane(received.message, np.dtype("<f4"))

    def masks(self) -> Iterator[tuple[int, BoolImage]]:
        """Stamps and masks (H, W) of what moves, in the pixels of the input."""
        for received in self.messages(MASK):
            stamp, plane = _stamped_plane(received.message, np.dtype(np.uint8))
            yield stamp, plane > 127

    def map(self) -> PointCloud:
        """The newest static map; empty when none was published."""
        newest = None
        for received in self.messages(MAP):
            newest = received.message
        return _no_points() if newest is None else _point_cloud(newest)


@dataclass(frozen=True)
class Latency:
    """From the arrival of an image to that of its pose, s, and how many were posed.

    Attributes:
        p50_s, p95_s: percentiles over the posed images; NaN without any.
        num_images: images that arrived.
        num_posed: those with a pose.
        input_hz, posed_hz: rates over the time in which they arrived.
    """

    p50_s: float
    p95_s: float
    num_images: int
    num_posed: int
    input_hz: float
    posed_hz: float


@dataclass(frozen=True)
class RunFigures:
    """A recorded run against its sequence; None where there is no truth or nothing to compare.

    Attributes:
        latency: times and rates.
        trajectory: errors of the poses on TF.
        depth: errors of the depth images, of static pixels where the truth tells them.
        masks: overlap of the masks, over the frames that have one.
        num_map_points: points of the last static map.
    """

    latency: Latency
    trajectory: TrajectoryReport | None
    depth: DepthReport | None
    masks: MaskReport | None
    num_map_points: int


def score(run: RecordedRun, sequence: SequenceFolder) -> RunFigures:
    """Compare a recording with whatever truth its sequence has.

    Raises:
        SourceError: the recording or the truth cannot be read.
    """
    return RunFigures(
        latency=measure_latency(run.arrivals_ns(IMAGE_TOPIC), run.poses()),
        trajectory=_if_comparable(partial(_trajectory, run, sequence)),
        depth=_if_comparable(partial(_depth, run, sequence)),
        masks=_if_comparable(partial(_masks, run, sequence)),
        num_map_points=len(run.map().points),
    )


def measure_latency(images_ns: dict[int, int], poses: dict[int, Received]) -> Latency:
    """Times between the arrivals of images and poses of the same stamp."""
    posed = {stamp: pose for stamp, pose in poses.items() if stamp in images_ns}
    delays = [(pose.arrival_ns - images_ns[stamp]) * 1e-9 for stamp, pose in posed.items()]
    p50, p95 = np.percentile(delays, (50, 95)) if delays else (np.nan, np.nan)
    return Latency(
        float(p50),
        float(p95),
        len(images_ns),
        len(posed),
        _rate_hz(list(images_ns.values())),
        _rate_hz([pose.arrival_ns for pose in posed.values()]),
    )


def _rate_hz(arrivals_ns: list[int]) -> float:
    if len(arrivals_ns) < 2:
        return 0.0
    return (len(arrivals_ns) - 1) / ((max(arrivals_ns) - min(arrivals_ns)) * 1e-9)


def _if_comparable(evaluate: Callable[[], Figures | None]) -> Figures | None:
    """The report, or None when run and truth have nothing in common."""
    try:
        return evaluate()
    except EvaluationError:
        return None


def _trajectory(run: RecordedRun, sequence: SequenceFolder) -> TrajectoryReport | None:
    truth = sequence.truth.trajectory()
    if truth is None:
        return None
    stamps = np.array([entry.stamp_ns for entry in sequence.entries], np.int64)
    return evaluate_trajectory(truth, run.trajectory(), stamps)


def _depth(run: RecordedRun, sequence: SequenceFolder) -> DepthReport | None:
    if not sequence.truth.has_depth:
        return None
    return evaluate_depth(partial(_depth_frames, run, sequence))


def _depth_frames(run: RecordedRun, sequence: SequenceFolder) -> Iterator[DepthFrame]:
    for stamp, estimate in run.depths():
        truth, moving = sequence.truth.depth(stamp), sequence.truth.mask(stamp)
        if truth is None:
            continue
        shape = (truth.shape[0], truth.shape[1])
        static = np.ones(shape, bool) if moving is None else ~resize_nearest(moving.numpy(), shape)
        yield DepthFrame(truth.numpy(), estimate, static)


def _masks(run: RecordedRun, sequence: SequenceFolder) -> MaskReport | None:
    if not sequence.truth.has_masks:
        return None
    pairs = ((sequence.truth.mask(stamp), mask) for stamp, mask in run.masks())
    return evaluate_masks(
        MaskFrame(truth.numpy(), mask) for truth, mask in pairs if truth is not None
    )


def _pose(transform: Any) -> npt.NDArray[np.float64]:
    q, t = transform.rotation, transform.translation
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


def _stamped_plane(message: Any, kind: np.dtype[Any]) -> tuple[int, npt.NDArray[Any]]:
    """Stamp and pixels (H, W) of a message with one channel; rows may be padded."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    width_bytes = message.width * kind.itemsize
    plane = rows[:, :width_bytes].copy().view(kind)
    return stamp_ns(message.header.stamp), plane


def _point_cloud(message: Any) -> PointCloud:
    """Points of a message with the fields x y z rgb confidence observations."""
    kinds = {"rgb": "<u4", "observations": "<u4"}
    layout = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [kinds.get(field.name, "<f4") for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    records = np.frombuffer(message.data, layout)
    points = np.stack([records[axis] for axis in "xyz"], axis=-1)
    rgb = np.stack([(records["rgb"] >> shift) & 255 for shift in (16, 8, 0)], axis=-1)
    return PointCloud(
        torch.from_numpy(points),
        torch.from_numpy(rgb.astype(np.uint8)),
        torch.from_numpy(records["confidence"].copy()),
        torch.from_numpy(records["observations"].astype(np.int32)),
    )


def _no_points() -> PointCloud:
    return PointCloud(
        torch.empty(0, 3),
        torch.empty(0, 3, dtype=torch.uint8),
        torch.empty(0),
        torch.empty(0, dtype=torch.int32),
    )

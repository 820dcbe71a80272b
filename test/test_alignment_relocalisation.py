"""Lost and found on real images, new submaps, keyframes."""

import itertools
from dataclasses import replace

import analytic_scene as scene
import pytest
import torch
from real_sequence import RealSequence
from torch import Tensor

from recon4d_ros.alignment.aligner import Aligner, Located
from recon4d_ros.alignment.keyframes import Keyframe, KeyframeStore
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import (
    AlignedWindow,
    EventKind,
    Frame,
    FramePrediction,
    TrackingState,
    WindowPrediction,
)
from recon4d_ros.geometry import se3

VIEW = scene.intrinsics(120, 160)
TURNED = se3.exp(torch.tensor([1.0, 2.0, 3.0, 0.3, 0.2, 0.1], dtype=torch.float64))


def knowing_since(prediction: WindowPrediction, predictor, first: int) -> WindowPrediction:
    """A window of a gauge that began at frame `first`: earlier frames are unknown to it."""
    old = torch.tensor([index < first for index in prediction.indices])
    key = max(prediction.key_index, min(first, prediction.indices[-1]))
    T_key_old = se3.relative(predictor.pose_gauge(key), predictor.pose_gauge(prediction.key_index))
    points = torch.stack(prediction.points_key).double() @ T_key_old[:3, :3].mT + T_key_old[:3, 3]
    T_key_cam = T_key_old @ prediction.T_key_cam
    T_key_cam[old], points[old] = torch.nan, torch.nan
    return replace(
        prediction,
        key_index=key,
        T_key_cam=T_key_cam,
        points_key=tuple(points.float()),
        confidence=torch.where(old[:, None, None], 0.0, prediction.confidence),
        T_gauge_key=predictor.pose_gauge(key),
    )


class Stream:
    """Feeds frames one by one and a window at every fourth, as the pipeline does."""

    def __init__(self, frames: list[Frame], config: AlignmentConfig | None = None) -> None:
        self.frames = frames
        self.aligner = Aligner(config or AlignmentConfig())
        self.located: list[Located] = []
        self.windows: list[AlignedWindow] = []
        self.events: list[tuple[int, EventKind]] = []

    def feed(self, index: int, prediction: FramePrediction, make_window) -> None:
        located = self.aligner.locate(self.frames[index], prediction)
        self.located.append(located)
        self.events += [(index, event.kind) for event in located.events]
        if index < 11 or index % 4 != 3:
            return
        indices = range(index - 11, index + 1)
        window = scene.window_of(self.frames[index - 11 : index + 1])
        predicted = make_window(indices)
        still = scene.nothing_moves(indices, predicted.intrinsics.size)
        aligned = self.aligner.align(window, predicted, still)
        self.windows.append(aligned)
        events = self.aligner.commit(aligned, window)
        self.events += [(index, event.kind) for event in events]


def lost(prediction: FramePrediction) -> FramePrediction:
    nowhere = torch.full_like(prediction.depth, torch.nan)
    return replace(prediction, state=TrackingState.LOST, T_key_cam=None, depth=nowhere)


def jump_away_and_back(sequence: RealSequence, away: int, back: int) -> Stream:
    """Walk, see noise, come back to places between the first frames, in a new gauge."""
    count = len(sequence.rgb)
    frames = [
        sequence.unrelated_frame(i) if away <= i < back else sequence.frame(i)
        for i in range(count)
    ]
    stream = Stream(frames)
    first = sequence.predictor()
    second = sequence.predictor(scale=0.37, T_gauge_world=TURNED, gauge=1)
    for i in range(away):
        stream.feed(i, first.frame(i, 0), first.window)
    for i in range(away, back):
        stream.feed(
            i, lost(second.frame(i, i)), lambda w: knowing_since(second.window(w), second, back)
        )
    for i in range(back, count):
        stream.feed(
            i, second.frame(i, back), lambda w: knowing_since(second.window(w), second, back)
        )
    return stream


def errors(stream: Stream, poses: tuple[Tensor, ...], indices) -> list[tuple[float, float]]:
    """Distance and angle (degrees) of the located frames from the truth."""
    result = []
    for index in indices:
        truth = se3.relative(poses[0], poses[index])
        found = stream.located[index].T_map_cam
        angle = torch.rad2deg(se3.angle(truth[:3, :3].mT @ found[:3, :3]))
        result.append((float((truth - found)[:3, 3].norm()), float(angle)))
    return result


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "walk", "again", "bound_m"),
    [
        ("icl_livingroom1", list(range(0, 144, 4)), list(range(74, 122, 4)), 0.03),
        ("rendered/static_scene", list(range(0, 48, 2)), list(range(25, 48, 2)), 0.03),
    ],
)
def test_jump_away_and_back_is_found_again(name, walk, again, bound_m) -> None:
    away, back = len(walk), len(walk) + 6
    sequence = RealSequence(name, walk + walk[-1:] * 6 + again)
    stream = jump_away_and_back(sequence, away, back)
    kinds = [event for event in stream.events if event[1] is not EventKind.INITIALISED]
    assert kinds == [(away, EventKind.LOST), (back, EventKind.RELOCALISED)]
    assert all(stream.located[i].T_map_cam is None for i in range(away, back))
    assert {located.submap for located in stream.located} == {0}
    assert max(e[0] for e in errors(stream, sequence.poses, range(away))) < 1e-9
    after = errors(stream, sequence.poses, range(back, len(sequence.rgb)))
    assert max(e[0] for e in after) < bound_m and max(e[1] for e in after) < 1.2
    # Joined again, the new gauge keeps the old one's scale.
    assert stream.windows[-1].scale == pytest.approx(1 / 0.37, rel=0.01)
    assert max(e[0] for e in after[-2:]) < bound_m / 4


@pytest.mark.data
def test_a_place_never_seen_gives_no_pose_and_after_thirty_frames_a_new_submap() -> None:
    walk, elsewhere = list(range(0, 36, 2)), list(range(150, 198))
    sequence = RealSequence("icl_livingroom1", walk + elsewhere)
    away, count = len(walk), len(walk) + len(elsewhere)
    stream = Stream([sequence.frame(i) for i in range(count)])
    first = sequence.predictor()
    second = sequence.predictor(scale=0.37, T_gauge_world=TURNED, gauge=1)
    for i in range(away):
        stream.feed(i, first.frame(i, 0), first.window)
    for i in range(away, count):
        stream.feed(
            i, second.frame(i, away), lambda w: knowing_since(second.window(w), second, away)
        )
    kinds = [event for event in stream.events if event[1] is not EventKind.INITIALISED]
    opened = kinds[-1][0]
    assert kinds == [(away, EventKind.LOST), (opened, EventKind.NEW_SUBMAP)]
    assert away + 29 <= opened <= away + 33
    assert all(stream.located[i].T_map_cam is None for i in range(away, opened + 1))
    closed = [w for w in stream.windows if away <= w.prediction.indices[0] <= opened - 12]
    assert closed and all(w.T_map_cam.isnan().all() and w.scale != w.scale for w in closed)
    new = next(w for w in stream.windows if w.submap == 1)
    assert new.scale == 1.0 and new.num_shared == 0
    torch.testing.assert_close(new.T_map_cam[0], torch.eye(4, dtype=torch.float64))
    for i in range(opened + 1, count):
        assert stream.located[i].submap == 1
        origin = new.prediction.indices[0]
        expected = se3.relative(second.pose_gauge(origin), second.pose_gauge(i))
        torch.testing.assert_close(stream.located[i].T_map_cam, expected, atol=1e-9, rtol=0)


def test_a_camera_lost_before_any_depth_is_not_sought() -> None:
    """There is nothing to find it by: the first window of the new gauge begins a submap."""
    poses = [scene.pose(i) for i in range(28)]
    stream = Stream(
        [Frame(i, scene.stamp(i), scene.image(T, VIEW), VIEW) for i, T in enumerate(poses)]
    )
    first = scene.ExactPredictor(view=VIEW, num_landmarks=0)
    second = scene.ExactPredictor(view=VIEW, gauge=1)
    blind = torch.full(VIEW.size, torch.nan)

    def nothing_known(indices: range) -> WindowPrediction:
        exact = first.window(indices)
        points = tuple(torch.full_like(points, torch.nan) for points in exact.points_key)
        return replace(exact, points_key=points, confidence=torch.zeros_like(exact.confidence))

    for i in range(16):
        stream.feed(i, replace(first.frame(i, 0), depth=blind), nothing_known)
    assert stream.aligner.num_keyframes == 0 and stream.aligner.submap == 0
    for i in range(16, 28):
        stream.feed(i, second.frame(i, 16), lambda w: knowing_since(second.window(w), second, 16))
    assert (19, EventKind.NEW_SUBMAP) in stream.events
    assert [found.T_map_cam is None for found in stream.located] == [
        16 <= i < 20 for i in range(28)
    ]
    assert stream.aligner.submap == 1 and stream.aligner.num_keyframes > 0


@pytest.mark.data
def test_relocalisation_is_deterministic() -> None:
    walk = list(range(0, 48, 3))
    sequence = RealSequence("rendered/static_scene", walk + walk[-1:] * 6 + walk[5:13])
    runs = [jump_away_and_back(sequence, 16, 22) for _ in range(2)]
    for one, other in zip(runs[0].located, runs[1].located, strict=True):
        assert (one.T_map_cam is None) == (other.T_map_cam is None)
        assert one.T_map_cam is None or torch.equal(one.T_map_cam, other.T_map_cam)


def room_stream(count: int, config: AlignmentConfig, every: int = 1) -> Stream:
    """A walk through the analytic room, `every` steps of its trajectory per frame."""
    poses = tuple(scene.pose(every * i) for i in range(count))
    frames = [Frame(i, scene.stamp(i), scene.image(T, VIEW), VIEW) for i, T in enumerate(poses)]
    stream = Stream(frames, config)
    predictor = scene.ExactPredictor(view=VIEW, trajectory=poses, num_landmarks=100)
    for i in range(count):
        stream.feed(i, predictor.frame(i, 0), predictor.window)
    return stream


def test_keyframes_and_memory_are_bounded() -> None:
    config = AlignmentConfig(max_keyframes=4, max_landmarks=100, keyframe_rotation=5.0)
    stream = room_stream(100, config, every=3)
    made = sum(int(window.is_keyframe.sum()) for window in stream.windows)
    assert made > 8 and stream.aligner.num_keyframes == 4
    assert stream.aligner.memory_bytes < 2_000_000
    spread = torch.stack([kf.T_map_cam[:3, 3] for kf in stream.aligner.keyframes])
    assert float(torch.pdist(spread).min()) > 0.3  # no two of the same place
    stream.aligner.reset()
    assert stream.aligner.num_keyframes == 0 and stream.aligner.memory_bytes == 0


def test_an_abandoned_map_is_forgotten_and_the_next_pose_begins_another() -> None:
    stream = room_stream(32, AlignmentConfig(keyframe_rotation=5.0))
    assert stream.aligner.num_keyframes > 1
    last, again = stream.frames[-1], scene.ExactPredictor(view=VIEW, gauge=1)
    event = stream.aligner.abandon(last)
    assert event.kind is EventKind.REFUTED and event.submap == 0 and "frame 31" in event.message
    assert stream.aligner.num_keyframes == 0 and stream.aligner.submap == 1
    nowhere = replace(again.frame(0, 0), index=31, T_key_cam=None, state=TrackingState.LOST)
    lost = stream.aligner.locate(last, nowhere)
    assert lost.T_map_cam is None and [e.kind for e in lost.events] == [EventKind.LOST]
    # It is where the map begins, not found again.
    begun = stream.aligner.locate(stream.frames[0], again.frame(0, 0))
    assert begun.submap == 1 and begun.events == ()
    torch.testing.assert_close(begun.T_map_cam, torch.eye(4, dtype=torch.float64))
    assert stream.aligner.abandon(last).submap == 1 and stream.aligner.submap == 2


def test_keyframes_come_by_rotation_or_age() -> None:
    still = room_stream(44, AlignmentConfig(keyframe_interval=1000, keyframe_overlap=0.0))
    turns = [kf.T_map_cam[:3, :3] for kf in still.aligner.keyframes]
    angles = [float(torch.rad2deg(se3.angle(a.mT @ b))) for a, b in itertools.pairwise(turns)]
    assert angles and all(15.0 < angle < 25.0 for angle in angles)
    aged = room_stream(44, AlignmentConfig(keyframe_rotation=180.0, keyframe_overlap=0.0))
    indices = [kf.index for kf in aged.aligner.keyframes]
    assert all(20 <= b - a < 26 for a, b in itertools.pairwise(indices))
    assert len(indices) == 3


def test_keyframe_points_lie_on_static_measured_surfaces() -> None:
    stream = room_stream(12, AlignmentConfig())
    (keyframe,) = stream.aligner.keyframes[:1]
    T_world_map = scene.pose(0)
    world = se3.transform(T_world_map, keyframe.points_map)
    on_wall = (world.abs() - scene.HALF_SIZE).abs().amin(-1)
    assert len(world) > 100 and float(on_wall.max()) < 1e-4


def keyframe_at(x: float, index: int) -> Keyframe:
    view = scene.intrinsics(60, 80)
    T = torch.eye(4, dtype=torch.float64)
    T[0, 3] = x
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9)).double()
    points = torch.cat([grid, torch.full((81, 1), 3.0, dtype=torch.float64)], -1)
    no_descriptors = torch.zeros(81, 32, dtype=torch.uint8).numpy()
    return Keyframe(index, index, 0, T, view, grid, points + T[:3, 3], no_descriptors)


def test_eviction_removes_the_oldest_of_the_most_overlapping_pair() -> None:
    store = KeyframeStore.empty(4)
    for index, x in enumerate([0.0, 1.2, 1.3, 3.0, 5.0]):
        store = store.added(keyframe_at(x, index))
    assert [keyframe.index for keyframe in store.keyframes] == [0, 2, 3, 4]
    assert store.overlap.shape == (4, 4)

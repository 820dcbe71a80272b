"""Windows join the map: exact, noisy, outliers, moving things, new gauges in every window."""

from collections.abc import Callable
from dataclasses import replace

import analytic_scene as scene
import pytest
import torch
from torch import Tensor

from recon4d_ros.alignment.aligner import Aligner
from recon4d_ros.config import AlignmentConfig
from recon4d_ros.datatypes import (
    AlignedWindow,
    DynamicMask,
    EventKind,
    Frame,
    MapEvent,
    TrackingState,
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3

TURNED = se3.exp(torch.tensor([1.0, 2.0, 3.0, 0.3, 0.2, 0.1], dtype=torch.float64))
Predict = Callable[[scene.ExactPredictor, range], tuple[WindowPrediction, DynamicMask | None]]


def blank_window(view, indices: range) -> Window:
    rgb = torch.zeros(*view.size, 3, dtype=torch.uint8)
    frames = tuple(Frame(i, scene.stamp(i), rgb, view) for i in indices)
    return Window(frames, indices[-1] - 2)


class Run:
    """Feeds windows of twelve frames, four of them new, and keeps what came out."""

    def __init__(self, predictor: scene.ExactPredictor, config=None) -> None:
        self.predictor = predictor
        self.aligner = Aligner(config or AlignmentConfig())
        self.aligned: list[AlignedWindow] = []
        self.events: list[tuple[int, MapEvent]] = []
        self.origin: Tensor | None = None

    def step(self, number: int, predict: Predict | None = None) -> AlignedWindow:
        indices = range(4 * number, 4 * number + 12)
        view = self.predictor.view
        prediction, dynamic = self.predictor.window(indices), None
        if predict is not None:
            prediction, dynamic = predict(self.predictor, indices)
        dynamic = dynamic or scene.nothing_moves(indices, view.size)
        if self.origin is None:
            self.origin = se3.inverse(self.predictor.pose_world(indices[0]))
            self.map_scale = self.predictor.scale
        window = blank_window(view, indices)
        aligned = self.aligner.align(window, prediction, dynamic)
        self.events += [(number, event) for event in self.aligner.commit(aligned, window)]
        self.aligned.append(aligned)
        return aligned

    def run(self, count: int, predict: Predict | None = None) -> "Run":
        for number in range(count):
            self.step(number, predict)
        return self

    def truth(self, indices) -> Tensor:
        poses = torch.stack([self.origin @ self.predictor.pose_world(i) for i in indices])
        poses[:, :3, 3] *= self.map_scale
        return poses

    def error(self, aligned: AlignedWindow) -> float:
        return float((aligned.T_map_cam - self.truth(aligned.prediction.indices)).abs().max())

    @property
    def worst(self) -> float:
        return max(self.error(aligned) for aligned in self.aligned)


def new_gauge_each_window(seed: int = 0) -> Predict:
    """What a pointmap network does: turn, move and scale anew in every window."""

    def predict(predictor, indices):
        generator = torch.Generator().manual_seed(seed + indices[0])
        if indices[0]:
            predictor.scale = float(torch.exp(torch.randn((), generator=generator)))
            predictor.T_gauge_world = se3.exp(torch.randn(6, generator=generator).double())
        return predictor.window(indices), None

    return predict


@pytest.mark.parametrize("names_gauge", [True, False])
def test_an_exact_gauge_is_placed_exactly(names_gauge: bool) -> None:
    predictor = scene.ExactPredictor(T_gauge_world=TURNED, scale=0.5, names_gauge=names_gauge)
    run = Run(predictor).run(12)
    assert run.worst < 1e-12
    assert {aligned.scale for aligned in run.aligned} == {1.0}
    assert run.aligned[0].num_shared == 0 and run.aligned[-1].num_shared > 1000
    assert [event.kind for _, event in run.events] == [EventKind.INITIALISED]
    torch.testing.assert_close(run.aligned[0].T_map_cam[0], torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("names_gauge", "num_windows"), [(True, 200), (False, 300)])
def test_hundreds_of_windows_add_no_drift(names_gauge: bool, num_windows: int) -> None:
    view = scene.intrinsics(6, 8)
    predictor = scene.ExactPredictor(
        view=view, T_gauge_world=TURNED, scale=0.5, names_gauge=names_gauge, num_landmarks=50
    )
    run = Run(predictor)
    joins = set()
    for number in range(num_windows):
        aligned = run.step(number)
        run.aligned.clear()
        assert aligned.scale == 1.0
        joins.add(id(run.aligner._state.join))
        if number % 50 == 49:
            assert run.error(aligned) < 1e-9
    # The very same join to the last bit, so that the number of windows does not matter.
    assert not names_gauge or len(joins) == 1


@pytest.mark.parametrize("names_gauge", [True, False])
def test_noise_alone_never_moves_the_join(names_gauge: bool) -> None:
    predictor = scene.ExactPredictor(scale=0.5, noise=0.03, names_gauge=names_gauge)
    run = Run(predictor).run(40)
    assert run.worst < 1e-12
    assert all(aligned.scale == 1.0 for aligned in run.aligned)


def test_relative_poses_of_the_predictor_are_kept() -> None:
    predictor = scene.ExactPredictor(names_gauge=False, pose_noise=2e-3, noise=0.02)
    run = Run(predictor).run(5)
    for aligned in run.aligned:
        T_key_cam = aligned.prediction.T_key_cam.clone()
        T_key_cam[:, :3, 3] *= aligned.scale
        ours = se3.relative(aligned.T_map_cam[:1].expand(12, 4, 4), aligned.T_map_cam)
        theirs = se3.relative(T_key_cam[:1].expand(12, 4, 4), T_key_cam)
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert run.worst < 0.02


def test_the_poses_of_a_named_gauge_are_kept_while_its_depths_settle() -> None:
    predictor = scene.ExactPredictor(noise=0.005)
    run = Run(predictor).run(6)
    true_scale, predictor.scale = predictor.scale, 1.05
    drifted = [run.step(number) for number in range(6, 10)]
    assert true_scale != predictor.scale
    assert {aligned.scale for aligned in drifted} == {1.0}
    assert all(event.kind is not EventKind.MAP_CORRECTION for _, event in run.events)


def test_a_change_of_scale_between_unnamed_windows_is_followed() -> None:
    predictor = scene.ExactPredictor(noise=0.005, names_gauge=False)
    run = Run(predictor).run(6)
    predictor.scale = 1.15
    for number in range(6, 10):
        aligned = run.step(number)
    assert aligned.scale == pytest.approx(1 / 1.15, rel=2e-3)
    assert run.error(aligned) < 0.02


def test_forty_percent_wrong_landmarks_do_no_harm() -> None:
    def predict(predictor, indices):
        prediction, _ = new_gauge_each_window()(predictor, indices)
        wrong = prediction.landmarks_key.clone()
        generator = torch.Generator().manual_seed(indices[0])
        bad = torch.arange(len(wrong)) % 5 < 2  # say things that move: elsewhere every time
        wrong[bad] += predictor.scale * torch.randn(int(bad.sum()), 3, generator=generator)
        nowhere = tuple(torch.full_like(each, torch.nan) for each in prediction.points_key)
        nothing = torch.zeros_like(prediction.confidence)
        return replace(
            prediction, landmarks_key=wrong, points_key=nowhere, confidence=nothing
        ), None

    predictor = scene.ExactPredictor(names_gauge=False, num_landmarks=400)
    run = Run(predictor).run(8, predict)
    assert run.worst < 1e-6


@pytest.mark.parametrize(("noise", "bound"), [(0.0, 2e-6), (0.01, 0.08)])
def test_a_network_with_a_new_gauge_in_each_window(noise: float, bound: float) -> None:
    predictor = scene.ExactPredictor(
        names_gauge=False, gives_poses=False, num_landmarks=0, noise=noise
    )
    run = Run(predictor).run(15, new_gauge_each_window())
    assert run.worst < bound
    spread = torch.tensor([aligned.scale for aligned in run.aligned])
    assert float(spread.max() / spread.min()) > 5.0


@pytest.mark.parametrize("masked", [True, False])
def test_moving_pixels_do_no_harm(masked: bool) -> None:
    def predict(predictor, indices):
        prediction, _ = new_gauge_each_window()(predictor, indices)
        points, mask = (
            torch.stack(prediction.points_key),
            torch.zeros(12, 24, 32, dtype=torch.bool),
        )
        mask[:, 8:20, 4:18] = True  # a fifth of the image
        away = torch.arange(12.0) + 0.3 * indices[0]
        points[..., 0] += torch.where(mask, (0.1 * predictor.scale * away)[:, None, None], 0.0)
        still = scene.nothing_moves(indices, (24, 32))
        return replace(prediction, points_key=tuple(points)), replace(still, mask=mask & masked)

    predictor = scene.ExactPredictor(names_gauge=False, num_landmarks=0)
    run = Run(predictor).run(6, predict)
    assert run.worst < 1e-5


def test_before_there_is_depth_poses_are_trusted() -> None:
    """INITIALISING: no depth anywhere, then depth in the same gauge."""

    def predict(predictor, indices):
        prediction = predictor.window(indices, landmark_ids=None, landmarks_key=None)
        return replace(
            prediction,
            points_key=tuple(torch.full_like(each, torch.nan) for each in prediction.points_key),
            confidence=torch.zeros_like(prediction.confidence),
            states=(TrackingState.INITIALISING,) * 12,
        ), None

    run = Run(scene.ExactPredictor(T_gauge_world=TURNED, scale=0.5))
    run.step(0, predict)
    run.step(1, predict)
    assert run.events == []
    run.step(2)
    run.step(3)
    assert run.worst < 1e-12
    assert [(n, event.kind) for n, event in run.events] == [(2, EventKind.INITIALISED)]


def test_a_window_without_any_pose_changes_nothing() -> None:
    def predict(predictor, indices):
        prediction = predictor.window(indices)
        return replace(
            prediction, T_key_cam=torch.full_like(prediction.T_key_cam, torch.nan)
        ), None

    run = Run(scene.ExactPredictor()).run(3)
    aligned = run.step(3, predict)
    assert aligned.scale != aligned.scale and aligned.num_shared == 0
    # Frames that an earlier window posed keep their pose; the new ones have none.
    torch.testing.assert_close(aligned.T_map_cam[:8], run.truth(range(12, 20)))
    assert aligned.T_map_cam[8:].isnan().all()
    assert run.error(run.step(4)) < 1e-12


def test_align_changes_nothing_until_commit() -> None:
    run = Run(scene.ExactPredictor()).run(3)
    indices = range(12, 24)
    window = blank_window(run.predictor.view, indices)
    prediction = run.predictor.window(indices)
    dynamic = scene.nothing_moves(indices, run.predictor.view.size)
    before = run.aligner._state
    first = run.aligner.align(window, prediction, dynamic)
    second = run.aligner.align(window, prediction, dynamic)
    assert run.aligner._state is before
    assert torch.equal(first.T_map_cam, second.T_map_cam)
    run.aligner.commit(second, window)
    assert run.aligner._state is not before


@pytest.mark.parametrize("names_gauge", [True, False])
def test_locate_poses_each_frame_on_arrival(names_gauge: bool) -> None:
    predictor = scene.ExactPredictor(scale=0.5, T_gauge_world=TURNED, names_gauge=names_gauge)
    run = Run(predictor)
    rgb = torch.zeros(*predictor.view.size, 3, dtype=torch.uint8)
    for index in range(40):
        key = 0 if index < 12 else 4 * (index // 4) - 4
        frame = Frame(index, scene.stamp(index), rgb, predictor.view)
        located = run.aligner.locate(frame, predictor.frame(index, key))
        assert located.events == () and located.scale == 1.0
        if index % 4 == 3 and index >= 11:
            run.step((index - 11) // 4)
        truth = predictor.pose_world(index)
        expected = se3.inverse(predictor.pose_world(0)) @ truth
        torch.testing.assert_close(located.T_map_cam[:3, :3], expected[:3, :3])
        torch.testing.assert_close(located.T_map_cam[:3, 3], 0.5 * expected[:3, 3])


def test_results_of_other_frames_are_refused() -> None:
    predictor = scene.ExactPredictor()
    aligner, window = Aligner(AlignmentConfig()), blank_window(predictor.view, range(12))
    other = predictor.window(range(1, 13))
    still = scene.nothing_moves(range(1, 13), predictor.view.size)
    with pytest.raises(AlignmentError, match="this very window"):
        aligner.align(window, other, still)
    aligned = aligner.align(blank_window(predictor.view, range(1, 13)), other, still)
    with pytest.raises(AlignmentError, match="its own alignment"):
        aligner.commit(aligned, window)
    with pytest.raises(AlignmentError, match="this very frame"):
        aligner.locate(window.frames[3], predictor.frame(5, 0))

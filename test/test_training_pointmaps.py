"""Truth and losses of pointmaps: a square that slides before a wall, and values by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from training_clips import SlidingClips

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import TrainingError
from recon4d_ros.geometry import camera, se3
from recon4d_ros.networks.pomato import PairOutput
from recon4d_ros.training import pointmap_losses
from recon4d_ros.training.pointmap_targets import PointmapTargets, Surfaces, pointmap_targets
from recon4d_ros.training.pomato_task import depth_error, matching_error_px

SIZE, FRAMES = (40, 48), 4
K = torch.tensor([[40.0, 0.0, 23.5], [0.0, 40.0, 19.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
WALL, SQUARE, HALF = 6.0, 3.0, 0.55
# World steps per frame of the square, and of the camera, which also turns.
SLIDE = torch.tensor([0.15, 0.05, 0.0], dtype=torch.float64)
TWIST = torch.tensor([-0.1, 0.05, 0.06, 0.01, -0.02, 0.015], dtype=torch.float64)


def pose(frame: int) -> Tensor:
    return se3.exp(frame * TWIST)


def seen(frame: int) -> tuple[Tensor, Tensor]:
    """World points (H, W, 3) that a frame's pixels see, and which are of the square."""
    T = pose(frame)
    rays = camera.directions(camera.pixel_grid(SIZE, torch.float64), K) @ T[:3, :3].T
    at = {z: T[:3, 3] + rays * ((z - T[2, 3]) / rays[..., 2:]) for z in (WALL, SQUARE)}
    on_square = ((at[SQUARE] - frame * SLIDE)[..., :2].abs() <= HALF).all(dim=-1)
    return torch.where(on_square[..., None], at[SQUARE], at[WALL]), on_square


def square_clips() -> Clips:
    """The same clip twice."""
    views = [seen(frame) for frame in range(FRAMES)]
    in_cam = [se3.transform(se3.inverse(pose(f)), points) for f, (points, _) in enumerate(views)]
    steps = [
        (moves[..., None] * SLIDE) @ pose(f)[:3, :3] for f, (_, moves) in enumerate(views[:-1])
    ]

    def twice(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).expand(2, *[-1] * (parts[0].ndim + 1))

    return dataclasses.replace(
        SlidingClips(FRAMES, SIZE).clips(0, 2),
        T_world_cam=twice([pose(f) for f in range(FRAMES)]),
        K=K.expand(2, 3, 3),
        depth=twice([points[..., 2] for points in in_cam]).float(),
        dynamic_mask=twice([moves for _, moves in views]),
        scene_flow=twice(steps).float(),
    )


@pytest.mark.parametrize(("frame", "time"), [(0, 1), (0, 3), (2, 1), (3, 0), (1, 1)])
def test_points_are_found_at_another_time(frame: int, time: int) -> None:
    found = Surfaces(square_clips()).at_time(frame, time)
    points, moves = seen(frame)
    exact = points + moves[..., None] * (time - frame) * SLIDE
    known = found.isfinite().all(dim=-1)
    assert bool((known[0] == known[1]).all())
    error = (found[0].double() - exact).norm(dim=-1)
    assert float(error[known[0]].max()) < 1e-4
    assert known[0].double().mean() > 0.8
    assert known[0][moves].double().mean() > 0.6
    if (frame, time) in ((0, 1), (1, 1)):
        assert bool(known.all())


def test_targets_are_in_the_first_camera() -> None:
    true = pointmap_targets(square_clips(), [2, 0], [0, 0])
    assert true.points_1.shape == (4, *SIZE, 3)
    (points2, _), (points0, moves0) = seen(2), seen(0)
    to_cam2 = se3.inverse(pose(2))
    for clip in (0, 2):
        close(true.points_1[clip], se3.transform(to_cam2, points2))
        close(true.points_2_in_1[clip], se3.transform(to_cam2, points0))
        later = se3.transform(to_cam2, points0 + moves0[..., None] * 2 * SLIDE)
        known = true.matching_2_in_1[clip].isfinite().all(dim=-1)
        close(true.matching_2_in_1[clip][known], later[known])
        close(true.matching_2_in_1[clip + 1], true.points_2_in_1[clip + 1])


def close(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found.double(), exact.double(), atol=1e-4, rtol=0)


def test_clips_without_depth_are_refused() -> None:
    with pytest.raises(TrainingError, match="lack depth, T_world_cam, K, scene_flow"):
        Surfaces(SlidingClips().clips(0, 1))


def true_of(points: Tensor, second: Tensor, matching: Tensor) -> PointmapTargets:
    return PointmapTargets(points, second, matching, torch.eye(3).expand(len(points), 3, 3))


def said_of(points: Tensor, second: Tensor, matching: Tensor, confidence: float) -> PairOutput:
    conf = torch.full(points.shape[:-1], confidence)
    return PairOutput(points, conf, second, conf, matching, conf)


def test_a_right_answer_in_another_unit_costs_nothing_but_the_confidence() -> None:
    maps = torch.rand(3, 2, 4, 5, 3, generator=torch.Generator().manual_seed(0)) + 1.0
    true, said = true_of(*maps), said_of(*(7.0 * maps), confidence=math.e)
    for group in (1, 2):
        terms = pointmap_losses.pointmap_losses(said, true, group, alpha=0.2)
        for loss in terms.values():
            assert float(loss) == pytest.approx(-0.2, abs=1e-5)


def test_losses_by_hand() -> None:
    # One pixel each: distances 2 and 4 make the unit 3 in truth, 1 and 1 make it 1 as said.
    z = torch.tensor([0.0, 0.0, 1.0])
    true = true_of(*(part * z.expand(1, 1, 1, 3) for part in (2.0, 4.0, 6.0)))
    said = said_of(*(part * z.expand(1, 1, 1, 3) for part in (1.0, 1.0, 1.0)), confidence=2.0)
    terms = pointmap_losses.pointmap_losses(said, true, 1, alpha=0.2)
    rest = 0.2 * math.log(2.0)
    assert float(terms["points_1"]) == pytest.approx(2 * (1 - 2 / 3) - rest)
    assert float(terms["points_2"]) == pytest.approx(2 * (4 / 3 - 1) - rest)
    assert float(terms["matching"]) == pytest.approx(2 * (2 - 1) - rest)


def test_one_unit_for_a_window_sees_what_units_for_frames_do_not() -> None:
    maps = torch.rand(3, 2, 4, 5, 3, generator=torch.Generator().manual_seed(1)) + 1.0
    scale = torch.tensor([1.0, 2.0])[:, None, None, None]
    true, said = true_of(*maps), said_of(*(scale * maps), confidence=1.0)
    per_frame = pointmap_losses.pointmap_losses(said, true, 1, 0.2)
    per_clip = pointmap_losses.pointmap_losses(said, true, 2, 0.2)
    assert float(per_frame["points_1"]) == pytest.approx(0.0, abs=1e-5)
    assert float(per_clip["points_1"]) > 0.2


def test_gradients_equal_differences_and_ignore_what_is_unknown() -> None:
    draw = torch.Generator().manual_seed(2)
    maps = torch.rand(3, 2, 2, 3, 3, generator=draw, dtype=torch.float64) + 0.5
    maps[:, :, 0, 0] = torch.nan
    true = true_of(*maps)
    start = torch.rand(3, 2, 2, 3, 3, generator=draw, dtype=torch.float64) + 0.5
    confidence = 1.0 + torch.rand(3, 2, 2, 3, generator=draw, dtype=torch.float64)

    def total(points: Tensor, conf: Tensor) -> Tensor:
        said = PairOutput(points[0], conf[0], points[1], conf[1], points[2], conf[2])
        return sum(pointmap_losses.pointmap_losses(said, true, 2, 0.2).values())

    inputs = (start.requires_grad_(), confidence.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)
    total(*inputs).backward()
    assert bool((start.grad[:, :, 0, 0] == 0).all()) and bool(start.grad.isfinite().all())


def test_figures_by_hand() -> None:
    clips = square_clips()
    true = pointmap_targets(clips, [1], [0])
    exact = [true.points_1, true.points_2_in_1, true.matching_2_in_1]
    perfect = said_of(*(3.0 * part for part in exact), confidence=2.0)
    assert float(depth_error(perfect, true)) == pytest.approx(0.0, abs=1e-5)
    assert float(matching_error_px(perfect, true)) == pytest.approx(0.0, abs=1e-3)
    # A quarter of the pixels too deep by 30 % leave the median scale; z / f is 1 px aside.
    wrong = [part.clone() for part in exact]
    wrong[1][:, ::4, :, 2] *= 1.3
    wrong[2][..., 0] += wrong[2][..., 2] / 40.0
    said = said_of(*wrong, confidence=2.0)
    assert float(depth_error(said, true)) == pytest.approx(0.3 / 4, rel=1e-3)
    assert float(matching_error_px(said, true)) == pytest.approx(1.0, rel=1e-3)

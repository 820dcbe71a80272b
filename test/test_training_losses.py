"""Losses of the tracker against values worked by hand, and their gradients against differences."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import CameraMotion, Clips
from recon4d_ros.training import track_losses
from recon4d_ros.training.config import TrackLossConfig
from recon4d_ros.training.track_figures import TrackFigures

NAN = math.nan
LN2 = math.log(2.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    uv: Tensor
    visibility_logit: Tensor
    confidence_logit: Tensor
    mobility_logit: Tensor

    def clip_mobility(self) -> Tensor:
        return self.mobility_logit.mean(dim=1)


def clips_of(tracks: list[list[list[float]]], visibility: list[list[bool]], **others) -> Clips:
    """One clip of tracks [frame][point] in images of 512 x 256."""
    uv = torch.tensor([tracks])
    num_frames, num_points = uv.shape[1:3]
    known = {
        "rgb": torch.zeros(1, num_frames, 256, 512, 3, dtype=torch.uint8),
        "queries": torch.zeros(1, num_points, 3),
        "moves_in_clip": torch.zeros(1, num_points, dtype=torch.bool),
        "moves_in_frame": torch.zeros(1, num_frames, num_points, dtype=torch.bool),
        "is_judged": torch.ones(1, num_points, dtype=torch.bool),
        "object_ids": torch.zeros(1, num_points, dtype=torch.int64),
        "camera_motion": (CameraMotion.STANDING,),
    }
    return Clips(tracks=uv, visibility=torch.tensor([visibility]), **known | others)


def estimate_of(uv: Tensor, logit: float = 0.0) -> Estimate:
    logits = torch.full(uv.shape[:-1], logit)
    return Estimate(uv, logits, logits.clone(), logits.clone())


def test_positions_by_hand() -> None:
    # Point 0: seen, off by (3, 0), then by (10, 0): Huber 9/2 and 4 (10 - 2), halved over x and y.
    # Point 1: hidden, off by (1, 2), unknown in frame 1. Point 2 is asked for in frame 1 only.
    clips = clips_of(
        [[[0, 0], [0, 0], [0, 0]], [[0, 0], [NAN, NAN], [0, 0]]],
        [[True, False, True], [True, False, False]],
        queries=torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]]),
    )
    uv = torch.tensor([[[[3.0, 0], [1, 2], [99, 99]], [[10.0, 0], [5, 5], [0, 4]]]])
    uv.requires_grad_()
    seen, hidden = track_losses.position_losses(uv, clips, track_losses.asked_frames(clips), 4.0)
    assert float(seen.detach()) == pytest.approx((4.5 / 2 + 32.0 / 2) / 2)
    assert float(hidden.detach()) == pytest.approx((1.5 + 2.0) / 2)
    (seen + hidden).backward()
    assert bool(uv.grad.isfinite().all())
    assert bool((uv.grad[0, 0, 2] == 0).all()) and bool((uv.grad[0, 1, 1] == 0).all())


def test_confidence_is_of_being_within_the_radius_where_seen() -> None:
    clips = clips_of([[[0, 0], [0, 0], [0, 0], [NAN, NAN]]], [[True, True, False, True]])
    uv = torch.tensor([[[[12.0, 0], [12.1, 0], [0, 0], [0, 0]]]])
    logit = torch.tensor([[[2.0, 1.0, 50.0, 50.0]]])
    asked = track_losses.asked_frames(clips)
    loss = track_losses.confidence_loss(logit, uv, clips, asked, 12.0)
    by_hand = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.0))) / 2
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)


def test_few_moving_points_weigh_as_much_as_many_static_ones() -> None:
    target = torch.tensor([[True, False, False, False, True]])
    counted = torch.tensor([[True, True, True, True, False]])
    logit = torch.tensor([[-1.0, 0.0, 0.0, 0.0, -90.0]])
    loss = track_losses.balanced_loss(logit, target, counted)
    assert float(loss) == pytest.approx((math.log(1 + math.e) + LN2) / 2)
    only = track_losses.balanced_loss(logit, target, counted & ~target)
    assert float(only) == pytest.approx(LN2)
    assert float(track_losses.balanced_loss(logit, target, counted & False)) == 0.0


def test_the_total_weighs_refinements_and_ignores_points_that_are_not_judged() -> None:
    clips = clips_of(
        [[[0, 0], [0, 0]]],
        [[True, True]],
        is_judged=torch.tensor([[True, False]]),
        moves_in_clip=torch.tensor([[False, True]]),
        moves_in_frame=torch.tensor([[[False, True]]]),
    )
    weights = TrackLossConfig(gamma=0.5, huber_px=4.0)
    far, near = torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 2, 2)
    terms = track_losses.track_losses([estimate_of(far), estimate_of(near)], clips, weights)
    assert float(terms["visible"]) == pytest.approx(0.05 * 0.5 * 2.0 / 2)
    assert float(terms["visibility"]) == pytest.approx(LN2)
    assert float(terms["mobility_clip"]) == float(terms["mobility_frame"]) == pytest.approx(LN2)
    wrong = estimate_of(near)
    wrong.mobility_logit[..., 1] = -50.0
    sure = track_losses.track_losses([wrong], clips, weights)
    assert float(sure["mobility_clip"]) == pytest.approx(LN2)


def test_gradients_equal_differences() -> None:
    draw = torch.Generator().manual_seed(3)
    frames, points = 3, 5
    clips = clips_of(
        (20 * torch.rand(frames, points, 2, generator=draw)).tolist(),
        (torch.rand(frames, points, generator=draw) < 0.6).tolist(),
        queries=torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0]]]),
        moves_in_clip=torch.tensor([[True, False, True, False, False]]),
        moves_in_frame=torch.rand(1, frames, points, generator=draw) < 0.5,
    )
    clips = dataclasses.replace(clips, tracks=clips.tracks.double())
    uv = 20 * torch.rand(1, frames, points, 2, generator=draw, dtype=torch.float64)
    logits = torch.randn(3, 1, frames, points, generator=draw, dtype=torch.float64)

    def total(uv: Tensor, logits: Tensor) -> Tensor:
        # The confidence's target depends on the positions and has no gradient by design.
        weights = TrackLossConfig(confidence=0.0)
        return sum(track_losses.track_losses([Estimate(uv, *logits)], clips, weights).values())

    assert torch.autograd.gradcheck(total, (uv.requires_grad_(), logits.requires_grad_()))


def test_figures_by_hand() -> None:
    # 256 px high and 512 wide: an error of (6, 0) px is one of 3 in a square of 256.
    clips = clips_of(
        [[[0, 0], [0, 0], [0, 0]]] * 3,
        [[True] * 3, [True, True, False], [True, False, False]],
        queries=torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 0, 0]]]),
        moves_in_clip=torch.tensor([[True, False, False]]),
        moves_in_frame=torch.tensor([[[True, False, False]] * 3]),
    )
    uv = torch.zeros(1, 3, 3, 2)
    uv[0, 1, 0] = torch.tensor([6.0, 0.0])
    estimate = estimate_of(uv, 1.0)
    estimate.mobility_logit[..., 1] = -1.0
    held = TrackFigures()
    held.add(estimate, clips)
    figures = held.figures()
    # Seen after their queries: point 0 in frames 1 and 2. Of 5 thresholds 3 px meets 3.
    assert figures["mean_error_px"] == pytest.approx(3.0)
    assert figures["delta_avg"] == pytest.approx((3 / 5 + 1) / 2)
    # After the queries: point 0 twice, point 1 once, point 2 twice; all are said to be seen.
    assert figures["occlusion_accuracy"] == pytest.approx(2 / 5)
    assert figures["mobility_recall"] == 1.0
    assert figures["mobility_accuracy"] == pytest.approx((1.0 + 0.5) / 2)

"""Points that follow dense flow: against a picture that slides and against exact flow fields."""

import cv2
import numpy as np
import pytest
import torch

from recon4d_ros.predictors.chained_flow import (
    FlowStep,
    flow_steps,
    follow,
    followed_tracks,
    guessed_tracks,
    searched_flow,
)

SIZE = (64, 96)


def constant(u: float, v: float, valid: bool = True) -> FlowStep:
    flow = np.tile(np.float32([u, v]), (*SIZE, 1))
    mask = np.full(SIZE, valid)
    return FlowStep(flow, mask, -flow, mask)


def test_points_go_with_the_flow_both_ways_in_time() -> None:
    steps = [constant(1.0, 0.0), constant(2.0, -1.0), constant(0.0, 3.0)]
    uv, seen = follow(steps, np.array([[0, 20.0, 30.0], [2, 40.5, 30.25], [3, 50.0, 20.0]]))
    way = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, -1.0], [3.0, 2.0]])
    for column, (frame, start) in enumerate(((0, (20, 30)), (2, (40.5, 30.25)), (3, (50, 20)))):
        np.testing.assert_allclose(uv[:, column], np.array(start) + way - way[frame], atol=1e-5)
    assert seen.all()


def test_a_point_is_lost_from_its_first_doubtful_step_on() -> None:
    steps = [constant(1, 0), constant(1, 0, valid=False), constant(1, 0)]
    _, seen = follow(steps, np.array([[0, 9.0, 9.0], [2, 9.0, 9.0]]))
    assert seen[:, 0].tolist() == [True, True, False, False]
    assert seen[:, 1].tolist() == [False, False, True, True]


def test_no_points_go_nowhere() -> None:
    uv, seen = follow([constant(1, 0)], np.zeros((0, 3)))
    assert uv.shape == (2, 0, 2) and seen.shape == (2, 0)


@pytest.fixture(scope="module")
def sliding() -> torch.Tensor:
    """(1, 4, H, W, 3) that moves by (1.5, -0.5) px per frame."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 1.5)

    def at(frame: int) -> np.ndarray:
        shift = np.float64([[1, 0, 40 - 1.5 * frame], [0, 1, 40 + 0.5 * frame]])
        options = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(picture, shift, SIZE[::-1], flags=options)

    return torch.from_numpy(np.stack([at(frame) for frame in range(4)]))[None]


def test_guessed_tracks_follow_a_real_picture(sliding: torch.Tensor) -> None:
    queries = torch.tensor([[[0.0, 30, 30], [1.0, 50, 40], [3.0, 60, 20]]])
    state = guessed_tracks(sliding, queries)
    frames = torch.arange(4.0)[:, None, None]
    expected = queries[0, :, 1:] + (frames - queries[0, :, :1]) * torch.tensor([1.5, -0.5])
    assert (state.uv[0] - expected).norm(dim=-1).max() < 0.2
    assert (state.visibility_logit > 0).all()
    assert (state.confidence_logit == 0).all() and (state.mobility_logit == 0).all()


def test_what_comes_into_view_or_leaves_it_is_doubtful(sliding: torch.Tensor) -> None:
    right_border = torch.tensor([[[0.0, 94.0, 30.0]]])
    state = guessed_tracks(sliding, right_border)
    assert state.visibility_logit[0, 0, 0] > 0 and (state.visibility_logit[0, 2:, 0] < 0).all()


def test_time_runs_both_ways(sliding: torch.Tensor) -> None:
    images = [image[..., 1].numpy() for image in sliding[0]]
    ahead, behind = flow_steps(images), flow_steps(images[::-1])
    turned = behind[-1].reversed()
    np.testing.assert_array_equal(ahead[0].onwards, turned.onwards)
    np.testing.assert_array_equal(ahead[0].backwards_valid, turned.backwards_valid)


def test_batches_are_followed_as_single_points_are(sliding: torch.Tensor) -> None:
    """Against `follow`, which a stream uses: other arithmetic, half precision of the flow."""
    draw = torch.Generator().manual_seed(2)
    both = torch.cat([sliding, sliding.flip(1, 3)])
    place = torch.rand(2, 60, 2, generator=draw) * torch.tensor([95.0, 63.0])
    frame = torch.randint(4, (2, 60, 1), generator=draw).float()
    queries = torch.cat([frame, place], dim=-1)
    together = followed_tracks(searched_flow(both), queries)
    for row, clip in enumerate(both):
        steps = flow_steps([cv2.cvtColor(i.numpy(), cv2.COLOR_RGB2GRAY) for i in clip])
        uv, seen = follow(steps, queries[row].double().numpy())
        apart = np.linalg.norm(together.uv[row].numpy() - uv, axis=-1)
        assert np.median(apart) < 0.02 and np.quantile(apart, 0.95) < 0.2
        assert ((together.visibility_logit[row].numpy() > 0) == seen).mean() > 0.97

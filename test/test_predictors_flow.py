"""Dense flow: exact truth of shifted and warped textures, chains, validity, limits."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from recon4d_ros.config import Config
from recon4d_ros.errors import PredictorError
from recon4d_ros.predictors.flow import BRIDGE_STEPS, FlowHistory, dominant_shift, structure_tensor

SIZE = (120, 160)


def _texture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(400, 400)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5) + cv2.GaussianBlur(noise, (0, 0), 6.0) * 4
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


def _view(texture: np.ndarray, x: float, y: float) -> np.ndarray:
    """What a camera sees whose first pixel lies at (x, y) of the texture."""
    shift = np.array([[1, 0, -x], [0, 1, -y]], np.float64)
    return cv2.warpAffine(texture, shift, SIZE[::-1], flags=cv2.INTER_CUBIC).astype(np.uint8)


def _sliding(speed: float, count: int) -> list[np.ndarray]:
    texture = _texture()
    return [_view(texture, 80 + speed * i, 100 + 0.5 * speed * i) for i in range(count)]


def _history(**changes: float) -> FlowHistory:
    return FlowHistory(Config().replaced({f"flow.{k}": v for k, v in changes.items()}).flow)


def _pushed(history: FlowHistory, views: list[np.ndarray]) -> list:
    return [history.push(index, view) for index, view in enumerate(views)]


def test_flow_and_chains_match_the_exact_shift():
    history = _history(max_step=2, num_partners=3)
    fields = _pushed(history, _sliding(0.7, 9))[-1]
    assert [(f.source, f.target) for f in fields[::2]] == [(8, 6), (8, 4), (8, 2)]
    for field in fields:
        shift = 0.7 * (field.source - field.target)
        error = field.flow - torch.tensor([shift, 0.5 * shift])
        assert field.valid.float().mean() > 0.8
        assert error.norm(dim=-1)[field.valid].median() < 0.1


def test_both_directions_come_for_every_partner():
    fields = _pushed(_history(), _sliding(1.0, 8))[-1]
    for there, back in zip(fields[::2], fields[1::2], strict=True):
        assert (there.source, there.target) == (back.target, back.source)


@pytest.mark.parametrize("gain", [0.85, 1.15])
def test_exposure_is_no_motion(gain: float):
    texture, history = _texture(), _history()
    history.push(0, _view(texture, 80, 100))
    brighter = cv2.convertScaleAbs(_view(texture, 82.3, 101), alpha=gain)
    for field, sign in zip(history.push(1, brighter), (1, -1), strict=True):
        error = (field.flow - sign * torch.tensor([2.3, 1.0])).norm(dim=-1)
        assert field.valid.float().mean() > 0.85
        assert error[field.valid].mean() < 0.06


def test_a_view_that_jumps_is_found_by_its_looks():
    """A third of the view per frame; the search by itself stops at a tenth."""
    texture = _texture()
    history = _history()
    history.push(0, _view(texture, 20, 100))
    for index, x in enumerate((70, 125), start=1):
        there, back = history.push(index, _view(texture, x, 100 + 4 * index))[:2]
        shift = torch.tensor([x - (20, 70)[index - 1], 4.0])
        for field, exact in ((there, shift), (back, -shift)):
            overlap = field.valid.float().mean()
            assert overlap > 0.5, "of two thirds that both show"
            assert (field.flow - exact).norm(dim=-1)[field.valid].median() < 0.1


def test_a_view_whose_looks_mislead_is_sought_as_it_went_before():
    """A thing stays in the middle of a paler background that goes by faster and faster."""
    thing, history = _view(_texture(1), 0, 0)[40:80, 50:110], _history()
    x = np.cumsum((10, 8, 16, 24, 32, 38, 44))
    for index, at in enumerate(x):
        view = 100 + _view(_texture(), at, 100) // 5
        view[40:80, 50:110] = thing
        fields = history.push(index, view)
    valid = fields[0].valid & ((fields[0].flow - torch.tensor([44.0, 0.0])).norm(dim=-1) < 1)
    assert valid.float().mean() > 0.3


def test_the_shift_of_a_view_is_found_to_its_sign():
    texture = _texture()
    found = dominant_shift(_view(texture, 90, 80), _view(texture, 58, 96))
    assert np.abs(found - (32, -16)).max() <= 4, "one px of the small images"


@pytest.mark.parametrize(("speed", "frames_back"), [(0.3, 3), (0.7, 2), (1.6, 1)])
def test_partner_is_nearer_the_faster_the_image(speed: float, frames_back: int):
    fields = _pushed(_history(max_step=3), _sliding(speed, 8))[-1]
    assert fields[0].source - fields[0].target == frames_back


def test_start_of_a_stream():
    steps = _pushed(_history(max_step=3, num_partners=3), _sliding(0.2, 8))
    assert steps[0] == ()
    assert [len(step) // 2 for step in steps] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_skipped_frames_bridge_to_the_last_one_with_flow():
    """Every fifth frame has flow: it is reached over a near skipped one and a farther one."""
    history, found = _history(max_step=3, num_partners=3), []
    for index, view in enumerate(_sliding(1.6, 16)):
        if index % 5:
            history.skip(index, view)
        else:
            found.append(history.push(index, view))
    assert [(f.source, f.target) for f in found[1][::2]] == [(5, 4), (5, 0)]
    assert [(f.source, f.target) for f in found[3][::2]] == [(15, 14), (15, 12), (15, 10)]
    for field in found[3]:
        shift = 1.6 * (field.source - field.target)
        error = field.flow - torch.tensor([shift, 0.5 * shift])
        assert field.valid.float().mean() > 0.6
        assert error.norm(dim=-1)[field.valid].median() < 0.1


def test_skipped_frames_do_not_matter_where_the_image_hardly_moves():
    views = _sliding(0.05, 7)
    plain, shown = _history(max_step=3), _history(max_step=3)
    for index, view in enumerate(views):
        if index in (4, 5):
            shown.skip(index, view)
        else:
            a, b = plain.push(index, view), shown.push(index, view)
    assert [(f.source, f.target) for f in b[::2]] == [(f.source, f.target) for f in a[::2]]
    for ours, theirs in zip(a, b, strict=True):
        assert torch.equal(ours.flow, theirs.flow)


def test_skipped_frames_come_in_order_and_size_and_are_forgotten():
    history, view = _history(), _view(_texture(), 80, 100)
    history.push(0, view)
    history.skip(2, view)
    with pytest.raises(PredictorError, match="frame 2 came after frame 2"):
        history.push(2, view)
    with pytest.raises(PredictorError, match="reset the history"):
        history.skip(3, view[:60])
    for index in range(3, 40):
        history.skip(index, view)
    assert len(history._skipped) == BRIDGE_STEPS * Config().flow.max_step
    history.reset()
    assert history.push(0, view) == ()


def test_pixels_that_leave_the_image_are_invalid():
    field = _pushed(_history(max_step=1), _sliding(6.0, 3))[-1][0]
    assert field.flow[..., 0].median() > 5
    assert not field.valid[:, -5:].any()


def test_covered_pixels_are_invalid():
    views = [_view(_texture(), 80, 100) for _ in range(2)]
    patch = _view(_texture(1), 0, 0)[:40, :40]
    views[0][40:80, 40:80], views[1][40:80, 52:92] = patch, patch
    forward = _pushed(_history(max_step=1), views)[-1][1]
    assert forward.valid[50:70, 45:75].float().mean() > 0.8
    assert forward.valid[50:70, 84:90].float().mean() < 0.3


def test_structure_tensor_predicts_the_grey_difference_of_a_wrong_flow():
    texture = _texture()
    view, moved = (_view(texture, 80 + dx, 100).astype(np.float64) for dx in (0.0, 0.5))
    seen = cv2.blur((view - moved) ** 2, (7, 7))
    predicted = 0.25 * structure_tensor(view.astype(np.uint8))[..., 0]
    ratio = np.median(predicted[10:-10, 10:-10] / (seen[10:-10, 10:-10] + 1e-6))
    assert 0.4 < ratio < 1.2  # the tensor is slightly blurred


def test_two_runs_give_identical_flow():
    views = _sliding(1.0, 5)
    first, second = (_pushed(_history(), views)[-1] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.flow, other.flow)
        assert torch.equal(one.valid, other.valid)


def test_reset_starts_anew():
    history = _history()
    _pushed(history, _sliding(1.0, 4))
    history.reset()
    assert history.push(0, np.zeros((32, 48), np.uint8)) == ()


@pytest.mark.parametrize(
    ("index", "image", "words"),
    [
        (9, np.zeros(SIZE, np.float32), "grey uint8"),
        (9, np.zeros((*SIZE, 3), np.uint8), "grey uint8"),
        (9, np.zeros((8, 8), np.uint8), "at least 16"),
        (9, np.zeros((60, 80), np.uint8), "changes size"),
        (2, np.zeros(SIZE, np.uint8), "in order"),
    ],
)
def test_refused_frames_leave_the_history_as_it_was(index: int, image: np.ndarray, words: str):
    views = _sliding(1.0, 6)
    refusing, untouched = _history(), _history()
    _pushed(refusing, views[:5])
    _pushed(untouched, views[:5])
    with pytest.raises(PredictorError, match=words):
        refusing.push(index, image)
    for one, other in zip(refusing.push(5, views[5]), untouched.push(5, views[5]), strict=True):
        assert torch.equal(one.flow, other.flow)

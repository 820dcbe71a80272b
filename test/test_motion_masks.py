"""Masks of what moves on scenes with exact flow: what must be found, what must not be invented."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flow_scene import SIZE, FlowScene, ellipse, overlap, pixels

from recon4d_ros.config import Config
from recon4d_ros.datatypes import FlowField
from recon4d_ros.motion.background import fit_background, narrowest_interval, residual
from recon4d_ros.motion.cleanup import clean_up, drop_small, fill_holes, fill_undecided
from recon4d_ros.motion.epipolar_pair import PairEvidence, pair_evidence, spread
from recon4d_ros.motion.fusion import join
from recon4d_ros.motion.segmentation import Segmenter

SCALE = 320 / 512
SIDEWAYS = FlowScene(translation=(-0.05, 0, 0), object_motion=(0, 0.05, 0))
FORWARD = FlowScene(translation=(0, 0, -0.15), object_motion=(0.05, 0.02, 0))
TURNING = replace(SIDEWAYS, rotation_deg=(0.1, 0.4, 0.1))
ROTATION = FlowScene(rotation_deg=(0.1, 0.5, 0.2), object_motion=(0.05, 0, 0))
STANDING = FlowScene(object_motion=(0.04, 0.02, 0), noise_px=0.05)
PLANE = FlowScene(
    translation=(-0.08, 0, -0.02), object_motion=(0.08, 0.03, 0), depth=6 + 0.01 * pixels()[..., 1]
)
SCENES = {
    "sideways": SIDEWAYS,
    "forward": FORWARD,
    "sideways and turning": TURNING,
    "rotation": ROTATION,
    "standing camera": STANDING,
    "plane": PLANE,
}


def _config(**changes: object):
    return Config().replaced({f"motion.{k}": v for k, v in changes.items()}).motion


def _mask(scene: FlowScene, **changes: object) -> np.ndarray:
    prediction = scene.arrival(10)
    return Segmenter(_config(**changes)).segment_frame(prediction).mask[0].numpy()


@pytest.mark.parametrize("fusion", ["hysteresis", "union"])
@pytest.mark.parametrize("name", SCENES)
def test_moving_thing_is_found(name: str, fusion: str):
    scene = SCENES[name]
    assert overlap(_mask(scene, fusion=fusion), scene.moving) > 0.9


@pytest.mark.parametrize("noise_px", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_invented_where_nothing_moves(name: str, noise_px: float):
    scene = replace(SCENES[name], object_motion=(0, 0, 0), noise_px=noise_px)
    assert _mask(scene).mean() < 0.005


def test_static_points_fit_and_the_other_direction_agrees():
    scene = replace(SIDEWAYS, noise_px=0.0)
    for source, target in ((10, 7), (7, 10)):
        flow = scene.flow(source, target)
        _, found = fit_background(flow.flow.numpy(), flow.valid.numpy(), SCALE)
        assert np.percentile(found.across[~scene.moving & flow.valid.numpy()] ** 2, 99) < 1e-6
        assert np.median(found.across[scene.moving]) > 1


def test_sampson_distance_does_not_care_which_frame_is_first():
    """The same correspondences backwards, with F transposed."""
    flow = replace(FORWARD, noise_px=0.3).flow(10, 7).flow.numpy()
    fitted, _ = fit_background(flow, np.ones(SIZE, bool), SCALE)
    found = residual(fitted.H, fitted.F, flow).across
    ones = np.ones((*SIZE, 1))
    here = np.concatenate([pixels(), ones], -1)
    there = np.concatenate([pixels() + flow, ones], -1)
    F = fitted.F.T
    line, back = there @ F.T, here @ F
    slope = (line[..., :2] ** 2).sum(-1) + (back[..., :2] ** 2).sum(-1)
    swapped = np.abs((here * line).sum(-1)) / np.sqrt(slope)
    assert np.allclose(found, swapped, atol=0.01)


def _spoilt(scene: FlowScene, share: float) -> FlowField:
    """A share of the pixels goes anywhere, each on its own."""
    field, random = scene.flow(10, 7), np.random.default_rng(0)
    wild = torch.from_numpy(random.random(SIZE) < share)
    anywhere = torch.from_numpy(random.uniform(-20, 20, (*SIZE, 2)).astype(np.float32))
    return replace(field, flow=torch.where(wild[..., None], anywhere, field.flow))


def test_two_fifths_of_outliers_leave_the_epipole_where_it_is():
    scene = FlowScene(translation=(0, 0, -0.15), noise_px=0.05)
    field = _spoilt(scene, 0.4)
    fitted, _ = fit_background(field.flow.numpy(), field.valid.numpy(), SCALE)
    x, y, w = np.linalg.svd(fitted.F)[0][:, 2]
    assert np.hypot(x / w - (SIZE[1] - 1) / 2, y / w - (SIZE[0] - 1) / 2) < 2
    assert pair_evidence(field, _config()) is not None


@pytest.mark.parametrize("share", [0.55, 0.7])
def test_too_many_outliers_are_told(share: float):
    """The pair has no vote: fewer than 60 % of the samples fit what was found."""
    scene = FlowScene(translation=(0, 0, -0.15), noise_px=0.05)
    assert pair_evidence(_spoilt(scene, share), _config()) is None


def test_residual_without_lines_is_the_homographys():
    flow = np.zeros((*SIZE, 2), np.float32)
    flow[...] = (3.0, 4.0)
    found = residual(np.eye(3), None, flow)
    assert np.allclose(found.across, 5 / np.sqrt(2))
    assert not found.parallax.any()


def test_thing_that_covers_a_third_is_still_the_thing():
    scene = replace(ROTATION, moving=ellipse((150, 90), (110, 60)))
    assert 0.33 < scene.moving.mean() < 0.4
    assert overlap(_mask(scene), scene.moving) > 0.9


def test_small_motion_along_the_epipolar_lines_is_the_known_limit():
    """A thing that moves with the camera's parallax looks like a thing at another depth."""
    scene = replace(SIDEWAYS, object_motion=(-0.02, 0, 0))
    assert _mask(scene).mean() < 0.005


def test_large_motion_along_the_epipolar_lines_is_no_depth():
    scene = replace(SIDEWAYS, object_motion=(0.3, 0, 0), translation=(-0.02, 0, 0))
    assert overlap(_mask(scene), scene.moving) > 0.8


def test_flow_without_structure_has_no_vote():
    assert overlap(_mask(replace(ROTATION, structure=None)), ROTATION.moving) > 0.9
    assert not _mask(replace(ROTATION, structure=(0.01, 0.0, 0.01))).any()


def test_noise_raises_the_threshold():
    quiet, noisy = (
        pair_evidence(replace(SIDEWAYS, noise_px=noise).flow(10, 7), _config())
        for noise in (0.05, 0.5)
    )
    assert np.median(noisy.evidence[SIDEWAYS.moving]) < np.median(quiet.evidence[SIDEWAYS.moving])
    assert (noisy.evidence[~SIDEWAYS.moving] > 1).mean() < 0.02


def _random_flow() -> FlowField:
    generator = np.random.default_rng(0)
    flow = torch.from_numpy(generator.uniform(-9, 9, (*SIZE, 2)).astype(np.float32))
    return FlowField(10, 1, flow, torch.ones(SIZE, dtype=torch.bool))


def test_pair_that_fits_nothing_casts_no_vote():
    assert pair_evidence(_random_flow(), _config()) is None
    arrival = SIDEWAYS.arrival(10)
    spoilt = SimpleNamespace(**{**vars(arrival), "flows": (_random_flow(),)})
    dynamic = Segmenter(_config()).segment_frame(spoilt)
    assert not dynamic.mask.any() and not dynamic.decided.any()


def test_votes_grow_with_the_logarithm_within_their_bounds():
    evidence = np.float32([[1e-9, 0.1, 0.5, 1.0, 2.0, 1e9, np.nan]])
    decided = np.isfinite(evidence)
    belief = join([PairEvidence(0, 3, evidence, decided, loudness=3.0)], evidence.shape).belief
    assert np.allclose(belief / 3, [[-0.4, -0.230, -0.0693, 0.0, 0.693, 2.0, 0.0]], atol=1e-3)


def test_pair_with_hardly_a_valid_pixel_casts_no_vote():
    flow = SIDEWAYS.flow(10, 7)
    flow.valid[:] = False
    assert pair_evidence(flow, _config()) is None


def test_first_frame_is_undecided():
    first = Segmenter(_config()).segment_frame(SIDEWAYS.arrival(0, offsets=()))
    assert not first.mask.any()
    assert not first.decided.any()


def test_thing_that_rests_now_and_moves_later_is_found_by_the_final_mask():
    resting, moving = replace(SIDEWAYS, object_motion=(0, 0, 0)), SIDEWAYS
    segmenter = Segmenter(_config())
    depth = np.where(SIDEWAYS.moving, 4.0, SIDEWAYS.depth)
    provisional = segmenter.segment_frame(replace(resting, depth=depth).arrival(10))
    assert not provisional.mask.any()
    final = segmenter.segment(moving.window(8, 16), [10])
    assert final.indices == (10,)
    found = final.of(10).numpy()
    assert found[SIDEWAYS.moving].all()
    # What six frames later is believed arrives too wide by the flow: the scene's mask stays.
    assert overlap(found, SIDEWAYS.moving) > 0.75


def test_what_a_final_mask_learnt_is_handed_on():
    """Later frames tell that it moves in frame 10; frame 13 hears of it from there alone."""
    depth = np.where(SIDEWAYS.moving, 4.0, SIDEWAYS.depth)
    resting = replace(SIDEWAYS, object_motion=(0, 0, 0), depth=depth)

    def last_mask(known_later: FlowScene) -> np.ndarray:
        segmenter = Segmenter(_config())
        for index in (10, 13):
            assert not segmenter.segment_frame(resting.arrival(index)).mask.any()
        segmenter.segment(known_later.window(8, 16), [10])
        return segmenter.segment(resting.window(8, 16), [13]).of(13).numpy()

    assert not last_mask(resting).any()
    assert overlap(last_mask(SIDEWAYS), SIDEWAYS.moving) > 0.7


def test_thing_that_stops_is_remembered():
    segmenter = Segmenter(_config())
    still = replace(STANDING, object_motion=(0, 0, 0))
    segmenter.segment_frame(STANDING.arrival(10))
    remembered = segmenter.segment_frame(still.arrival(13)).mask[0].numpy()
    assert overlap(remembered, STANDING.moving) > 0.8
    for index in range(16, 60, 3):
        mask = segmenter.segment_frame(still.arrival(index)).mask
    assert not mask.any()


def test_final_masks_depend_neither_on_other_wishes_nor_on_repetition():
    window = TURNING.window(8, 16)
    segmenter, other = Segmenter(_config()), Segmenter(_config())
    everything = segmenter.segment(window)
    again = segmenter.segment(window, [10, 11])
    alone = other.segment(window, [10])
    assert everything.indices == window.indices
    assert torch.equal(everything.of(11), again.of(11))
    assert torch.equal(everything.of(10), alone.of(10))


def test_provisional_masks_do_not_see_later_frames():
    arrival = SIDEWAYS.arrival(10)
    later = tuple(FORWARD.flow(10, k) for k in (11, 13))
    seeing = SimpleNamespace(**{**vars(arrival), "flows": (*later, *arrival.flows)})
    blind, tempted = (Segmenter(_config()).segment_frame(one) for one in (arrival, seeing))
    assert torch.equal(blind.mask, tempted.mask)
    assert torch.equal(blind.evidence, tempted.evidence)


def test_memory_is_bounded_and_reset_forgets():
    segmenter = Segmenter(_config())
    for index in range(0, 300, 3):
        segmenter.segment_frame(STANDING.arrival(index, offsets=(3,)))
    assert len(segmenter._arrivals) <= 32
    segmenter.reset()
    fresh = Segmenter(_config())
    arrival = FORWARD.arrival(301)
    assert torch.equal(segmenter.segment_frame(arrival).mask, fresh.segment_frame(arrival).mask)


def test_a_number_that_comes_anew_is_judged_anew():
    segmenter = Segmenter(_config())
    segmenter.segment_frame(SIDEWAYS.arrival(10))
    segmenter.segment(SIDEWAYS.window(8, 16), [10])
    segmenter.segment_frame(FORWARD.arrival(10))
    fresh = Segmenter(_config())
    fresh.segment_frame(FORWARD.arrival(10))
    window = FORWARD.window(8, 16)
    assert torch.equal(segmenter.segment(window, [10]).mask, fresh.segment(window, [10]).mask)


def test_narrowest_interval_ignores_a_third_on_one_side():
    values = np.concatenate([np.linspace(-1, 1, 65), np.full(35, 50.0)]).astype(np.float32)
    low, high = narrowest_interval(values)
    assert -1.0 <= low < high <= 1.0


def test_spread_is_one_all_over_and_small_for_a_blob():
    uv = pixels()[::6, ::6].reshape(-1, 2).astype(np.int64)
    blob = np.hypot(*(uv - [100, 90]).T) < 30
    assert spread(uv, np.ones(len(uv), bool), SIZE) == pytest.approx(1.0, abs=0.05)
    assert spread(uv, blob, SIZE) < 0.35


def test_clean_up_keeps_things_and_drops_specks():
    thing = ellipse((160, 90), (40, 30))
    holed = thing & ~ellipse((160, 90), (6, 6))
    specked = holed | ellipse((20, 20), (2, 2))
    cleaned = clean_up(specked, np.ones(SIZE, bool), 64, SCALE)
    assert overlap(cleaned, thing) > 0.97
    assert not drop_small(ellipse((20, 20), (2, 2)), 25).any()
    assert fill_holes(holed)[90, 160]


def test_undecided_pixels_follow_their_surroundings():
    thing = ellipse((160, 90), (40, 30))
    decided = ~(ellipse((160, 90), (10, 10)) | ellipse((40, 40), (30, 30)))
    filled = fill_undecided(thing & decided, decided, 6.0)
    assert filled[90, 160]
    assert not filled[40, 40]

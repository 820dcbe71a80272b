"""Whole clips from pairs: the truth recovered, the reference matched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_scene import VIEW, PairScene, ate, depth_error, iou, offsets, path, path_length

from recon4d_ros.alignment import align_pairs
from recon4d_ros.alignment.dense_depth import closed_form_depth
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import AlignmentError

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[2] / "shared" / "parity" / "ga_synth.npz"
QUICK = Config().replaced({"offline.iterations": 60})


@pytest.fixture(scope="module")
def exact() -> PairScene:
    return PairScene(path(7))


@pytest.fixture(scope="module")
def noisy() -> PairScene:
    return PairScene(path(8), along=0.01, seed=3)


# ---------------------------------------------------------------- right on good input
def test_exact_pairs_give_the_exact_clip(exact):
    result = align_pairs(**exact.predictions(offsets(7)))
    assert ate(result.T_world_cam, exact.T_world_cam) < 1e-4 * path_length(exact.T_world_cam)
    assert result.intrinsics.fx == pytest.approx(VIEW.fx, rel=1e-4)
    assert (result.intrinsics.cx, result.intrinsics.cy) == (24.0, 18.0)
    assert depth_error(result, exact) < 1e-4
    assert iou(result.dynamic_mask, exact.dynamic) > 0.9
    torch.testing.assert_close(result.T_world_cam[0], torch.eye(4).double())
    assert result.T_world_cam.dtype == torch.float64 and result.depth.dtype == torch.float32
    assert result.report.notes == ()
    assert result.report.losses["ga"] < 1e-3 and result.report.seconds > 0


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_noisy_pairs_give_the_clip_within_a_percent_of_its_path(noisy, method):
    result = align_pairs(**noisy.predictions(offsets(8)), method=method, config=QUICK)
    assert ate(result.T_world_cam, noisy.T_world_cam) < 0.01 * path_length(noisy.T_world_cam)
    assert result.intrinsics.fx == pytest.approx(VIEW.fx, rel=0.01)
    assert depth_error(result, noisy) < 0.01
    assert iou(result.dynamic_mask, noisy.dynamic) > 0.75


def test_fast_reaches_at_least_the_optimum_of_adam(noisy):
    pairs = noisy.predictions(offsets(8))
    fast, adam = align_pairs(**pairs), align_pairs(**pairs, method="adam", config=QUICK)
    assert fast.report.losses["ga"] < 1.05 * adam.report.losses["ga"]
    assert fast.report.losses["cma"] < 1.05 * adam.report.losses["cma"]
    assert ate(fast.T_world_cam, noisy.T_world_cam) < ate(adam.T_world_cam, noisy.T_world_cam)


def test_gradients_may_be_switched_off(exact):
    config = Config().replaced({"offline.iterations": 2})
    with torch.no_grad():
        result = align_pairs(**exact.predictions(offsets(7)), method="adam", config=config)
    assert result.report.iterations == 2
    assert not result.depth.requires_grad


def test_numpy_and_torch_give_the_same(exact):
    pairs = exact.predictions(offsets(7))
    one, other = align_pairs(**pairs), align_pairs(**{k: v.numpy() for k, v in pairs.items()})
    assert torch.equal(one.T_world_cam, other.T_world_cam)
    assert torch.equal(one.depth, other.depth)
    assert torch.equal(one.dynamic_mask, other.dynamic_mask)


@settings(max_examples=5, deadline=None)
@given(scale=st.floats(1e-2, 1e2), seed=st.integers(0, 100))
def test_the_gauge_of_the_world_and_the_units_of_the_pairs_do_not_matter(scale, seed):
    scene = PairScene(path(4), seed=seed)
    pairs = scene.predictions(offsets(4, (1, 2)))
    for name in ("points_1", "points_2_in_1", "matching_2_in_1"):
        pairs[name] = pairs[name] * scale
    result = align_pairs(**pairs)
    assert ate(result.T_world_cam, scene.T_world_cam) < 2e-4 * path_length(scene.T_world_cam)


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_given_intrinsics_are_kept_also_with_unequal_focal_lengths(method):
    view = Intrinsics(40.0, 36.0, 22.5, 19.0, 48, 36)
    scene = PairScene(path(5), view=view)
    result = align_pairs(
        **scene.predictions(offsets(5)), intrinsics=view, method=method, config=QUICK
    )
    assert result.intrinsics == view
    assert ate(result.T_world_cam, scene.T_world_cam) < 0.01 * path_length(scene.T_world_cam)
    by_matrix = align_pairs(**scene.predictions(offsets(5)), intrinsics=view.K.numpy())
    assert by_matrix.intrinsics == view


def test_the_principal_point_of_an_estimated_camera_is_a_setting():
    view = Intrinsics(40.0, 40.0, 23.5, 17.5, 48, 36)
    scene = PairScene(path(4), view=view)
    config = Config().replaced({"offline.principal_point": "centre"})
    result = align_pairs(**scene.predictions(offsets(4)), config=config)
    assert (result.intrinsics.cx, result.intrinsics.cy) == (23.5, 17.5)
    assert result.intrinsics.fx == pytest.approx(40.0, rel=1e-4)


def test_the_mask_of_a_frame_lies_on_its_own_pixels(exact):
    """Off by one frame the ball is elsewhere: the first and the last frame tell."""
    result = align_pairs(**exact.predictions(offsets(7)))
    for frame in (0, 6):
        overlaps = [iou(result.dynamic_mask[frame], exact.dynamic[k]) for k in range(7)]
        assert int(np.argmax(overlaps)) == frame


def test_without_matching_only_contradictions_are_masked(exact):
    """Points of the ball where it was not: what a network of static scenes says of it."""
    pairs = exact.predictions(offsets(7))
    del pairs["conf_matching"]
    pairs["points_2_in_1"] = pairs.pop("matching_2_in_1")
    result = align_pairs(**pairs)
    assert ate(result.T_world_cam, exact.T_world_cam) < 0.01 * path_length(exact.T_world_cam)
    assert iou(result.dynamic_mask, exact.dynamic) > 0.5
    assert any("no matching" in note for note in result.report.notes)


def test_a_frame_that_is_never_the_first_of_a_pair_is_posed_by_its_pixels():
    scene = PairScene(path(3), has_ball=False)
    result = align_pairs(**scene.predictions([(0, 1), (1, 0), (1, 2)]))
    assert ate(result.T_world_cam, scene.T_world_cam) < 1e-3 * path_length(scene.T_world_cam)


# ---------------------------------------------------------------- second stage
def test_closed_form_depth_equals_the_optimum_of_adam():
    generator = torch.Generator().manual_seed(1)
    rays = torch.cat([torch.randn(6, 5, 2, generator=generator), torch.ones(6, 5, 1)], -1).double()
    targets = 3.0 * rays + 0.3 * torch.randn(4, 6, 5, 3, generator=generator)
    weight = torch.rand(4, 6, 5, generator=generator).double()
    log_depth = torch.zeros(6, 5).double().requires_grad_()
    optimiser = torch.optim.Adam([log_depth], lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        error = (rays * log_depth.exp().unsqueeze(-1) - targets).square().sum(-1)
        (weight * error).sum().backward()
        optimiser.step()
    found = closed_form_depth(rays, targets, weight)
    torch.testing.assert_close(found, log_depth.detach().exp(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_smoothed_points_draw_the_depth_alone(exact, method):
    pairs = exact.predictions(offsets(7))
    before = align_pairs(**pairs, method=method, config=QUICK)

    def farther(world, masks):
        """Five percent farther along the ray of each pixel, unknown in the first frame."""
        assert masks.shape == world.shape[:-1]
        wanted = before.T_world_cam[:, None, None, :3, 3].float() * -0.05 + 1.05 * world
        wanted[0] = torch.nan
        return wanted

    after = align_pairs(**pairs, method=method, config=QUICK, smooth_points=farther)
    torch.testing.assert_close(after.T_world_cam, before.T_world_cam)
    torch.testing.assert_close(after.depth[0], before.depth[0])
    torch.testing.assert_close(after.depth[1:], 1.05 * before.depth[1:], rtol=5e-3, atol=0.0)
    assert after.report.losses["pts"] < 0.02
    with pytest.raises(AlignmentError, match="smooth_points"):
        align_pairs(**pairs, config=QUICK, smooth_points=lambda world, masks: world[0])


# ---------------------------------------------------------------- the reference's own clip
@pytest.fixture(scope="module")
def reference() -> dict:
    if not FIXTURE.is_file():
        pytest.skip("needs ../shared/parity/ga_synth.npz")
    with np.load(FIXTURE) as held:
        return dict(held)


@pytest.mark.parametrize(("method", "bound"), [("fast", 0.0070), ("adam", 0.0078 * 1.05)])
def test_the_references_clip_is_aligned_at_least_as_well(reference, method, bound):
    result = align_pairs(
        *(reference[k] for k in ("edges", "pts1", "conf1", "pts2", "conf2")),
        matching_2_in_1=reference["match2"],
        conf_matching=reference["conf_match"],
        method=method,
    )
    assert ate(result.T_world_cam, reference["gt_c2w"]) <= bound
    assert ate(result.T_world_cam, reference["gt_c2w"]) <= 1.05 * ate(
        reference["ref_final_c2w"], reference["gt_c2w"]
    )
    moving = torch.from_numpy(reference["gt_dyn"])
    assert iou(result.dynamic_mask, moving) >= 0.75
    assert result.intrinsics.fx == pytest.approx(float(reference["gt_focal"]), rel=2e-3)
    # The reference's own loss, without its flow term, is 0.0947 and holds its smoothness.
    ga_cts = result.report.losses["ga"] + 0.01 * result.report.losses["cts"]
    assert ga_cts < 1.03 * float(reference["ref_final_loss_noflow"])

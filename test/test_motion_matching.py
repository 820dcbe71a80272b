"""Masks from matched pointmaps: what moves, and silence where nothing does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic_scene import depth, intrinsics, pose
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.config import Config
from recon4d_ros.datatypes import FlowField, Matching
from recon4d_ros.geometry import pointmap
from recon4d_ros.geometry.displacement import displacement
from recon4d_ros.motion.matching import matching_evidence, paper_evidence
from recon4d_ros.motion.segmentation import Segmenter

CONFIG = Config().motion
VIEW = intrinsics(96, 128)
BOX = (slice(30, 60), slice(40, 80))


def room() -> torch.Tensor:
    return pointmap.from_depth(depth(pose(0), VIEW), VIEW).float()


def noisy(points: torch.Tensor, seed: int, along=0.007, across_px=0.36) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    distance = points.norm(dim=-1, keepdim=True)
    ray = points / distance
    side = torch.randn(points.shape, generator=random)
    side -= (side * ray).sum(dim=-1, keepdim=True) * ray
    far = torch.randn(distance.shape, generator=random)
    return points + distance * (along * far * ray + across_px / VIEW.fx * side)


def matching(shift=(0.0, 0.0, 0.0), noise=True, confidence=None) -> Matching:
    """A wall of which a box moves by `shift`, over its distance."""
    points = room()
    moved = points.clone()
    moved[BOX] += points[BOX].norm(dim=-1, keepdim=True) * torch.tensor(shift)
    if noise:
        points, moved = noisy(points, 1), noisy(moved, 2)
    conf = torch.full(points.shape[:2], 5.0) if confidence is None else confidence
    return Matching(5, 2, points, moved, conf)


def voted(pair: Matching) -> np.ndarray:
    found = matching_evidence(pair, CONFIG)
    assert found is not None
    return (found.evidence > 1) & found.decided


def truth() -> np.ndarray:
    mask = np.zeros(VIEW.size, bool)
    mask[BOX] = True
    return mask


@pytest.mark.parametrize("shift", [(0.03, 0.0, 0.0), (0.0, -0.03, 0.0), (0.0, 0.0, 0.06)])
def test_a_moving_box_is_found_at_the_noise_of_a_good_network(shift):
    found, moving = voted(matching(shift)), truth()
    assert (found & moving).sum() / (found | moving).sum() > 0.85
    assert found[~moving].mean() < 0.004  # the outline alone is 1.2 %


@pytest.mark.parametrize("noise", [True, False])
def test_nothing_moves_in_a_still_world(noise):
    """Also without noise: rounding is far below the floor, but 3 medians of it are not."""
    assert voted(matching(noise=noise)).mean() < 0.002


def test_the_floor_keeps_exact_points_from_flagging_trifles():
    tiny = matching((0.0005, 0.0, 0.0), noise=False)
    assert not voted(tiny).any()


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_the_unit_of_the_points_does_not_matter(scale):
    pair = matching((0.03, 0.0, 0.0))
    other = Matching(5, 2, pair.points * scale, pair.matching * scale, pair.confidence)
    assert (voted(pair) != voted(other)).mean() < 1e-3


def test_a_pair_that_is_mostly_noise_has_no_vote():
    points = room()
    wild = points + points.norm(dim=-1, keepdim=True) * 0.2 * torch.randn(points.shape)
    conf = torch.full(points.shape[:2], 5.0)
    assert matching_evidence(Matching(5, 2, points, wild, conf), CONFIG) is None


def test_pixels_without_points_or_confidence_do_not_vote():
    conf = torch.full(VIEW.size, 5.0)
    conf[:10] = 1.1
    pair = matching(confidence=conf)
    pair.points[-10:] = torch.nan
    found = matching_evidence(pair, CONFIG)
    assert not found.decided[:10].any()
    assert not found.decided[-10:].any()
    assert found.decided[15:-15].all()
    assert np.isfinite(found.evidence).all()
    pair.points[:] = torch.nan
    assert matching_evidence(pair, CONFIG) is None


def test_noise_is_measured_along_and_across_the_ray():
    """Against the noise that was put in; the mean over 3 x 3 pixels divides it by three."""
    points = room()
    found = displacement(noisy(points, 1), noisy(points, 2))
    assert found.sigma_along == pytest.approx(0.007 * 2**0.5 / 3, rel=0.1)
    assert found.sigma_across == pytest.approx(0.36 / VIEW.fx * 2**0.5 / 3, rel=0.1)


def test_the_papers_rule_is_three_medians_of_the_distance():
    pair = matching((0.06, 0.0, 0.0))
    found = paper_evidence(pair, CONFIG)
    distance = (pair.matching - pair.points).norm(dim=-1).numpy()
    assert np.array_equal(found.evidence > 1, distance > 3 * np.median(distance))
    assert found.decided.all() and found.loudness == 1.0
    assert np.median(found.evidence[BOX]) > 1


def test_the_papers_rule_has_no_floor_and_ours_has():
    """A shift of half a thousandth, without noise."""
    tiny = matching((0.0005, 0.0, 0.0), noise=False)
    assert (paper_evidence(tiny, CONFIG).evidence > 1)[BOX].all()
    assert not voted(tiny).any()


def test_the_papers_rule_leaves_unknown_points_out():
    pair = matching((0.03, 0.0, 0.0))
    pair.points[:5] = torch.nan
    found = paper_evidence(pair, CONFIG)
    assert not found.decided[:5].any() and np.isfinite(found.evidence).all()
    pair.points[:] = torch.nan
    assert not paper_evidence(pair, CONFIG).decided.any()


def test_the_literal_mode_uses_the_papers_rule():
    pair = matching((0.03, 0.0, 0.0))
    flow = FlowField(5, 2, torch.zeros(*VIEW.size, 2), torch.ones(VIEW.size, dtype=torch.bool))
    prediction = SimpleNamespace(
        index=5,
        flows=(flow,),
        matchings=(pair,),
        tracks=None,
        intrinsics=VIEW,
        gauge=0,
        T_key_cam=None,
        T_gauge_key=None,
    )
    for fusion, rule in (("union", paper_evidence), ("hysteresis", matching_evidence)):
        config = Config().replaced({"motion.fusion": fusion}).motion
        dynamic = Segmenter(config).segment_frame(prediction)
        expected = rule(pair, config)
        assert np.allclose(dynamic.evidence[0], np.where(expected.decided, expected.evidence, 0))

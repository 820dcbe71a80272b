"""Motion along the epipolar lines, seen by depth that was known before."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flow_scene import (
    FOCAL,
    GRID,
    SIZE,
    FlowScene,
    ellipse,
    pixels,
    rough_depth,
    smooth_noise,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from recon4d_ros.config import Config
from recon4d_ros.motion.ego_flow import along_line, carried, depth_range, ego_flow
from recon4d_ros.motion.epipolar_pair import pair_evidence
from recon4d_ros.motion.known_depth import KnownDepths, Views
from recon4d_ros.motion.segmentation import Segmenter

CONFIG = Config().motion
# Boards one above the other, at depths 4 to 9: a camera that goes sideways sees no other ones.
BOARDS = 4.5 + 4.5 * ((pixels()[..., 1] * 5 / SIZE[0]) % 1) + 0 * pixels()[..., 0]
# The camera goes sideways and the thing, too: every flow lies on its epipolar line.
ALONG = FlowScene(translation=(-0.05, 0, 0), object_motion=(-0.02, 0, 0), depth=BOARDS)
AGAINST = replace(ALONG, object_motion=(0.02, 0, 0))
AHEAD = FlowScene(translation=(0.01, 0, -0.1), object_motion=(0, 0, 0.08))
STILL = replace(ALONG, object_motion=(0, 0, 0))


def depth_of(scene: FlowScene, later: int = 0) -> np.ndarray:
    """Depth of the boards, and of the thing where it is some frames later (a multiple of 3)."""
    speed_px = FOCAL / 4 * (scene.translation[0] + scene.object_motion[0])
    moving = np.roll(scene.moving & any(scene.object_motion), round(speed_px * later), axis=1)
    return np.where(moving, 4.0, scene.depth).astype(np.float32)


def T_between(scene: FlowScene, source: int, target: int) -> np.ndarray:
    return np.linalg.inv(scene.T_gauge_cam(target).numpy()) @ scene.T_gauge_cam(source).numpy()


def sure(depth: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(depth), 20.0, 0.0).astype(np.float32)


def left_over(scene: FlowScene, depth: np.ndarray, T: np.ndarray | None = None) -> np.ndarray:
    """Length of what remains of the flow from frame 10 to frame 13, px."""
    field = scene.flow(10, 13)
    T = T_between(scene, 10, 13) if T is None else T
    ranges = depth_range(depth, sure(depth))
    found = along_line(field.flow.numpy(), field.valid.numpy(), ranges, GRID, T)
    return np.linalg.norm(found.residual, axis=-1)


@settings(max_examples=25, deadline=None)
@given(
    rotation=st.tuples(*[st.floats(-0.1, 0.1)] * 3),
    translation=st.tuples(*[st.floats(-0.3, 0.3)] * 3),
)
def test_ego_flow_is_the_difference_of_two_projections(rotation, translation):
    """The twin projects 3D points in float64."""
    T = np.eye(4)
    x, y, z = rotation
    T[:3, :3] = expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    T[:3, 3] = translation
    depth = rough_depth()
    uv, centre = pixels(), np.array([GRID.cx, GRID.cy])
    points = np.concatenate([(uv - centre) / FOCAL, np.ones((*SIZE, 1))], -1) * depth[..., None]
    moved = points @ T[:3, :3].T + T[:3, 3]
    expected = moved[..., :2] / moved[..., 2:] * FOCAL + centre - uv
    flow = ego_flow((1 / depth).astype(np.float32), GRID, T)
    assert np.abs(flow - expected).max() < 2e-3


@pytest.mark.parametrize("scene", [ALONG, AGAINST, AHEAD], ids=["along", "against", "ahead"])
def test_what_moves_along_the_lines_is_left_over_and_nothing_else(scene: FlowScene):
    quiet = replace(scene, noise_px=0.0)
    length = left_over(quiet, depth_of(quiet))
    inside = quiet.flow(10, 13).valid.numpy()
    assert length[~scene.moving & inside].max() < 0.01
    assert np.median(length[scene.moving & inside]) > 1.0


def test_without_depth_there_is_no_answer():
    assert (
        along_line(
            np.zeros((*SIZE, 2), np.float32),
            np.ones(SIZE, bool),
            depth_range(np.full(SIZE, np.nan, np.float32), np.zeros(SIZE, np.float32)),
            GRID,
            np.eye(4),
        )
        is None
    )


def test_pixels_without_depth_have_no_say():
    depth = depth_of(ALONG)
    depth[ALONG.moving] = np.nan
    assert left_over(ALONG, depth).max() < 0.5
    assert not left_over(ALONG, depth)[ALONG.moving].any()


def test_a_standing_camera_leaves_nothing_along_lines_it_has_not():
    standing = FlowScene(object_motion=(0.04, 0, 0))
    found = left_over(standing, depth_of(standing))
    assert np.isfinite(found).all()


def test_carried_depth_is_the_depth_seen_from_here():
    quiet = replace(STILL, translation=(-0.05, 0.02, -0.08), noise_px=0.0)
    T = T_between(quiet, 10, 7)
    depth = depth_of(quiet)
    there = (quiet.points() @ T[:3, :3].T + T[:3, 3])[..., 2]
    flow = quiet.flow(10, 7)
    # The depth of frame 7 on its own pixels, by splatting what frame 10 sees there.
    landing = np.rint(pixels() + flow.flow.numpy()).astype(int)
    inside = flow.valid.numpy()
    seen = np.full(SIZE, np.nan, np.float32)
    order = np.argsort(-there[inside])
    u, v = landing[inside][order].T
    seen[v, u] = there[inside][order]
    here = carried(depth_range(seen, sure(seen)), flow.flow.numpy(), GRID, T)
    known = inside & (here.rho > 0)
    assert known.mean() > 0.9
    assert np.median(np.abs(here.rho[known] * depth[known] - 1)) < 1e-3
    assert (here.low <= here.rho + 1e-6)[known].all() and (here.high >= here.rho - 1e-6)[
        known
    ].all()


PILLAR = ellipse((200, 90), (40, 50))
BEFORE_FAR_HILLS = replace(STILL, depth=np.where(PILLAR, 2.0, 12.0 + 2.0 * smooth_noise(3, 20.0)))


@pytest.mark.parametrize(
    ("known", "flagged"),
    [(None, True), (np.ones(SIZE, bool), False), (~PILLAR, True)],
    ids=["no depth", "depth", "depth but of the pillar"],
)
def test_a_pillar_before_far_hills_rests_where_its_depth_was_measured(known, flagged):
    """Its parallax lies far outside the hills' range, as that of a thing that moves would."""
    scene = BEFORE_FAR_HILLS
    field, along = scene.flow(10, 13), None
    if known is not None:
        depth = np.where(known, scene.depth, np.nan).astype(np.float32)
        measured, T = depth_range(depth, sure(depth)), T_between(scene, 10, 13)
        along = along_line(field.flow.numpy(), field.valid.numpy(), measured, GRID, T)
    evidence = pair_evidence(field, CONFIG, along).evidence > 1
    assert (evidence[PILLAR].mean() > 0.9) == flagged
    assert (evidence[PILLAR].mean() < 0.02) != flagged
    assert evidence[~PILLAR].mean() < 0.02


# ---------------------------------------------------------------- masks
def arrival(scene: FlowScene, index: int, depth: np.ndarray, **changes) -> SimpleNamespace:
    known = {
        "T_key_cam": scene.T_gauge_cam(index),
        "depth": torch.from_numpy(depth),
        "confidence": torch.from_numpy(sure(depth)),
    }
    return SimpleNamespace(**{**vars(scene.arrival(index)), **known, **changes})


def test_depth_of_what_moves_is_not_remembered():
    """It is none: what keeps its speed would agree with it in the next pair and pass for rest."""
    depths, scene = KnownDepths(4), BEFORE_FAR_HILLS
    depths.keep(arrival(scene, 10, scene.depth.astype(np.float32)), moving=PILLAR)
    field = scene.flow(10, 13)
    known = depths.ask(field, Views(0, GRID, {13: scene.T_gauge_cam(13).numpy()})).known
    assert not known[PILLAR].any()
    assert known[~PILLAR & field.valid.numpy()].all()


def segmenter_of(scene: FlowScene, wrong=lambda depth: depth) -> Segmenter:
    """One that has seen frames 1, 4 and 7, whose depth was known."""
    segmenter = Segmenter(CONFIG)
    for index in (1, 4, 7):
        depth = wrong(depth_of(scene, index - 10)).astype(np.float32)
        segmenter.segment_frame(arrival(scene, index, depth))
    return segmenter


def provisional(scene: FlowScene, wrong=lambda depth: depth, **changes) -> np.ndarray:
    depth = wrong(depth_of(scene)).astype(np.float32)
    arrived = arrival(scene, 10, depth, **changes)
    return segmenter_of(scene, wrong).segment_frame(arrived).mask[0].numpy()


def final(scene: FlowScene, wrong=lambda depth: depth) -> np.ndarray:
    segmenter = segmenter_of(scene, wrong)
    segmenter.segment_frame(arrival(scene, 10, wrong(depth_of(scene)).astype(np.float32)))
    window = scene.window(8, 16)
    poses = torch.stack([scene.T_gauge_cam(index) for index in window.indices])
    posed = SimpleNamespace(**{**vars(window), "T_key_cam": poses})
    return segmenter.segment(posed, [10]).of(10).numpy()


@pytest.mark.parametrize("scene", [ALONG, AGAINST], ids=["along", "against"])
def test_motion_along_the_lines_is_found_where_depth_was_known(scene: FlowScene):
    # This flow knows no occlusion: boards that the thing hides in a partner may be flagged.
    for mask in (provisional(scene), final(scene)):
        assert mask[scene.moving].mean() > 0.9
        assert mask[~ellipse((200, 90), (90, 52))].mean() < 0.002


@pytest.mark.parametrize(
    "changes", [{"T_key_cam": None}, {"gauge": 1}, {"T_gauge_key": None}], ids=str
)
def test_without_a_pose_in_the_same_gauge_the_lines_stay_blind(changes):
    assert provisional(ALONG, **changes).mean() < 0.005


def _outlines_off(depth: np.ndarray) -> np.ndarray:
    return np.roll(depth, 3, axis=1)


@pytest.mark.parametrize("noise_px", [0.1, 0.3])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda depth: depth,
        lambda depth: depth * (1 + 0.1 * np.random.default_rng(1).normal(size=SIZE)),
        lambda depth: depth * (1 + 0.05 * pixels()[..., 0] / SIZE[1]),
        _outlines_off,
    ],
    ids=["exact", "noisy by 10 %", "tilted by 5 %", "outlines 3 px off"],
)
def test_wrong_depth_is_no_motion(wrong, noise_px: float):
    scene = replace(STILL, noise_px=noise_px)
    assert provisional(scene, wrong).mean() < 0.005
    assert final(scene, wrong).mean() < 0.005


def test_a_wrong_pose_is_no_motion():
    """A degree's tenth of rotation is half a pixel, a translation a tenth too long as much."""
    T = T_between(STILL, 10, 13)
    turned, long = T.copy(), T.copy()
    turned[:3, :3] = (
        expm(np.array([[0, 0, 0.002], [0, 0, -0.001], [-0.002, 0.001, 0]])) @ T[:3, :3]
    )
    long[:3, 3] *= 1.1
    for wrong in (turned, long):
        assert (left_over(STILL, depth_of(STILL), wrong) > 0.44).mean() < 0.005


def test_what_is_remembered_is_bounded_and_can_be_forgotten():
    segmenter = Segmenter(CONFIG)
    depth = depth_of(ALONG)
    for index in range(60):
        segmenter.segment_frame(arrival(ALONG, index, depth, flows=()))
    assert len(segmenter._depths._arrivals) <= 32
    segmenter.segment_frame(arrival(ALONG, 50, depth, flows=()))
    assert max(segmenter._depths._arrivals) == 50
    segmenter.reset()
    assert not segmenter._depths._arrivals

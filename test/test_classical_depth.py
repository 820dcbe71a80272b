"""Dense inverse depth by triangulated flow, from exact flow of scenes whose depth is known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from flow_scene import FOCAL, SIZE, FlowScene, ellipse, smooth_noise

from recon4d_ros.config import DepthConfig
from recon4d_ros.datatypes import FlowField, Intrinsics
from recon4d_ros.predictors.classical import depth as dense
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.depth import InverseDepth, Rays, View

HEIGHT, WIDTH = SIZE
GRID = Intrinsics(FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, WIDTH, HEIGHT)
RAYS = Rays.of(GRID)
CONFIG = DepthConfig()
PARTNERS = (-1, -2, 3)
PLANE = np.fromfunction(lambda v, u: 1 / (0.2 + 2e-4 * u + 3e-4 * v), SIZE)
MOTIONS = {
    "sideways": {"translation": (0.1, 0.0, 0.0)},
    "forward": {"translation": (0.03, 0.02, -0.15)},
    "turning": {"translation": (0.1, -0.05, 0.05), "rotation_deg": (0.3, -1.0, 0.5)},
}


def views(scene: FlowScene) -> dict[int, View]:
    """Where frame 0 and its partners are; each image is taken at once."""
    out = {}
    for frame in (0, *PARTNERS):
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = scene.pose(frame)
        out[frame] = View(T, np.zeros(6))
    return out


def fields(scene: FlowScene, noise_px: float = 0.0) -> list[FlowField]:
    exact = replace(scene, noise_px=0.0)
    out = []
    for partner in PARTNERS:
        field = exact.flow(0, partner)
        noise = np.random.default_rng(partner + 10).normal(size=(*SIZE, 2)) * noise_px
        out.append(replace(field, flow=field.flow + torch.from_numpy(noise.astype(np.float32))))
    return out


def estimate(scene: FlowScene, noise_px: float = 0.0) -> InverseDepth:
    return dense.measured(fields(scene, noise_px), views(scene), RAYS, CONFIG)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", ["plane", "rough"])
def test_exact_flow_gives_exact_depth(motion, shape):
    scene = FlowScene(**MOTIONS[motion])
    scene = replace(scene, depth=PLANE) if shape == "plane" else scene
    found = estimate(scene)
    depth = found.depth(0.2)
    known = np.isfinite(depth)
    assert known.mean() > (0.98 if shape == "plane" else 0.8)  # the rims of steps are left out
    relative = np.abs(depth / scene.depth - 1)[known]
    assert np.median(relative) < 1e-5
    assert np.percentile(relative, 99) < 2e-3  # next to the epipole float32 flow says less
    assert np.array_equal(found.confidence(0.2) > 0, known)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_stated_noise_is_honest(motion):
    scene = FlowScene(**MOTIONS[motion])
    found = estimate(scene, noise_px=CONFIG.flow_noise_px)
    sure = found.sure(0.1)
    assert sure.mean() > 0.4
    normalised = (found.rho - 1 / scene.depth)[sure] * np.sqrt(found.information[sure])
    assert 0.7 < np.sqrt(np.mean(normalised**2)) < 1.4


def test_only_sure_depth_is_shown():
    scene = FlowScene(**MOTIONS["sideways"])
    found = estimate(scene, noise_px=CONFIG.flow_noise_px)
    relative_sigma = 1 / (found.rho * np.sqrt(found.information))[found.information > 0]
    limits = np.quantile(relative_sigma, (0.1, 0.4, 0.9))
    shown = [np.isfinite(found.depth(limit)) for limit in limits]
    assert shown[0].sum() < shown[1].sum() < shown[2].sum()
    assert not (shown[0] & ~shown[1]).any()
    errors = [np.abs(found.depth(limits[2]) / scene.depth - 1)[mask].mean() for mask in shown[::2]]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("direction", [(0.0, 0.12, 0.0), (0.06, 0.06, 0.0)])
def test_moving_pixels_get_no_depth(direction):
    scene = FlowScene(**MOTIONS["sideways"], object_motion=direction)
    depth = estimate(scene).depth(0.2)
    inner = ellipse((200, 90), (36, 46))
    assert np.isfinite(depth[inner]).mean() < 0.02
    outside = ~ellipse((200, 90), (60, 70))
    assert np.isfinite(depth[outside]).mean() > 0.85


def test_a_standing_or_turning_camera_measures_nothing():
    for rotation in ((0.0, 0.0, 0.0), (0.2, 1.0, -0.4)):
        found = estimate(FlowScene(rotation_deg=rotation), noise_px=0.3)
        assert not found.sure(CONFIG.max_relative_sigma).any()


def test_partners_without_a_pose_say_nothing():
    scene = FlowScene(**MOTIONS["sideways"])
    known = views(scene)
    for partner in PARTNERS:
        del known[partner]
    assert not dense.measured(fields(scene), known, RAYS, CONFIG).information.any()
    assert not dense.measured([], known, RAYS, CONFIG).information.any()


# ------------------------------------------------------------------ carrying depth along
def carried_over(scene: FlowScene, frames: int) -> tuple[InverseDepth, InverseDepth]:
    """What is known of frame 0, and that on the pixels of the frame `frames` earlier."""
    before = InverseDepth((1 / scene.depth).astype(np.float32), np.full(SIZE, 400, np.float32))
    earlier = -frames
    R, t = scene.pose(earlier)
    T_now_before = np.eye(4)
    T_now_before[:3, :3], T_now_before[:3, 3] = R, t
    forward = replace(scene, noise_px=0.0).flow(0, earlier)
    back = inverted(forward.flow.numpy())
    field = FlowField(
        earlier, 0, torch.from_numpy(back), torch.isfinite(torch.from_numpy(back[..., 0]))
    )
    T_before_now = rigid.inverse(T_now_before)
    return before, dense.carried(before, field, T_before_now, RAYS, CONFIG)


def inverted(flow: np.ndarray) -> np.ndarray:
    """Flow from the target back to the source of a smooth flow, by fixed-point iteration."""

    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).astype(np.float32)
    back = np.zeros_like(flow)
    for _ in range(50):
        back = -cv2.remap(
            flow, grid + back, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    landing = grid + back
    inside = ((landing >= 0) & (landing <= (WIDTH - 1, HEIGHT - 1))).all(-1)
    back[~inside] = np.nan
    return back


@pytest.mark.parametrize("motion", MOTIONS)
def test_carried_depth_is_that_of_the_new_camera(motion):
    scene = FlowScene(**MOTIONS[motion], depth=5.0 + 0.3 * smooth_noise(3, 30.0))
    _, now = carried_over(scene, 2)
    known = now.information > 0
    assert known.mean() > 0.85
    # The same surface triangulated from the new camera: move the points by hand.
    R, t = scene.pose(-2)
    moved = scene.points() @ R.T + t
    uv = moved[..., :2] / moved[..., 2:] * FOCAL + (GRID.cx, GRID.cy)
    column, row = np.rint(uv[20:-20, 20:-20]).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    expected = 1 / moved[20:-20, 20:-20, 2][inside]
    ours = now.rho[row[inside], column[inside]]
    there = known[row[inside], column[inside]]
    assert np.median(np.abs(ours / expected - 1)[there]) < 2e-3


def test_a_standing_camera_keeps_what_it_knew_and_trusts_it_less():
    before, now = carried_over(FlowScene(), 1)
    known = now.information > 0
    assert known.mean() > 0.99
    assert np.allclose(now.rho[known], before.rho[known], rtol=1e-6)
    kept = CONFIG.carry_over * before.information[known]
    assert np.allclose(now.information[known], kept, rtol=1e-4)
    nothing = dense.unknown(SIZE)
    still = FlowScene().flow(1, 0)
    assert not dense.carried(nothing, still, np.eye(4), RAYS, CONFIG).information.any()


def test_joining_estimates_weighs_them_by_their_information():
    def uniform(rho: float, information: float) -> InverseDepth:
        return InverseDepth(
            np.full((1, 1), rho, np.float32), np.full((1, 1), information, np.float32)
        )

    joint = dense.fused(uniform(0.50, 300.0), uniform(0.54, 100.0), CONFIG)
    assert joint.rho.item() == pytest.approx(0.51)
    assert joint.information.item() == pytest.approx(400.0)
    surer = dense.fused(uniform(0.5, 300.0), uniform(2.0, 100.0), CONFIG)
    assert (surer.rho.item(), surer.information.item()) == pytest.approx((0.5, 300.0))
    alone = dense.fused(dense.unknown((1, 1)), uniform(2.0, 100.0), CONFIG)
    assert (alone.rho.item(), alone.information.item()) == pytest.approx((2.0, 100.0))


def test_a_floor_does_not_scatter_and_an_edge_does():
    """From the horizon down, whatever the angle; then with a step of a half."""
    rows = np.arange(60, dtype=np.float32)[:, None]
    floor = np.broadcast_to(0.02 * (rows + 0.5), (60, 80)).copy()
    known = np.ones_like(floor)
    bound = CONFIG.max_spread
    inside = dense._spread(floor, known)[8:-8, 8:-8]
    assert inside.max() < 0.1 * bound
    floor[:, 40:] *= 1.5
    at_edge = dense._spread(floor, known)[10:-10, 38:42]
    assert at_edge.min() > bound

"""Focal length, scale, pose and flow from pointmaps, each against an independent answer."""

import numpy as np
import pytest
import scipy.optimize
import torch
from analytic_scene import depth, intrinsics, pose

from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.geometry.image_grid import resize_intrinsics
from recon4d_ros.networks.pomato import Pointmap
from recon4d_ros.predictors.pomato.edge import RawEdge, read_edge, relative_scale
from recon4d_ros.predictors.pomato.focal import weiszfeld_focal
from recon4d_ros.predictors.pomato.image_size import camera_of_focal, network_size
from recon4d_ros.predictors.pomato.pairwise import partners
from recon4d_ros.predictors.pomato.pose import fit_pose
from recon4d_ros.predictors.pomato.seen import common_scale

VIEW = intrinsics(96, 128)
EVERYWHERE = torch.ones(VIEW.size, dtype=torch.bool)
A, B = 0, 25


def own_map(index: int = A) -> torch.Tensor:
    return pointmap.from_depth(depth(pose(index), VIEW), VIEW).float()


def edge(noise: float = 0.0, unit: float = 1.0, moving: float = 0.0) -> RawEdge:
    """Frame B in camera A; a quarter of the image was elsewhere at the time of A."""
    T_a_b = se3.inverse(pose(A)) @ pose(B)
    now = pointmap.transform(T_a_b, own_map(B).double()).float()
    random = torch.Generator().manual_seed(3)
    now = now * (1 + noise * torch.randn(*VIEW.size, 1, generator=random))
    then = now.clone()
    then[:48, :64] += moving
    conf = torch.full(VIEW.size, 5.0)
    return RawEdge(B, A, Pointmap(now * unit, conf), Pointmap(then * unit, conf))


@pytest.mark.parametrize("size", [(96, 128), (80, 128)])
def test_the_focal_length_is_that_of_the_camera_whatever_the_grid(size):
    """Also on a grid of other proportions than the image."""
    camera = resize_intrinsics(VIEW, size)
    points = pointmap.from_depth(depth(pose(A), camera), camera)
    found = weiszfeld_focal(points, torch.ones(size, dtype=torch.bool), VIEW.size)
    assert found == pytest.approx(VIEW.fx, rel=1e-6)
    assert camera_of_focal(found, VIEW.size, size).fx == pytest.approx(camera.fx, rel=1e-6)
    assert camera_of_focal(found, VIEW.size, size).cy == pytest.approx(camera.cy)


def test_the_focal_length_minimises_the_sum_of_distances():
    """Float64 twin: a scalar search for the minimum, with a third of the points wrong."""
    random = torch.Generator().manual_seed(0)
    points = own_map().double()
    points[:32] *= 1 + torch.rand(32, 128, 3, generator=random, dtype=torch.float64)
    v, u = np.mgrid[: VIEW.height, : VIEW.width]
    offset = np.stack([u - 63.5, v - 47.5], axis=-1)
    slope = (points[..., :2] / points[..., 2:]).numpy()

    def cost(focal: float) -> float:
        return float(np.linalg.norm(offset - focal * slope, axis=-1).sum())

    twin = scipy.optimize.minimize_scalar(cost, bounds=(20.0, 500.0), method="bounded")
    assert weiszfeld_focal(points, EVERYWHERE, VIEW.size) == pytest.approx(twin.x, rel=2e-3)


def test_no_focal_length_where_no_camera_looks_like_this():
    points = torch.randn(*VIEW.size, 3, generator=torch.Generator().manual_seed(0))
    points[..., 2] = -1.0
    assert weiszfeld_focal(points, EVERYWHERE, VIEW.size) is None
    points[..., 2] = 1e6
    assert weiszfeld_focal(points, EVERYWHERE, VIEW.size) is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (384, 512)),
        ((1080, 1920), (288, 512)),
        ((640, 480), (512, 384)),
        ((376, 1241), (160, 512)),
        ((20, 2000), (16, 512)),
    ],
)
def test_sides_become_whole_patches(size, expected):
    assert network_size(size, 512) == expected


@pytest.mark.parametrize("unit", [1e-3, 1.0, 300.0])
def test_pose_scale_and_depth_of_an_edge_are_exact(unit):
    target_depth = own_map(A)[..., 2] * 2.5  # the target is known in a unit of its own
    reading = read_edge(edge(unit=unit), VIEW, target_depth)
    # Pixel by pixel the nearest depth is taken, so that slanted walls leave a trace.
    assert reading.scale == pytest.approx(2.5 / unit, rel=2e-3)
    T = (se3.inverse(pose(A)) @ pose(B)).clone()
    T[:3, 3] *= reading.scale * unit
    assert torch.allclose(reading.pose.T_points_cam, T, atol=1e-3)
    exact = own_map(B)[..., 2] * reading.scale * unit
    assert torch.allclose(reading.depth, exact, rtol=1e-3)


def test_a_moving_quarter_does_not_disturb_the_pose():
    """Though the network takes a part of its motion for the camera's, less than an outlier's."""
    raw = edge(moving=0.04)
    raw.now.points[:48, :64] += 0.02
    reading = read_edge(raw, VIEW, own_map(A)[..., 2])
    T = se3.inverse(pose(A)) @ pose(B)
    assert torch.allclose(reading.pose.T_points_cam, T, atol=1e-3)


def test_flow_is_the_projection_of_the_matched_points():
    """Against OpenCV's projection; pixels hidden or outside are invalid and zero."""
    import cv2

    raw = edge()
    flow = read_edge(raw, VIEW, own_map(A)[..., 2]).flow
    points = raw.then.points.reshape(-1, 1, 3).double().numpy()
    uv, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), VIEW.K.numpy(), None)
    v, u = np.mgrid[: VIEW.height, : VIEW.width]
    expected = uv.reshape(*VIEW.size, 2) - np.stack([u, v], axis=-1)
    valid = flow.valid.numpy()
    assert valid.mean() > 0.5
    assert np.abs(flow.flow.numpy() - expected)[valid].max() < 1e-2
    assert bool((flow.flow[~flow.valid] == 0).all())
    assert (flow.source, flow.target) == (B, A)


def test_points_behind_the_camera_have_no_flow_and_no_infinity():
    raw = edge()
    raw.then.points[:10, :, 2] = 0.0
    raw.then.points[10:20, :, 2] *= -1
    flow = read_edge(raw, VIEW, own_map(A)[..., 2]).flow
    assert bool(flow.flow.isfinite().all())
    assert not bool(flow.valid[:20].any())


def test_points_behind_the_surface_that_the_target_sees_are_hidden():
    near = own_map(A)[..., 2].clone()
    near[:, :64] *= 0.5
    raw = edge()
    x = read_edge(raw, VIEW, own_map(A)[..., 2]).flow
    hidden = read_edge(raw, VIEW, near).flow
    landed = x.flow[..., 0] + torch.arange(VIEW.width)
    left = x.valid & (landed < 60)
    assert int(left.sum()) > 100
    assert not bool(hidden.valid[left].any())


def test_without_agreement_there_is_no_pose_and_no_identity():
    random = torch.Generator().manual_seed(0)
    points = torch.rand(*VIEW.size, 3, generator=random) + torch.tensor([0.0, 0.0, 1.0])
    assert fit_pose(points, EVERYWHERE, VIEW).T_points_cam is None
    assert fit_pose(torch.full_like(points, torch.nan), EVERYWHERE, VIEW).T_points_cam is None
    assert fit_pose(points, ~EVERYWHERE, VIEW).T_points_cam is None


def test_no_scale_without_a_common_view():
    nowhere = torch.full(VIEW.size, torch.nan)
    assert np.isnan(relative_scale(own_map(), EVERYWHERE, VIEW, nowhere))
    reading = read_edge(edge(), VIEW, nowhere)
    assert reading.pose.T_points_cam is None
    assert bool(reading.matching.points.isfinite().all())


def test_a_window_takes_the_unit_of_what_was_known_of_its_frames():
    known = own_map()[..., 2]
    unknown = torch.full_like(known, torch.nan)
    wrong = known * 9
    pairs = [(known, known / 4), (unknown, known), (wrong, known / 4), (known, known / 4.02)]
    assert common_scale(pairs) == pytest.approx(4.02, rel=0.01)
    assert common_scale([(unknown, known)]) == 1.0


def test_partners_are_the_keyframe_and_past_frames():
    assert partners(20, 8, range(12, 20)) == [8, 19, 17, 13]
    assert partners(20, 19, range(12, 20)) == [19, 17, 13]
    assert partners(1, 0, [0]) == [0]

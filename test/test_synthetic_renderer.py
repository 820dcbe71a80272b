"""Rendered frames against analytic planes and spheres, and against themselves."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from recon4d_ros.errors import ConfigError
from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.synthetic import correspondence, raycast, renderer, scenes, textures
from recon4d_ros.synthetic.motions import Fixed, HandHeld, Orbit, Spin, StopAndGo, Swing
from recon4d_ros.synthetic.scene import Pattern, Scene, Shape, Solid, Texture, snapshot

# Small tensors: threads cost more than they give.
torch.set_num_threads(1)

WIDTH = 96
PLAIN = Texture(Pattern.PATCHES, seed=0, tile_m=1.0, resolution=64)
LOOK_ALONG_Y = Fixed((0.0, 0.0, 0.0), (-math.pi / 2, 0.0, 0.0))  # optical z is the world's y


def one_solid(solid: Solid | None = None, eye: Fixed = LOOK_ALONG_Y) -> Scene:
    room = Solid("room", Shape.ROOM, (4.0, 3.0, 2.0), Fixed((0.0, 0.0, 0.0)), PLAIN)
    solids = (room,) if solid is None else (room, solid)
    return Scene("test", solids, eye, scenes.intrinsics(WIDTH), num_frames=3, noise_std=0.0)


def pixel_rays(scene: Scene) -> np.ndarray:
    k = scene.intrinsics
    v, u = np.mgrid[0 : k.height, 0 : k.width].astype(np.float64)
    return np.stack([(u - k.cx) / k.fx, (v - k.cy) / k.fy, np.ones_like(u)], axis=-1)


def test_convention_optical_axis_is_z_forward_and_first_pixel_is_zero() -> None:
    scene = one_solid()
    T = snapshot(scene, 0).T_world_cam
    assert torch.allclose(T[:3, 2], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(T[:3, 1], torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64))
    hits = raycast.cast(snapshot(scene, 0), torch.zeros(1, 2))
    k = scene.intrinsics
    expected = torch.tensor([-k.cx / k.fx, -k.cy / k.fy, 1.0]).double() * hits.depth
    point = se3.transform(se3.inverse(T), hits.local[0])
    assert torch.allclose(point, expected, atol=1e-12)


def test_depth_of_the_room_is_that_of_its_planes() -> None:
    scene = one_solid()
    rays = pixel_rays(scene)
    # Camera in the middle, looking along y: walls at x = 4 and y = 3, floor and ceiling at 2.
    with np.errstate(divide="ignore"):
        planes = [4.0 / np.abs(rays[..., 0]), 2.0 / np.abs(rays[..., 1]), 3.0 / rays[..., 2]]
    frame = renderer.render(scene, 0)
    np.testing.assert_allclose(frame.depth.numpy(), np.minimum.reduce(planes), rtol=1e-6)
    assert not frame.dynamic_mask.any()


def test_depth_of_a_sphere_is_analytic() -> None:
    centre, radius = np.array([0.2, 1.7, -0.1]), 0.5
    ball = Solid("ball", Shape.ELLIPSOID, (radius,) * 3, Fixed(tuple(centre)), PLAIN)
    scene = one_solid(ball)
    centre_cam = np.array([centre[0], -centre[2], centre[1]])
    rays = pixel_rays(scene)
    a, b = (rays**2).sum(-1), rays @ centre_cam
    inside = b**2 - a * (centre_cam @ centre_cam - radius**2)
    expected = (b - np.sqrt(np.maximum(inside, 0.0))) / a
    frame = renderer.render(scene, 0)
    assert np.array_equal(frame.instances.numpy() == 1, inside > 0)
    assert (inside > 0).mean() > 0.05
    np.testing.assert_allclose(frame.depth.numpy()[inside > 0], expected[inside > 0], rtol=1e-6)


def test_points_of_a_turned_box_lie_on_its_faces() -> None:
    pose = Fixed((0.1, 1.5, 0.0), (0.3, -0.5, 0.9))
    scene = one_solid(Solid("box", Shape.BOX, (0.4, 0.3, 0.2), pose, PLAIN))
    frame = renderer.render(scene, 0)
    points = pointmap.from_depth(frame.depth.double(), frame.intrinsics)
    world = se3.transform(frame.T_world_cam, points)[frame.instances == 1]
    local = se3.transform(se3.inverse(pose.pose(0.0)), world)
    share = (local / torch.tensor([0.4, 0.3, 0.2])).abs()
    assert len(share) > 100
    assert torch.allclose(share.amax(-1), torch.ones(len(share)).double(), atol=1e-5)


def test_ellipsoid_normals_are_gradients_of_its_equation() -> None:
    half = (0.5, 0.3, 0.4)
    scene = one_solid(Solid("egg", Shape.ELLIPSOID, half, Fixed((0.0, 1.5, 0.0)), PLAIN))
    hits = raycast.cast(
        snapshot(scene, 0), camera.pixel_grid(scene.intrinsics.size).reshape(-1, 2)
    )
    rows = hits.solid == 1
    local = hits.local[rows].clone().requires_grad_()
    ((local / torch.tensor(half)) ** 2).sum().backward()
    gradient = torch.nn.functional.normalize(local.grad, dim=-1)
    assert torch.allclose(raycast.normals(scene, hits)[rows], gradient, atol=1e-6)


def test_culling_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes.demo(width=WIDTH)
    uv = camera.pixel_grid(scene.intrinsics.size).reshape(-1, 2)
    culled = raycast.cast(snapshot(scene, 5), uv)
    monkeypatch.setattr(raycast, "_inside_box", lambda uv, box: None)
    whole = raycast.cast(snapshot(scene, 5), uv)
    assert torch.equal(culled.depth, whole.depth) and torch.equal(culled.solid, whole.solid)


def test_same_seed_same_pictures_other_noise_in_each_frame() -> None:
    scene = scenes.standing_still(width=WIDTH)
    first, again, other = (renderer.render(scene, index) for index in (0, 0, 1))
    assert torch.equal(first.rgb, again.rgb) and torch.equal(first.depth, again.depth)
    difference = other.rgb.float() - first.rgb.float()
    assert 0.5 * scene.noise_std < difference.std() / math.sqrt(2) < 1.2 * scene.noise_std
    assert torch.equal(first.depth, other.depth)
    clean = scenes.without_noise(scene)
    assert torch.equal(renderer.render(clean, 0).rgb, renderer.render(clean, 1).rgb)


def test_mask_is_where_poses_of_solids_change() -> None:
    scene = scenes.demo(width=WIDTH)
    for index in (0, 40, 45):  # the cart rests from frame 36 to frame 54
        frame = renderer.render(scene, index)
        moving = [
            not torch.equal(snapshot(scene, index - 1).T_world_solid[n], pose)
            for n, pose in enumerate(snapshot(scene, index + 1).T_world_solid)
        ]
        expected = torch.tensor(moving)[frame.instances.long()]
        assert torch.equal(frame.dynamic_mask, expected)
        assert 0.02 < frame.dynamic_mask.float().mean() < 0.2
        assert moving[-1] == (index == 0)


@pytest.mark.parametrize("name", ["static_room", "standing_still", "turning_camera"])
def test_nothing_moves_in_static_scenes(name: str) -> None:
    scene = scenes.named(name, 10, WIDTH)
    assert not any(renderer.moving_solids(scene, index).any() for index in range(10))


def test_cameras_do_what_the_names_say() -> None:
    def path(name: str) -> torch.Tensor:
        scene = scenes.named(name, 120, WIDTH)
        return torch.stack([snapshot(scene, index).T_world_cam for index in range(0, 120, 10)])

    assert torch.equal(path("standing_still"), path("standing_still")[:1].expand(12, 4, 4))
    assert torch.equal(path("standing_camera"), path("standing_still"))
    turning = path("turning_camera")
    assert (turning[:, :3, 3] - turning[0, :3, 3]).abs().max() < 1e-12
    assert se3.angle(se3.relative(turning[0], turning[6])[:3, :3]) > 0.2
    walk = path("demo")
    length = torch.linalg.vector_norm(walk[1:, :3, 3] - walk[:-1, :3, 3], dim=-1).sum()
    assert 0.8 < length < 1.6
    assert torch.linalg.vector_norm(walk[-1, :3, 3] - walk[0, :3, 3]) > 0.7


@pytest.mark.parametrize(
    "motion",
    [
        Swing((1.0, 0.0, 0.0), (0.0, 0.5, 0.0), period_s=2.0),
        Orbit((0.0, 0.0, 0.0), radius=1.0, period_s=2.0),
        Spin((0.0, 1.0, 0.0), (0.1, 0.2, 3.0)),
        StopAndGo((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), move_s=0.5, rest_s=0.2),
        HandHeld(((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), ((0.0, 3.0, 0.0),) * 2, 2.0, 0.01, 0.01),
    ],
)
def test_motions_are_rigid_and_continuous(motion: Swing) -> None:
    poses = torch.stack([motion.pose(0.01 * step) for step in range(200)])
    se3.inverse(poses)  # raises if one is not rigid
    steps = torch.linalg.vector_norm(poses[1:, :3, 3] - poses[:-1, :3, 3], dim=-1)
    assert steps.max() < 0.05


def test_swing_and_orbit_return_after_their_period() -> None:
    for motion in (Swing((0, 0, 0), (1, 2, 3), 1.7, 0.3), Orbit((0, 0, 0), 2.0, 1.7, 0.3)):
        assert torch.allclose(motion.pose(0.4), motion.pose(0.4 + 1.7), atol=1e-12)


def test_scene_without_room_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be the room"):
        dataclasses.replace(one_solid(), solids=())
    with pytest.raises(ConfigError, match="demo"):
        scenes.named("nowhere", 3)


@pytest.mark.parametrize("pattern", list(Pattern))
def test_textures_are_periodic_and_sampled_like_the_picture(pattern: Pattern) -> None:
    texture = Texture(pattern, seed=3, tile_m=1.0, resolution=64)
    picture, pyramid = textures.paint(texture), textures.bake(texture)
    assert 0.08 < picture.mean(dim=-1).std() < 0.4
    centres = (torch.tensor([[5, 9], [63, 0], [20, 41]]) + 0.5) / 64
    sharp = textures.sample(pyramid, centres, torch.full((3,), 1 / 64))
    expected = picture[[9, 0, 41], [5, 63, 20]]
    assert torch.allclose(sharp, expected, atol=1e-5)
    assert torch.allclose(
        textures.sample(pyramid, centres - 3.0, torch.zeros(3)), sharp, atol=1e-4
    )
    blurred = textures.sample(pyramid, centres, torch.full((3,), 1.0))
    assert torch.allclose(blurred, picture.mean(dim=(0, 1)).expand(3, 3), atol=1e-5)


def test_flow_of_static_pixels_is_reprojected_depth() -> None:
    scene = scenes.demo(width=WIDTH)
    source, target = renderer.render(scene, 10), renderer.render(scene, 16)
    exact = correspondence.flow(scene, 10, 16)
    grid = camera.pixel_grid(scene.intrinsics.size, torch.float64)
    points = camera.unproject(grid, source.depth.double(), scene.intrinsics)
    moved = se3.transform(se3.relative(target.T_world_cam, source.T_world_cam), points)
    expected = camera.project(moved, scene.intrinsics) - grid
    static = ~renderer.moving_solids(scene, 10)[source.instances.long()]
    assert torch.allclose(exact.flow[static], expected[static], atol=1e-4)
    moving = source.instances >= len(scene.solids) - 4
    assert (exact.flow - expected)[moving].norm(dim=-1).median() > 0.5


def test_visible_pixels_keep_their_colour_and_depth() -> None:
    scene = scenes.without_noise(scenes.demo(width=320))
    source, target = renderer.render(scene, 30), renderer.render(scene, 32)
    exact = correspondence.flow(scene, 30, 32)
    grid = camera.pixel_grid(scene.intrinsics.size, torch.float64)
    places = (grid + exact.flow)[exact.visible]
    assert 0.9 < exact.visible.float().mean() < 1.0
    depth = pointmap.sample_nearest(target.depth.unsqueeze(-1).double(), places).squeeze(-1)
    error = (depth / exact.depth[exact.visible] - 1.0).abs()
    assert error.nanquantile(0.97) < 0.05
    colour = pointmap.sample_bilinear(target.rgb.double(), places)
    difference = (colour - source.rgb[exact.visible]).abs().mean(dim=-1)
    still = (target.rgb.double() - source.rgb).abs().mean(dim=-1)[exact.visible]
    assert difference.nanmedian() < 6.0
    assert difference.nanmedian() < 0.5 * still.median()


def test_hidden_pixels_are_covered_by_something_nearer() -> None:
    scene = scenes.standing_camera(width=WIDTH)
    exact = correspondence.flow(scene, 0, 12)
    grid = camera.pixel_grid(scene.intrinsics.size, torch.float64)
    target = renderer.render(scene, 12)
    height, width = scene.intrinsics.size
    place = grid + exact.flow
    inside = camera.inside(place, (height, width))
    hidden = inside & ~exact.visible
    assert hidden.sum() > 20
    cover = pointmap.sample_nearest(target.depth.unsqueeze(-1).double(), place[hidden])[:, 0]
    assert ((cover < exact.depth[hidden]).float().mean()) > 0.9


def test_tracks_agree_with_flow_and_masks() -> None:
    scene = scenes.demo(width=WIDTH)
    generator = torch.Generator().manual_seed(0)
    height, width = scene.intrinsics.size
    pixels = torch.randint(0, height * width, (200,), generator=generator)
    uv = torch.stack([pixels % width, pixels // width], dim=-1)
    tracks = correspondence.tracks(scene, 20, uv, (20, 26))
    assert torch.allclose(tracks.uv[0], uv.double(), atol=1e-9) and tracks.visible[0].all()
    exact = correspondence.flow(scene, 20, 26)
    assert torch.allclose(tracks.uv[1], uv + exact.flow.reshape(-1, 2)[pixels], atol=1e-9)
    assert torch.equal(tracks.visible[1], exact.visible.reshape(-1)[pixels])
    frame = renderer.render(scene, 20)
    assert torch.equal(tracks.moving[0], frame.dynamic_mask.reshape(-1)[pixels])
    travelled = (tracks.points_world[1] - tracks.points_world[0]).norm(dim=-1)
    assert travelled[~tracks.moving[0]].max() < 1e-12
    assert travelled[tracks.moving[0]].min() > 1e-4


def test_the_large_mover_covers_more_than_half_of_every_picture() -> None:
    scene = scenes.large_mover(width=WIDTH)
    for index in range(0, scene.num_frames, 6):
        share = float(renderer.render(scene, index).dynamic_mask.float().mean())
        assert 0.5 < share < 0.7

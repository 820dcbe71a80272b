"""Clips against the renderer of the demo, brute force and themselves."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import ConfigError
from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.synthetic import raycast
from recon4d_ros.synthetic.clips import ClipGenerator, ClipSettings, tracks
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.generator import ClipTruth
from recon4d_ros.synthetic.clips.motion import views
from recon4d_ros.synthetic.clips.pictures import pictures
from recon4d_ros.synthetic.clips.sampling import draw_world
from recon4d_ros.synthetic.clips.settings import NO_EFFECTS, CameraShares, ObjectShares
from recon4d_ros.synthetic.clips.world import Kind
from recon4d_ros.synthetic.motions import Fixed
from recon4d_ros.synthetic.scene import Pattern, Scene, Shape, Snapshot, Solid, Texture

# Small tensors: threads cost more than they give.
torch.set_num_threads(1)

SMALL = ClipSettings(num_frames=6, size=(64, 80), num_tracks=96, num_textures=7, texture_size=64)
RIGID = dataclasses.replace(SMALL, bending=0.0)
SHAPES = {Kind.ROOM: Shape.ROOM, Kind.BOX: Shape.BOX, Kind.ELLIPSOID: Shape.ELLIPSOID}
PLAIN = Texture(Pattern.PATCHES, seed=0, tile_m=1.0, resolution=64)


def truth_of(settings: ClipSettings, clip: int) -> ClipTruth:
    return ClipGenerator(settings, seed=5).truth(range(clip, clip + 1))


def house_view(truth: ClipTruth, frame: int) -> tuple[Snapshot, torch.Tensor]:
    """The same frame for the demo's ray caster, and which solids it holds."""
    solids, view = truth.world.solids, truth.view
    places = solids.is_present[0].nonzero().squeeze(-1)
    made = []
    for place in places.tolist():
        kind, half = Kind(int(solids.kind[0, place])), solids.half_size[0, place].tolist()
        if kind is Kind.QUAD:
            half[2] = 1e-9
        shape = SHAPES.get(kind, Shape.BOX)
        made.append(Solid(str(place), shape, tuple(half), Fixed((0.0, 0.0, 0.0)), PLAIN))
    height, width = truth.hits.depth.shape[1:]
    K = truth.world.K[0]
    optics = Intrinsics(*(float(K[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))), width, height)
    scene = Scene("clip", tuple(made), Fixed((0.0, 0.0, 0.0)), optics, 1)
    return Snapshot(
        scene, view.T_world_cam[0, frame], view.T_world_solid[0, frame, places]
    ), places


@pytest.mark.parametrize("clip", range(4))
def test_depth_and_solids_are_those_of_the_demos_ray_caster(clip: int) -> None:
    truth = truth_of(RIGID, clip)
    for frame in (0, 3):
        view, places = house_view(truth, frame)
        uv = camera.pixel_grid(view.scene.intrinsics.size, torch.float64).reshape(-1, 2)
        expected = raycast.cast(view, uv)
        solid = truth.hits.solid[frame].flatten().long()
        same = solid == places[expected.solid]
        # A pixel whose ray touches an edge may fall on either side in float32.
        assert (~same).sum() <= 1
        error = (truth.hits.depth[frame].flatten() / expected.depth - 1.0).abs()
        assert error[same].max() < 2e-5
        assert len(torch.unique(solid)) > 3


def test_bounds_of_balls_in_the_image_touch_their_outlines() -> None:
    numbers = range(20)
    world = draw_world(SMALL, Dice(5, numbers, torch.device("cpu")))
    view = views(world, torch.zeros(len(numbers), 1, dtype=torch.float64))
    seen = pictures(world, view, torch.float64)
    random = torch.Generator().manual_seed(0)
    sphere = torch.randn(200_000, 3, dtype=torch.float64, generator=random)
    sphere /= sphere.norm(dim=-1, keepdim=True)
    num_checked = 0
    for clip, place in (seen.kind == Kind.ELLIPSOID).nonzero().tolist():
        surface = sphere * world.solids.half_size[clip, place]
        points = se3.transform(view.T_cam_solid[clip, 0, place], surface)
        if points[:, 2].min() > 0.3:
            uv = camera.project(points, world.K[clip])
            size = (uv.amax(dim=0) - uv.amin(dim=0)).max()
            for bound, found in ((seen.low, uv.amin(dim=0)), (-seen.high, -uv.amax(dim=0))):
                margin = found - bound[clip, place]
                assert (margin > -1e-9).all()
                assert (margin < 1e-3 * size).all()
            num_checked += 1
    assert num_checked > 20


def test_rays_that_cross_bent_quads_end_on_them() -> None:
    settings = dataclasses.replace(SMALL, bending=1.0, num_statics=(10, 10))
    seen = 0
    for clip in range(4):
        truth = truth_of(settings, clip)
        solids, view = truth.world.solids, truth.view
        solid = truth.hits.solid[0].long()
        points = pointmap.from_depth(truth.hits.depth[0].double(), truth.world.K[0])
        bent = solids.kind[0, solid] == Kind.BENT_QUAD
        if not bent.any():
            continue
        place = solid[bent]
        unit = se3.transform(view.T_solid_cam[0, 0, place], points[bent])
        unit = unit / solids.half_size[0, place]
        height = torch.sin(solids.wave[0, place] * unit[:, 0] + view.phase[0, 0, place])
        assert (unit[:, 2] - height).abs().max() < 2e-2
        assert (unit[:, :2].abs() < 1.0 + 1e-3).all()
        seen += int(bent.sum())
    assert seen > 300


def positions_by_hand(truth: ClipTruth) -> torch.Tensor:
    """Tracks (T, N, 2) from the house's depth at the query, poses and nothing else."""
    frames, uv = truth.queries.frame[0, ::3], truth.queries.uv[0, ::3]
    K, view = truth.world.K[0], truth.view
    found = torch.full((view.phase.shape[1], len(frames), 2), torch.nan, dtype=torch.float64)
    for number, frame in enumerate(frames.tolist()):
        at, places = house_view(truth, frame)
        hit = raycast.cast(at, uv[number : number + 1])
        place = places[hit.solid]
        point = camera.unproject(uv[number : number + 1], hit.depth, K)
        world = se3.transform(view.T_world_cam[0, frame], point)
        local = se3.transform(se3.inverse(view.T_world_solid[0, frame, place]), world)
        later = se3.transform(view.T_world_solid[0, :, place], local)
        in_cam = se3.transform(se3.inverse(view.T_world_cam[0])[:, None], later)
        found[:, number] = camera.project(in_cam, K)[:, 0]
    return found


@pytest.mark.parametrize("clip", [0, 1])
def test_tracks_are_depth_pose_and_object_motion(clip: int) -> None:
    truth = truth_of(RIGID, clip)
    expected = positions_by_hand(truth)
    error = (truth.path.uv[0, :, ::3] - expected).abs().nan_to_num()
    assert error.max() < 1e-6
    clips = ClipGenerator(RIGID, seed=5).clips(clip, 1)
    assert (clips.tracks[0, :, ::3] - expected).abs().nan_to_num().max() < 1e-3


@pytest.mark.parametrize("clip", range(3))
def test_visibility_is_what_the_demos_ray_caster_sees(clip: int) -> None:
    truth = truth_of(RIGID, clip)
    size = RIGID.size
    hidden = 0
    for frame in range(RIGID.num_frames):
        view, places = house_view(truth, frame)
        uv, z = truth.path.uv[0, frame], truth.path.points_cam[0, frame, :, 2]
        inside = camera.inside(uv, size) & (z > 0)
        hit = raycast.cast(view, uv[inside])
        expected = (hit.depth / z[inside] - 1.0).abs() < 0.01
        assert torch.equal(truth.path.is_seen[0, frame, inside], expected)
        assert not truth.path.is_seen[0, frame, ~inside].any()
        # The surface in front is another one, but for the far side of the solid itself.
        seen = expected & (places[hit.solid] == truth.material.solid[0, inside])
        assert seen.sum() > 0.9 * expected.sum()
        hidden += int((~expected).sum())
    assert hidden > 0 or clip != 0


def test_queries_are_seen_and_lie_on_their_tracks() -> None:
    clips = ClipGenerator(SMALL, seed=5).clips(0, 6)
    frame = clips.queries[..., 0].long()
    at = frame[:, None, :, None].expand(-1, -1, -1, 2)
    on_track = clips.tracks.gather(1, at)[:, 0]
    assert (on_track - clips.queries[..., 1:]).abs().max() < 1e-3
    assert clips.visibility.gather(1, frame[:, None])[:, 0].all()


def test_queries_keep_away_from_silhouettes() -> None:
    truth = ClipGenerator(SMALL, seed=5).truth(range(4))
    solid = truth.hits.solid.view(4, SMALL.num_frames, *SMALL.size)
    for clip, frame, number in torch.cartesian_prod(
        torch.arange(4), torch.arange(1), torch.arange(SMALL.num_tracks)
    ).tolist():
        frame = int(truth.queries.frame[clip, number])
        x, y = truth.queries.uv[clip, number].round().long().tolist()
        around = solid[clip, frame, y - 2 : y + 3, x - 2 : x + 3]
        assert around.shape == (5, 5) and (around == truth.material.solid[clip, number]).all()


def test_flow_is_the_displacement_of_tracks_from_whole_pixels() -> None:
    generator = ClipGenerator(SMALL, seed=5)
    clips = generator.clips(1, 1, dense_motion=True)
    truth = generator.truth(range(1, 2))
    pixels = camera.pixel_grid(SMALL.size, torch.float64)[2::6, 2::6].reshape(1, -1, 2)
    for frame in (0, 2, 4):
        begin = tracks.Queries(torch.full(pixels.shape[:2], frame), pixels)
        material = tracks.material_points(truth.world, truth.view, begin)
        path = tracks.track(truth.world, truth.view, SMALL.size, material)
        x, y = pixels[0].long().unbind(-1)
        moved = path.uv[0, frame + 1] - pixels[0]
        same = truth.hits.solid[frame][y, x] == material.solid[0]
        error = (clips.flow[0, frame, y, x] - moved)[same]
        assert error.abs().nan_to_num().max() < 0.01
        assert same.sum() >= len(same) - 1
        T_a, T_b = truth.view.T_world_cam[0, frame], truth.view.T_world_cam[0, frame + 1]
        now, later = path.points_cam[0, frame], path.points_cam[0, frame + 1]
        step = se3.transform(se3.inverse(T_a) @ T_b, later) - now
        assert (clips.scene_flow[0, frame, y, x] - step)[same].abs().max() < 1e-3


def equal(a: Clips, b: Clips) -> bool:
    for field in dataclasses.fields(Clips):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, torch.Tensor):
            one, other = one.nan_to_num(-1.0), other.nan_to_num(-1.0)
            if not torch.equal(one, other):
                return False
        elif one != other:
            return False
    return True


def test_a_clip_is_the_same_in_every_batch() -> None:
    generator = ClipGenerator(SMALL, seed=5)
    whole = generator.clips(3, 3)
    for row in range(3):
        alone = ClipGenerator(SMALL, seed=5).clips(3 + row, 1)
        rows = {
            field.name: getattr(whole, field.name)[row : row + 1]
            for field in dataclasses.fields(Clips)
            if getattr(whole, field.name) is not None
        }
        assert equal(alone, Clips(**rows))
    other = ClipGenerator(SMALL, seed=6).clips(3, 1)
    assert not torch.equal(other.K, whole.K[:1])


def test_clips_made_side_by_side_are_those_made_one_by_one() -> None:
    alone = ClipGenerator(SMALL, seed=5).clips(0, 4)
    torch.set_num_threads(3)
    try:
        together = ClipGenerator(SMALL, seed=5).clips(0, 4)
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert equal(together, alone)


def test_clips_made_in_one_pass_are_those_made_one_by_one() -> None:
    generator = ClipGenerator(SMALL, seed=5)
    together = generator._make(range(4), False)
    alone = generator.clips(0, 4)
    assert torch.equal(together.object_ids, alone.object_ids)
    assert (together.tracks - alone.tracks).abs().nan_to_num().max() < 1e-3
    assert torch.equal(together.visibility, alone.visibility)
    difference = (together.rgb.int() - alone.rgb.int()).abs()
    assert (difference > 1).float().mean() < 1e-3


def test_pictures_show_the_same_colour_along_visible_tracks() -> None:
    plain = dataclasses.replace(
        SMALL, size=(128, 128), effects=NO_EFFECTS, objects=ObjectShares(1, 0, 0, 0, 0)
    )
    clips = ClipGenerator(plain, seed=5).clips(0, 4)
    pairs = zip(clips.rgb.float().flatten(0, 1), clips.tracks.flatten(0, 1), strict=True)
    colour = torch.stack([pointmap.sample_bilinear(picture, uv) for picture, uv in pairs])
    colour = colour.view(4, plain.num_frames, -1, 3)
    usable = clips.visibility & clips.visibility[:, :1]
    change = (colour - colour[:, :1]).abs().amax(dim=-1)[usable]
    other = (colour - colour[:, :1].roll(7, 2)).abs().amax(dim=-1)[usable]
    assert change.nanmedian() < 4.0 < 0.2 * other.nanmedian()


def test_motion_blur_is_the_mean_over_the_open_shutter() -> None:
    """Its few moments are closer to many than a picture without blur is."""
    numbers = range(4)
    only_blur = dataclasses.replace(NO_EFFECTS, motion_blur=1.0)
    generator = ClipGenerator(dataclasses.replace(SMALL, effects=only_blur), seed=5)
    sharp = ClipGenerator(dataclasses.replace(SMALL, effects=NO_EFFECTS), seed=5)
    truth = generator.truth(numbers)
    times = torch.arange(SMALL.num_frames).double()
    open_for = truth.effects.shutter[:, None]
    assert (open_for > 0).all()
    many = torch.zeros(len(numbers), SMALL.num_frames, 3, *SMALL.size)
    for moment in torch.linspace(-0.49, 0.49, 25):
        many += generator._shaded(truth.world, views(truth.world, times + moment * open_for)) / 25
    many = 255 * many.permute(0, 1, 3, 4, 2)
    found, plain = (
        float((made.clips(0, len(numbers)).rgb - many).abs().mean()) for made in (generator, sharp)
    )
    assert found < 0.6 * plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 1},
        {"size": (8, 64)},
        {"num_tracks": 0},
        {"num_textures": 0},
        {"texture_size": 100},
        {"still_share": 1.5},
        {"bending": float("nan")},
        {"num_movers": (3, 2)},
        {"num_statics": (-1, 2)},
        {"object_speed": (0.0, 0.1)},
        {"camera_speed": (0.1, 0.01)},
        {"camera": CameraShares(0, 0, 0, 0, 0, 0)},
        {"objects": ObjectShares(constant=-1)},
        {"effects": dataclasses.replace(NO_EFFECTS, noise=2.0)},
    ],
    ids=str,
)
def test_bad_settings_are_errors(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(SMALL, **wrong)


def test_bad_numbers_of_clips_are_errors() -> None:
    generator = ClipGenerator(SMALL, seed=5)
    for first, count in ((-1, 1), (0, 0)):
        with pytest.raises(ConfigError, match="expected 0 <= first"):
            generator.clips(first, count)

"""The voxel map against a dictionary of voxels, its bound, submaps and fading."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.config import MapConfig
from recon4d_ros.datatypes import (
    Frame,
    Intrinsics,
    IntrinsicsSource,
    Reconstruction,
    TrackingState,
)
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import image_grid, pointmap, se3
from recon4d_ros.mapping.clouds import frame_points
from recon4d_ros.mapping.static_map import StaticMap, mappable
from recon4d_ros.mapping.voxel_index import VoxelIndex, in_reach, pack, unpack
from recon4d_ros.synthetic import renderer, scenes

# Small tensors: threads cost more than they give.
torch.set_num_threads(1)

H, W = 24, 32
K = Intrinsics(30.0, 30.0, 15.5, 11.5, W, H)
EVERY_PIXEL = MapConfig(pixel_stride=1, edge_ratio=10.0)


def reconstruction(
    seed: int, index: int = 0, submap: int = 0, T: torch.Tensor | None = None
) -> Reconstruction:
    generator = torch.Generator().manual_seed(seed)
    depth = 2.0 + torch.rand((H, W), generator=generator)
    depth[torch.rand((H, W), generator=generator) < 0.1] = torch.nan
    confidence = 0.5 + torch.rand((H, W), generator=generator)
    twist = 0.02 * torch.randn(6, generator=generator, dtype=torch.float64)
    rgb = torch.randint(0, 256, (H, W, 3), generator=generator).to(torch.uint8)
    return Reconstruction(
        frame=Frame(index, index + 1, rgb, K),
        is_final=True,
        T_map_cam=se3.exp(twist) if T is None else T,
        depth=depth,
        confidence=torch.where(depth.isnan(), 0.0, confidence),
        dynamic_mask=torch.rand((H, W), generator=generator) < 0.1,
        filled=torch.rand((H, W), generator=generator) < 0.1,
        intrinsics=K,
        intrinsics_source=IntrinsicsSource.GIVEN,
        state=TrackingState.TRACKING,
        submap=submap,
        scale_known=False,
        residual_px=0.1,
        num_support=100,
    )


def plane(depth: float, index: int = 0) -> Reconstruction:
    full = torch.full((H, W), depth)
    nothing = torch.zeros((H, W), dtype=torch.bool)
    return dataclasses.replace(
        reconstruction(0, index, T=torch.eye(4, dtype=torch.float64)),
        depth=full,
        confidence=torch.ones(H, W),
        dynamic_mask=nothing,
        filled=nothing,
    )


def voxels_of(frames: list[Reconstruction], edge: float, config: MapConfig) -> dict:
    """The slow obvious map: a dictionary from cell to lists."""
    cells: dict[tuple[int, ...], list] = {}
    for number, frame in enumerate(frames):
        points = frame_points(frame, mappable(frame, config))
        rows = zip(points.points.double(), points.rgb.double(), points.confidence, strict=True)
        for point, rgb, weight in rows:
            cell = tuple(math.floor(value / edge) for value in point.tolist())
            cells.setdefault(cell, []).append((number, float(weight), point, rgb))
    return cells


def test_equals_a_dictionary_of_voxels() -> None:
    config = dataclasses.replace(EVERY_PIXEL, voxel_size=0.05, carve_margin=0.9)
    frames = [reconstruction(seed, seed) for seed in range(4)]
    static_map = StaticMap(config)
    for frame in frames:
        static_map.insert(frame)
    edge = config.voxel_size * float(frames[0].depth[mappable(frames[0], config)].median())
    assert static_map.voxel_edge() == pytest.approx(edge)
    expected = voxels_of(frames, edge, config)
    cloud = static_map.cloud()
    assert len(cloud.points) == static_map.num_voxels == len(expected)
    found = {
        tuple(math.floor(v / edge) for v in p): n for n, p in enumerate(cloud.points.tolist())
    }
    for cell, entries in expected.items():
        row = found[cell]
        weights = torch.tensor([entry[1] for entry in entries]).double()
        mean = sum(w * e[2] for w, e in zip(weights, entries, strict=True)) / weights.sum()
        rgb = sum(w * e[3] for w, e in zip(weights, entries, strict=True)) / weights.sum()
        assert torch.allclose(cloud.points[row].double(), mean, atol=1e-5)
        assert (cloud.rgb[row].double() - rgb).abs().max() < 0.51
        assert float(cloud.confidence[row]) == pytest.approx(float(weights.sum()), rel=1e-5)
        assert int(cloud.num_observations[row]) == len({entry[0] for entry in entries})


def test_cloud_keeps_voxels_with_enough_observations() -> None:
    static_map = StaticMap(dataclasses.replace(EVERY_PIXEL, voxel_size=0.05))
    for seed in range(3):
        static_map.insert(reconstruction(seed, seed))
    every, often = static_map.cloud(1), static_map.cloud(2)
    assert 0 < len(often.points) < len(every.points)
    assert len(often.points) == int((every.num_observations >= 2).sum())


def test_only_static_known_confident_pixels_enter() -> None:
    frame = reconstruction(1)
    weak = frame.confidence.clone()
    weak[5, 5:9] = 1e-3
    frame = dataclasses.replace(frame, confidence=weak)
    chosen = mappable(frame, EVERY_PIXEL)
    assert chosen.any() and not chosen[5, 5:9].any()
    assert not (chosen & (frame.dynamic_mask | frame.filled | frame.depth.isnan())).any()


def test_pixels_across_outlines_stay_out() -> None:
    frame = plane(3.0)
    frame.depth[8:16, 10:20] = 1.5
    frame.depth[:, 25:] += 0.01 * torch.arange(W - 25)  # a slanted wall is no outline
    chosen = mappable(frame, MapConfig())
    expected = torch.ones(H, W) > 0
    expected[7:17, 9:21] = False
    expected[9:15, 11:19] = True
    assert torch.equal(chosen, expected)


def test_frames_without_pose_or_pixels_change_nothing() -> None:
    static_map = StaticMap(EVERY_PIXEL)
    static_map.insert(dataclasses.replace(reconstruction(0), T_map_cam=None))
    static_map.insert(dataclasses.replace(reconstruction(0), dynamic_mask=torch.ones(H, W) > 0))
    assert static_map.num_voxels == 0 and len(static_map.cloud().points) == 0
    assert math.isnan(static_map.voxel_edge())


@given(bound=st.integers(1000, 3000), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_bound_is_never_passed(bound: int, seed: int) -> None:
    config = dataclasses.replace(EVERY_PIXEL, max_voxels=bound, voxel_size=0.002)
    static_map = StaticMap(config)
    for step in range(8):
        static_map.insert(reconstruction(seed + step, step))
        assert 0 < static_map.num_voxels <= bound
        assert len(static_map.cloud().points) == static_map.num_voxels
    assert static_map.num_voxels > 0.8 * bound
    assert static_map.memory_bytes < 100 * bound


def test_a_frame_larger_than_the_map_fills_it() -> None:
    wide = dataclasses.replace(K, width=W, height=H)
    config = dataclasses.replace(EVERY_PIXEL, max_voxels=200, voxel_size=0.001)
    static_map = StaticMap(config)
    static_map.insert(dataclasses.replace(reconstruction(0), intrinsics=wide))
    assert static_map.num_voxels == 200


def test_seldom_seen_and_old_voxels_go_first() -> None:
    config = dataclasses.replace(EVERY_PIXEL, max_voxels=2 * H * W, voxel_size=0.002)
    static_map = StaticMap(config)
    often = plane(2.0)
    for step in range(3):
        static_map.insert(dataclasses.replace(often, frame=often.frame))
        assert static_map.num_voxels == H * W, step
    for shift in range(1, 4):
        T = torch.eye(4, dtype=torch.float64)
        T[2, 3] = float(10 * shift)
        static_map.insert(dataclasses.replace(often, T_map_cam=T))
    # The voxels seen thrice stay; the others come and go.
    cloud = static_map.cloud()
    assert int((cloud.num_observations == 3).sum()) == H * W
    assert static_map.num_voxels <= 2 * H * W
    newest = cloud.points[cloud.num_observations == 1][:, 2]
    assert newest.min() > 31.5


def test_eviction_is_deterministic() -> None:
    def build() -> StaticMap:
        static_map = StaticMap(dataclasses.replace(EVERY_PIXEL, max_voxels=1500, voxel_size=0.003))
        for seed in range(8):
            static_map.insert(reconstruction(seed, seed))
        return static_map

    first, second = build().cloud(), build().cloud()
    for field in ("points", "rgb", "confidence", "num_observations"):
        assert torch.equal(getattr(first, field), getattr(second, field))


def test_submaps_share_the_bound_but_nothing_else() -> None:
    config = dataclasses.replace(EVERY_PIXEL, max_voxels=1000, voxel_size=0.002)
    static_map = StaticMap(config)
    for _ in range(3):  # often seen, and yet the first to go
        static_map.insert(plane(2.0))
    static_map.insert(dataclasses.replace(plane(6.0), submap=1))
    assert static_map.submap == 1 and static_map.submaps == (0, 1)
    assert static_map.voxel_edge() == pytest.approx(0.012)
    assert torch.allclose(static_map.cloud().points[:, 2], torch.tensor(6.0))
    assert len(static_map.cloud().points) == H * W
    old = static_map.cloud(submap=0)
    assert 0 < len(old.points) <= 1000 - H * W and (old.num_observations == 3).all()
    assert torch.allclose(old.points[:, 2], torch.tensor(2.0))
    shifted = torch.eye(4, dtype=torch.float64)
    shifted[0, 3] = 100.0
    beside = dataclasses.replace(plane(6.0), submap=1, T_map_cam=shifted)
    static_map.insert(beside)
    assert static_map.submaps == (1,)
    static_map.insert(plane(2.0))  # back in the first one
    assert static_map.voxel_edge() == pytest.approx(0.004)
    assert torch.allclose(static_map.cloud().points[:, 2], torch.tensor(2.0))
    static_map.reset()
    assert static_map.num_voxels == 0 and static_map.submaps == ()


def test_what_later_frames_see_through_fades() -> None:
    static_map = StaticMap(EVERY_PIXEL)
    ghost = plane(3.0).depth
    ghost[8:16, 10:20] = 1.5
    for index in range(3):
        static_map.insert(dataclasses.replace(plane(3.0, index), depth=ghost))
    assert (static_map.cloud(2).points[:, 2] < 2.0).any()
    for index in range(3, 6):
        assert (static_map.cloud().points[:, 2] < 2.0).any()
        static_map.insert(plane(3.0, index))
    points = static_map.cloud().points
    assert not (points[:, 2] < 2.0).any()
    assert (points[:, 2] > 2.9).all()


def test_a_static_foreground_never_fades() -> None:
    static_map = StaticMap(EVERY_PIXEL)
    depth = plane(3.0).depth
    depth[8:16, 10:20] = 1.5
    for index in range(10):
        T = torch.eye(4, dtype=torch.float64)
        T[0, 3] = 0.004 * index
        static_map.insert(dataclasses.replace(plane(3.0, index), depth=depth, T_map_cam=T))
    assert (static_map.cloud(5).points[:, 2] < 2.0).sum() > 20


def test_every_voxel_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon4d_ros.mapping.static_map._CARVED_PER_FRAME", 100)
    static_map = StaticMap(EVERY_PIXEL)
    for index in range(2):
        static_map.insert(plane(1.5, index))
    for index in range(2, 80):
        static_map.insert(plane(3.0, index))
    assert not (static_map.cloud().points[:, 2] < 2.0).any()


def test_thinned_frames_cover_all_pixels_in_turn() -> None:
    config = MapConfig(pixel_stride=2, voxel_size=0.001)
    static_map = StaticMap(config)
    counts = []
    for index in range(5):
        static_map.insert(plane(2.0, index))
        counts.append(static_map.num_voxels)
    assert counts == [192, 384, 576, 768, 768]


def test_map_of_a_rendered_room_lies_on_its_surfaces() -> None:
    scene = scenes.demo(width=160)
    static_map = StaticMap(MapConfig())
    for index in range(0, 24, 4):
        frame = renderer.render(scene, index)
        base = dataclasses.replace(plane(1.0, index), frame=frame.frame)
        static_map.insert(
            dataclasses.replace(
                base,
                T_map_cam=frame.T_world_cam,
                depth=frame.depth,
                confidence=torch.ones_like(frame.depth),
                dynamic_mask=frame.dynamic_mask,
                filled=torch.zeros_like(frame.dynamic_mask),
                intrinsics=frame.intrinsics,
            )
        )
    cloud = static_map.cloud(2)
    assert len(cloud.points) > 1000
    room = torch.tensor([2.6, 2.4, 1.4])
    assert (cloud.points.abs() <= room + 1e-3).all()
    # No voxel lies in free space where the ball swings.
    assert (cloud.points - torch.tensor([0.75, -0.5, 0.25])).norm(dim=-1).min() > 0.3


cells = st.integers(-(1 << 20), (1 << 20) - 1)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=30))
def test_keys_are_reversible_and_ordered(rows: list[tuple[int, int, int]]) -> None:
    table = torch.tensor(rows)
    assert torch.equal(unpack(pack(table)), table) and in_reach(table).all()
    order = sorted(range(len(rows)), key=lambda n: rows[n])
    keys = pack(table)[order]
    assert (keys[1:] >= keys[:-1]).all()


def test_cells_out_of_reach_are_told() -> None:
    far = torch.tensor([[1 << 20, 0, 0], [0, -(1 << 20) - 1, 0], [0, 0, 0]])
    assert in_reach(far).tolist() == [False, False, True]


@given(st.sets(st.integers(0, 200), max_size=40), st.sets(st.integers(0, 200), max_size=40))
def test_index_equals_a_dictionary(first: set[int], second: set[int]) -> None:
    index = VoxelIndex.empty(1.0)
    known: dict[int, int] = {}
    for part in (first, second - first):
        keys = torch.tensor(sorted(part), dtype=torch.int64)
        slots = torch.arange(len(known), len(known) + len(keys))
        index = index.with_voxels(keys, slots)
        known |= dict(zip(keys.tolist(), slots.tolist(), strict=True))
    asked = torch.arange(201)
    assert index.find(asked).tolist() == [known.get(key, -1) for key in range(201)]


def test_frame_points_are_the_depth_seen_from_the_pose() -> None:
    frame = reconstruction(4)
    assert frame.T_map_cam is not None
    expected = pointmap.transform(frame.T_map_cam.float(), pointmap.from_depth(frame.depth, K))
    for mask in (torch.ones(H, W) > 0, frame.dynamic_mask):
        chosen = mask & frame.depth.isfinite()
        cloud = frame_points(frame, mask)
        assert torch.allclose(cloud.points, expected[chosen], atol=1e-6)
        assert torch.equal(cloud.rgb, frame.frame.rgb[chosen])
        assert torch.equal(cloud.confidence, frame.confidence[chosen])
    with pytest.raises(AlignmentError, match="no pose"):
        frame_points(dataclasses.replace(frame, T_map_cam=None), frame.dynamic_mask)


def test_frame_points_have_the_colours_of_the_dense_grid() -> None:
    frame = reconstruction(5)
    large = frame.frame.rgb.repeat_interleave(2, 0).repeat_interleave(2, 1)
    frame = dataclasses.replace(frame, frame=dataclasses.replace(frame.frame, rgb=large))
    cloud = frame_points(frame, frame.dynamic_mask)
    chosen = frame.dynamic_mask & frame.depth.isfinite()
    assert torch.equal(cloud.rgb, image_grid.resize_image(large, (H, W))[chosen])

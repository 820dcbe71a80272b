"""The voxel map and the folder of results after a correction of the map."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_mapping_static_map import EVERY_PIXEL, K, plane, reconstruction
from torch import Tensor

from recon4d_ros.config import Config
from recon4d_ros.datatypes import MapCorrection
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.mapping.static_map import StaticMap
from recon4d_ros.storage.images import read_depth
from recon4d_ros.storage.rectification import CameraModel, Rectifier
from recon4d_ros.storage.results import ResultFolder
from recon4d_ros.storage.trajectory import read_trajectory

VALUES = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.2, -0.1, 0.2], dtype=torch.float64)


def correction(submap: int = 0, last: Tensor = VALUES) -> MapCorrection:
    """Nothing at frame 0, everything from frame 10 on."""
    return MapCorrection(
        submap,
        torch.tensor([0, 10]),
        torch.tensor([1, 11]),
        sim3.from_coordinates(torch.stack([torch.zeros_like(last), last])),
    )


def map_of(*frames, **changes: object) -> StaticMap:
    static_map = StaticMap(replace(EVERY_PIXEL, max_voxels=20_000, carve_margin=0.9, **changes))
    for frame in frames:
        static_map.insert(frame)
    return static_map


def ordered(points: Tensor, *others: Tensor) -> list[Tensor]:
    order = sorted(range(len(points)), key=lambda row: points[row].tolist())
    return [each[order] for each in (points, *others)]


@pytest.mark.parametrize(("index", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_voxels_move_with_the_frame_that_saw_them(index: int, share: float) -> None:
    static_map = map_of(reconstruction(1, index))
    before = static_map.cloud()
    static_map.correct(correction())
    after = static_map.cloud()
    S = sim3.from_coordinates(share * VALUES)
    expected = se3.transform(S, before.points.double()).float()
    # Lengths grow, so hardly any two voxels fall into one.
    assert len(before.points) - 3 <= len(after.points) <= len(before.points)
    if len(after.points) == len(before.points):
        for ours, theirs in zip(
            ordered(after.points, after.rgb), ordered(expected, before.rgb), strict=True
        ):
            torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-4, rtol=0)
    assert float(after.confidence.sum()) == pytest.approx(float(before.confidence.sum()), rel=1e-5)


def test_the_last_sight_counts() -> None:
    """The same wall from one spot, seen early and seen late, moves as the late frame does."""
    static_map = map_of(plane(2.0, 0), plane(2.0, 20))
    before = static_map.cloud()
    assert int(before.num_observations.min()) == 2
    static_map.correct(correction())
    expected = se3.transform(sim3.from_coordinates(VALUES), before.points.double())
    apart = torch.cdist(static_map.cloud().points.double(), expected).amin(dim=1)
    assert float(apart.max()) < static_map.voxel_edge()
    assert int(static_map.cloud().num_observations.min()) == 2


def test_voxels_that_fall_together_become_one() -> None:
    half = torch.zeros(7, dtype=torch.float64)
    half[6] = -0.7
    static_map = map_of(reconstruction(2, 10), voxel_size=0.05)
    before, bytes_before = static_map.cloud(), static_map.memory_bytes
    static_map.correct(correction(last=half))
    after = static_map.cloud()
    assert len(after.points) < 0.9 * len(before.points)
    assert float(after.confidence.sum()) == pytest.approx(float(before.confidence.sum()), rel=1e-5)
    cells = torch.floor(after.points.double() / static_map.voxel_edge())
    assert len(torch.unique(cells, dim=0)) == len(cells) == static_map.num_voxels
    weighted = (before.points * before.confidence[:, None]).sum(0) / before.confidence.sum()
    moved = (after.points * after.confidence[:, None]).sum(0) / after.confidence.sum()
    torch.testing.assert_close(
        moved, weighted * float(torch.tensor(-0.7).exp()), atol=1e-4, rtol=0
    )
    assert static_map.memory_bytes < bytes_before


def test_other_submaps_and_later_insertions_are_untouched() -> None:
    static_map = map_of(reconstruction(1, 10, submap=0), reconstruction(2, 11, submap=1))
    before = static_map.cloud(submap=0)
    static_map.correct(correction(submap=1))
    static_map.correct(correction(submap=5))
    torch.testing.assert_close(static_map.cloud(submap=0).points, before.points)
    count = static_map.num_voxels
    static_map.insert(reconstruction(2, 12, submap=1))
    assert static_map.num_voxels > count  # the old surface has moved away
    total = sum(len(static_map.cloud(submap=s).points) for s in static_map.submaps)
    assert total == static_map.num_voxels


def test_what_leaves_the_reach_of_the_map_is_dropped() -> None:
    far = torch.zeros(7, dtype=torch.float64)
    far[0] = 1e9
    static_map = map_of(reconstruction(1, 10))
    static_map.correct(correction(last=far))
    assert static_map.num_voxels == 0
    static_map.insert(reconstruction(1, 11))
    assert static_map.num_voxels > 0


def test_a_folder_of_results_moves_with_the_map(tmp_path: Path) -> None:
    """Final poses and depth move, what was published at first stays."""
    results = ResultFolder(tmp_path / "out", Config())
    rectifier = Rectifier(CameraModel(K), K.size)
    frames = [reconstruction(seed, index) for seed, index in enumerate((0, 5, 10, 12))]
    frames.append(reconstruction(9, 13, submap=1))
    for frame in frames:
        results.add_provisional(frame)
        results.add_final(frame, rectifier)
    results.correct(correction())
    results.correct(correction(submap=4))
    report = {"intrinsics": {"source": "given"}, "scale_known": False}
    cloud = map_of(frames[0]).cloud()
    results.close(cloud, CameraModel(K), K.size, report)
    first = read_trajectory(tmp_path / "out" / "trajectory_provisional.tum").T_world_cam
    final = read_trajectory(tmp_path / "out" / "trajectory.tum").T_world_cam
    shares = torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0], dtype=torch.float64)
    S = sim3.from_coordinates(shares[:, None] * VALUES)
    torch.testing.assert_close(final, sim3.transform_pose(S, first), atol=1e-7, rtol=0)
    assert len(results.final_poses(0)) == 4 and len(results.final_poses(1)) == 1
    scale = json.loads((tmp_path / "out" / "intrinsics.json").read_text())["depth_scale"]
    for frame, share in zip(frames, shares.tolist(), strict=True):
        path = tmp_path / "out" / "depth" / f"{frame.frame.stamp_ns}.png"
        factor = float(torch.tensor(0.2 * share).exp())
        expected = rectifier.depth_to_input(frame.depth) * factor
        torch.testing.assert_close(
            read_depth(path, scale), expected, atol=2.0 / scale, rtol=0, equal_nan=True
        )

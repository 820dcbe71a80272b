"""Trajectories, clouds and images: round trips, published files, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evo.tools import file_interface
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import picture
from scipy.spatial.transform import Rotation

from recon4d_ros.datatypes import PointCloud, Trajectory
from recon4d_ros.errors import FrameError, OutputError, SourceError
from recon4d_ros.storage.images import (
    read_depth,
    read_mask,
    read_rgb,
    write_depth,
    write_mask,
    write_rgb,
)
from recon4d_ros.storage.ply import read_ply, write_ply
from recon4d_ros.storage.trajectory import (
    parse_seconds,
    read_trajectory,
    seconds_text,
    write_trajectory,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def random_trajectory(num_poses: int, seed: int = 0) -> Trajectory:
    generator = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num_poses, 1, 1))
    poses[:, :3, :3] = Rotation.random(num_poses, random_state=seed).as_matrix()
    poses[:, :3, 3] = generator.normal(size=(num_poses, 3)) * 10
    stamps = 1_700_000_000_000_000_001 + np.arange(num_poses) * 33_333_333
    return Trajectory(torch.from_numpy(stamps), torch.from_numpy(poses))


@given(st.integers(-(10**18), 4 * 10**18))
def test_stamps_are_exact_to_the_nanosecond(stamp_ns: int) -> None:
    assert parse_seconds(seconds_text(stamp_ns)) == stamp_ns


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "1,5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_seconds(text)


def test_trajectories_come_back(tmp_path: Path) -> None:
    trajectory = random_trajectory(50)
    write_trajectory(tmp_path / "t.tum", trajectory)
    back = read_trajectory(tmp_path / "t.tum")
    assert torch.equal(back.stamps_ns, trajectory.stamps_ns)
    torch.testing.assert_close(back.T_world_cam, trajectory.T_world_cam, atol=2e-8, rtol=0)


def test_an_empty_trajectory_comes_back(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "t.tum", random_trajectory(0))
    assert read_trajectory(tmp_path / "t.tum").T_world_cam.shape == (0, 4, 4)


def test_evo_reads_what_we_write(tmp_path: Path) -> None:
    trajectory = random_trajectory(20, seed=3)
    write_trajectory(tmp_path / "t.tum", trajectory)
    theirs = file_interface.read_tum_trajectory_file(tmp_path / "t.tum")
    np.testing.assert_allclose(
        np.array(theirs.poses_se3), trajectory.T_world_cam.numpy(), atol=1e-7
    )


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["freiburg1_xyz-groundtruth.txt", "fr2_desk_groundtruth.txt", "fr2_desk_ORB.txt"]
)
def test_published_trajectories_read_like_evo(name: str) -> None:
    path = DATA / "traj_eval" / name
    if not path.is_file():
        pytest.skip(f"{name} is not there: put the trajectories into ../shared/data/traj_eval")
    ours, theirs = read_trajectory(path), file_interface.read_tum_trajectory_file(path)
    # evo keeps repeated stamps; the first of each is the one it associates.
    _, first = np.unique(theirs.timestamps, return_index=True)
    np.testing.assert_allclose(ours.stamps_ns.numpy() * 1e-9, theirs.timestamps[first], atol=1e-6)
    np.testing.assert_allclose(
        ours.T_world_cam.numpy(), np.array(theirs.poses_se3)[first], atol=1e-9
    )


POSE = "1.0 0 0 0 0 0 0 1"
BAD_TRAJECTORIES = {
    "short line": ("1.0 0 0 0 0 0 0", "line 1"),
    "words": ("1.0 a 0 0 0 0 0 1", "line 1"),
    "no stamp": ("x 0 0 0 0 0 0 1", "line 1"),
    "NaN": ("1.0 nan 0 0 0 0 0 1", "finite"),
    "zero quaternion": ("1.0 0 0 0 0 0 0 0", "norm 0"),
    "not a unit": ("1.0 0 0 0 0 0 0 1.5", "norm 1.5"),
    "backwards": (f"{POSE}\n# a comment\n0.5 0 0 0 0 0 0 1", "line 3"),
}


@pytest.mark.parametrize("case", BAD_TRAJECTORIES)
def test_bad_trajectories_are_refused(tmp_path: Path, case: str) -> None:
    text, word = BAD_TRAJECTORIES[case]
    (tmp_path / "t.tum").write_text(text)
    with pytest.raises(SourceError, match=word):
        read_trajectory(tmp_path / "t.tum")


def test_missing_and_unwritable_trajectories(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_trajectory(tmp_path / "none.tum")
    for scale in (1e-40, 1e300):
        with pytest.raises(SourceError, match="depths are infinite or zero"):
            read_depth(tmp_path / "m.png", scale)
    with pytest.raises(OutputError, match="cannot write"):
        write_trajectory(tmp_path / "no" / "t.tum", random_trajectory(1))
    unposed = random_trajectory(2)
    unposed.T_world_cam[1] = torch.nan
    with pytest.raises(OutputError, match="not finite"):
        write_trajectory(tmp_path / "t.tum", unposed)


def random_cloud(num_points: int) -> PointCloud:
    generator = torch.Generator().manual_seed(num_points)
    return PointCloud(
        torch.randn(num_points, 3, generator=generator),
        torch.randint(0, 256, (num_points, 3), generator=generator, dtype=torch.uint8),
        torch.rand(num_points, generator=generator),
        torch.randint(1, 99, (num_points,), generator=generator, dtype=torch.int32),
    )


@settings(max_examples=15, deadline=None)
@given(num_points=st.integers(0, 300))
def test_clouds_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, num_points: int
) -> None:
    path = tmp_path_factory.mktemp("cloud") / "c.ply"
    cloud = random_cloud(num_points)
    write_ply(path, cloud)
    back = read_ply(path)
    for name in ("points", "rgb", "confidence", "num_observations"):
        assert torch.equal(getattr(back, name), getattr(cloud, name))


def test_the_header_says_what_follows(tmp_path: Path) -> None:
    """Any PLY reader goes by the header: sizes of the named types must give the file's length."""
    write_ply(tmp_path / "c.ply", random_cloud(7))
    head, _, body = (tmp_path / "c.ply").read_bytes().partition(b"end_header\n")
    words = [line.split() for line in head.decode().splitlines()]
    sizes = {"float": 4, "uchar": 1, "int": 4}
    stride = sum(sizes[line[1]] for line in words if line[0] == "property")
    assert ["element", "vertex", "7"] in words
    assert len(body) == 7 * stride
    names = [line[2] for line in words if line[0] == "property"]
    assert names == ["x", "y", "z", "red", "green", "blue", "confidence", "observations"]


def test_damaged_clouds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.ply"
    write_ply(path, random_cloud(9))
    content = path.read_bytes()
    for cut in (0, 40, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(SourceError):
            read_ply(path)
    path.write_bytes(content.replace(b"float confidence", b"double confidence"))
    with pytest.raises(SourceError, match="expected a binary PLY"):
        read_ply(path)


def test_images_come_back(tmp_path: Path) -> None:
    write_rgb(tmp_path / "i.png", picture())
    assert torch.equal(read_rgb(tmp_path / "i.png"), picture())
    bgr = cv2.imread(str(tmp_path / "i.png"))
    np.testing.assert_array_equal(bgr[..., ::-1], picture().numpy())
    mask = torch.rand(20, 30) > 0.5
    write_mask(tmp_path / "m.png", mask)
    assert set(np.unique(cv2.imread(str(tmp_path / "m.png"), 0))) == {0, 255}
    assert torch.equal(read_mask(tmp_path / "m.png"), mask)


def test_depth_comes_back_within_half_a_step(tmp_path: Path) -> None:
    depth = torch.linspace(0.0, 14.0, 1200).reshape(30, 40)
    depth[3, 4] = torch.nan
    write_depth(tmp_path / "d.png", depth, 5000.0)
    back = read_depth(tmp_path / "d.png", 5000.0)
    stored = cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    in_range = (depth >= 1 / 5000) & (depth <= 65534 / 5000)
    assert torch.equal(back.isfinite(), in_range)
    assert float((back - depth)[in_range].abs().max()) <= 0.51 / 5000
    assert stored[3, 4] == 0


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    write_rgb(tmp_path / "i.jpg", picture())
    content = (tmp_path / "i.jpg").read_bytes()
    (tmp_path / "i.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(FrameError, match="ends early"):
        read_rgb(tmp_path / "i.jpg")
    with pytest.raises(FrameError, match="cannot read"):
        read_rgb(tmp_path / "none.png")
    (tmp_path / "d.png").write_bytes(b"")
    with pytest.raises(SourceError, match="damaged"):
        read_depth(tmp_path / "d.png", 1.0)
    write_mask(tmp_path / "m.png", torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(SourceError, match="16-bit"):
        read_depth(tmp_path / "m.png", 1.0)
    with pytest.raises(OutputError, match="cannot write"):
        write_mask(tmp_path / "no" / "m.png", torch.ones(4, 4, dtype=torch.bool))

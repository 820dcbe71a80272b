"""Trajectory errors against evo, and against published figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evo.core import metrics as evo_metrics
from evo.core import sync as evo_sync
from evo.core.trajectory import PoseTrajectory3D
from evo.tools import file_interface
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation import trajectory as ours
from recon4d_ros.evaluation.metrics import summarise
from recon4d_ros.storage.trajectory import read_trajectory

TRAJ_EVAL = Path(__file__).parents[2] / "shared" / "data" / "traj_eval"
EXPECTED = TRAJ_EVAL / "expected.json"
RESULTS = json.loads(EXPECTED.read_text())["results"] if EXPECTED.is_file() else []
# Figures that an older evo printed with another choice of pose pairs differ by up to 4 %.
OLDER_PAIRS = "pair selection may differ"


def kitti_poses(path: Path) -> np.ndarray:
    rows = np.loadtxt(path).reshape(-1, 3, 4)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows
    return poses


def evo_pairs(kind: str, truth: Path, estimate: Path) -> ours.PosePairs:
    if kind == "kitti":
        return ours.pair_by_index(kitti_poses(truth), kitti_poses(estimate))
    return ours.associate(read_trajectory(truth), read_trajectory(estimate))


def errors_of(command: str) -> np.ndarray:
    """The errors an evo command line asks for, by our code."""
    words = command.split()
    mode = "sim3" if "-as" in words else "se3" if "-a" in words else "none"
    pairs = ours.align(evo_pairs(words[1], TRAJ_EVAL / words[2], TRAJ_EVAL / words[3]), mode)
    if words[0] == "evo_ape":
        return ours.absolute_errors(pairs)
    if "m" in words:
        index = ours.pairs_by_path_length(pairs.truth[:, :3, 3], 10.0)
    else:
        index = ours.consecutive_pairs(len(pairs.truth))
    return ours.relative_errors(pairs, index)[0]


@pytest.mark.data
@pytest.mark.skipif(not RESULTS, reason="../shared/data/traj_eval is not here")
@pytest.mark.parametrize("expected", RESULTS, ids=lambda expected: expected["cmd"])
def test_published_figures(expected):
    ours_now = summarise(errors_of(expected["cmd"]))
    if OLDER_PAIRS in expected.get("published", ""):
        assert ours_now.rmse == pytest.approx(expected["rmse"], rel=0.08)
        return
    for name in ("rmse", "mean", "median", "max"):
        assert getattr(ours_now, name) == pytest.approx(expected[name], abs=6e-7, rel=1e-6)


@pytest.mark.data
@pytest.mark.skipif(not RESULTS, reason="../shared/data/traj_eval is not here")
@pytest.mark.parametrize("name", ["KITTI_00_ORB.txt", "KITTI_00_SPTAM.txt"])
def test_relative_errors_by_path_length_equal_evo(name):
    paths = [TRAJ_EVAL / "KITTI_00_gt.txt", TRAJ_EVAL / name]
    metric = evo_metrics.RPE(
        evo_metrics.PoseRelation.translation_part,
        10.0,
        evo_metrics.Unit.meters,
        pairs_from_reference=True,
    )
    metric.process_data(tuple(file_interface.read_kitti_poses_file(path) for path in paths))
    errors = errors_of(f"evo_rpe kitti {paths[0].name} {name} --delta 10 --delta_unit m")
    np.testing.assert_allclose(errors, metric.error, atol=1e-7)


def random_trajectory(seed: int, count: int, rate: float, jitter: float) -> Trajectory:
    """A smooth walk with irregular stamps at wall-clock times."""
    rng = np.random.default_rng(seed)
    times = 1.7e9 + np.arange(count) / rate + rng.uniform(-jitter, jitter, count) / rate
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = np.cumsum(rng.normal(size=(count, 3)), axis=0) * 0.1
    turns = np.cumsum(rng.normal(size=(count, 3)), axis=0) * 0.05
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
    stamps = np.round(times * 1e6).astype(np.int64) * 1000
    return Trajectory(torch.from_numpy(stamps), torch.from_numpy(poses))


def disturbed(truth: Trajectory, seed: int, keep: float) -> Trajectory:
    """The same motion in another frame and scale, with noise and missing frames."""
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(len(truth.stamps_ns)) < keep)
    kept = kept if len(kept) > 4 else np.arange(len(truth.stamps_ns))
    offset = np.eye(4)
    offset[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    offset[:3, 3] = rng.normal(size=3)
    poses = offset @ truth.T_world_cam.numpy()[kept]
    poses[:, :3, 3] = (
        poses[:, :3, 3] * rng.uniform(0.2, 5) + rng.normal(size=(len(kept), 3)) * 0.01
    )
    small = Rotation.from_rotvec(rng.normal(size=(len(kept), 3)) * 0.01).as_matrix()
    poses[:, :3, :3] = poses[:, :3, :3] @ small
    stamps = truth.stamps_ns.numpy()[kept] + rng.integers(-12_000_000, 12_000_000, len(kept))
    stamps, first = np.unique(stamps // 1000 * 1000, return_index=True)
    return Trajectory(torch.from_numpy(stamps), torch.from_numpy(poses[first]))


def to_evo(trajectory: Trajectory) -> PoseTrajectory3D:
    poses = trajectory.T_world_cam.numpy()
    return PoseTrajectory3D(
        positions_xyz=poses[:, :3, 3],
        orientations_quat_wxyz=Rotation.from_matrix(poses[:, :3, :3]).as_quat()[:, [3, 0, 1, 2]],
        timestamps=trajectory.stamps_ns.numpy() * 1e-9,
    )


def evo_errors(truth, estimate, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reference, other = evo_sync.associate_trajectories(
        to_evo(truth), to_evo(estimate), max_diff=0.01
    )
    if mode != "none":
        other.align(reference, correct_scale=mode == "sim3")
    results = []
    for metric in (
        evo_metrics.APE(evo_metrics.PoseRelation.translation_part),
        evo_metrics.RPE(evo_metrics.PoseRelation.translation_part, 1, evo_metrics.Unit.frames),
        evo_metrics.RPE(evo_metrics.PoseRelation.rotation_angle_deg, 1, evo_metrics.Unit.frames),
    ):
        metric.process_data((reference, other))
        results.append(metric.error)
    return tuple(results)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(12, 80),
    keep=st.floats(0.5, 1.0),
    mode=st.sampled_from(["none", "se3", "sim3"]),
)
def test_errors_equal_evo_on_random_trajectories(seed, count, keep, mode):
    truth = random_trajectory(seed, count, 30.0, 0.3)
    estimate = disturbed(truth, seed + 1, keep)
    pairs = ours.align(ours.associate(truth, estimate), mode)
    absolute, translation, rotation = evo_errors(truth, estimate, mode)
    np.testing.assert_allclose(ours.absolute_errors(pairs), absolute, atol=1e-9)
    mine = ours.relative_errors(pairs, ours.consecutive_pairs(len(pairs.truth)))
    np.testing.assert_allclose(mine[0], translation, atol=1e-9)
    np.testing.assert_allclose(mine[1], rotation, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_sim3_alignment_undoes_any_similarity(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(10, 3))
    rotation = Rotation.random(random_state=seed).as_matrix()
    scale, shift = rng.uniform(0.1, 10), rng.normal(size=3) * 5
    fit = ours.fit_similarity(points, scale * points @ rotation.T + shift)
    assert fit.scale == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(fit.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(fit.translation, shift, atol=1e-8)


def test_mirrored_points_are_not_aligned_by_a_reflection():
    points = np.random.default_rng(0).normal(size=(10, 3))
    fit = ours.fit_similarity(points, points * [1, 1, -1])
    assert np.linalg.det(fit.rotation) == pytest.approx(1)


def test_interpolated_truth_is_exact_for_constant_velocity():
    times = np.arange(6) * 100_000_000
    truth_poses = np.tile(np.eye(4), (6, 1, 1))
    truth_poses[:, :3, 3] = np.arange(6)[:, None] * [1.0, 2.0, 3.0]
    angles = np.arange(6)[:, None] * np.array([[0.0, 0.0, 0.2]])
    truth_poses[:, :3, :3] = Rotation.from_rotvec(angles).as_matrix()
    truth = Trajectory(torch.from_numpy(times), torch.from_numpy(truth_poses))
    at = np.array([130_000_000, 250_000_000, 505_000_000, 900_000_000])
    wanted = Trajectory(torch.from_numpy(at), torch.eye(4).double().repeat(4, 1, 1))
    pairs = ours.interpolate(truth, wanted)
    assert pairs.stamps_ns.tolist() == at[:3].tolist()  # the last is beyond the truth
    np.testing.assert_allclose(pairs.truth[:, 0, 3], [1.3, 2.5, 5.0], atol=1e-12)
    turn = Rotation.from_matrix(pairs.truth[:, :3, :3]).as_rotvec()[:, 2]
    np.testing.assert_allclose(turn, [0.26, 0.5, 1.0], atol=1e-12)


def test_index_pairs():
    assert ours.consecutive_pairs(6, 2).tolist() == [[0, 2], [2, 4]]
    assert ours.consecutive_pairs(4, 2, overlap=True).tolist() == [[0, 2], [1, 3]]
    positions = np.array([[0.0], [0.6], [1.2], [1.4], [2.4]])
    assert ours.pairs_by_path_length(positions, 1.0).tolist() == [[0, 2], [2, 4]]


def test_rotation_angle_of_tiny_and_half_turns():
    angles = np.array([1e-9, 0.3, np.pi])
    rotations = Rotation.from_rotvec(angles[:, None] * [0.6, 0.0, 0.8]).as_matrix()
    np.testing.assert_allclose(ours.rotation_angle(rotations), angles, rtol=1e-6)


def test_what_cannot_be_compared_is_refused():
    truth = random_trajectory(0, 12, 30.0, 0.0)
    late = Trajectory(truth.stamps_ns + 10**12, truth.T_world_cam)
    empty = Trajectory(truth.stamps_ns[:0], truth.T_world_cam[:0])
    for estimate in (late, empty):
        with pytest.raises(EvaluationError, match="same sequence"):
            ours.associate(truth, estimate)
        with pytest.raises(EvaluationError, match="same sequence"):
            ours.interpolate(truth, estimate)
    with pytest.raises(EvaluationError, match="at least 3"):
        ours.fit_similarity(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(EvaluationError, match="coincide"):
        ours.fit_similarity(np.zeros((5, 3)), np.eye(5, 3))
    with pytest.raises(EvaluationError, match="one pose per frame"):
        ours.pair_by_index(np.zeros((3, 4, 4)), np.zeros((4, 4, 4)))
    with pytest.raises(EvaluationError, match="no motion"):
        ours.relative_errors(
            ours.pair_by_index(np.eye(4)[None], np.eye(4)[None]), ours.consecutive_pairs(1)
        )
    with pytest.raises(EvaluationError, match="not finite"):
        summarise(np.array([1.0, np.nan]))

"""Trajectory errors: association by stamp, alignment, ATE and RPE.

Definitions follow Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (IROS
2012), section IV: the absolute trajectory error compares positions after one alignment, the
relative pose error compares motions over a fixed step. Poses are (N, 4, 4) float64, camera to
world; stamps are (N,) int64 nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.metrics import FloatArray

AlignmentMode = Literal["none", "se3", "sim3"]
Association = Literal["nearest", "interpolate"]
IndexArray = NDArray[np.int64]

MAX_DIFFERENCE_NS = 10_000_000  # the usual bound between two stamps of the same instant: 0.01 s


@dataclass(frozen=True, eq=False)
class PosePairs:
    """Poses of the same instants in both trajectories.

    Attributes:
        stamps_ns: (N,) int64, of the estimate.
        truth: (N, 4, 4) poses in the frame of the ground truth.
        estimate: (N, 4, 4) poses in the frame of the estimate.
    """

    stamps_ns: IndexArray
    truth: FloatArray
    estimate: FloatArray


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale * rotation @ x + translation.

    Attributes:
        scale: positive.
        rotation: (3, 3), determinant 1.
        translation: (3,).
    """

    scale: float
    rotation: FloatArray
    translation: FloatArray

    def apply(self, poses: FloatArray) -> FloatArray:
        """Poses (N, 4, 4) moved into the target frame; the scale acts on positions only."""
        moved: FloatArray = poses.copy()
        moved[:, :3, :3] = self.rotation @ poses[:, :3, :3]
        positions = poses[:, :3, 3]
        moved[:, :3, 3] = self.scale * positions @ self.rotation.T + self.translation
        return moved


def associate(
    truth: Trajectory, estimate: Trajectory, max_difference_ns: int = MAX_DIFFERENCE_NS
) -> PosePairs:
    """Pair every stamp of the sparser trajectory with the nearest one of the denser.

    Raises:
        EvaluationError: no two stamps are within `max_difference_ns`.
    """
    stamps_truth, stamps_estimate = truth.stamps_ns.numpy(), estimate.stamps_ns.numpy()
    if len(stamps_estimate) > len(stamps_truth):
        of_truth, of_estimate = _match(stamps_truth, stamps_estimate, max_difference_ns)
    else:
        of_estimate, of_truth = _match(stamps_estimate, stamps_truth, max_difference_ns)
    if of_truth.size == 0:
        raise EvaluationError(_no_overlap(stamps_truth, stamps_estimate, max_difference_ns))
    return PosePairs(
        stamps_estimate[of_estimate],
        truth.T_world_cam.numpy()[of_truth],
        estimate.T_world_cam.numpy()[of_estimate],
    )


def interpolate(
    truth: Trajectory, estimate: Trajectory, max_difference_ns: int = MAX_DIFFERENCE_NS
) -> PosePairs:
    """Pair every stamp of the estimate with the truth interpolated there.

    Positions linearly, rotations by slerp. For a truth whose rate differs from the camera's. A
    stamp up to `max_difference_ns` outside the truth takes its first or last pose.

    Raises:
        EvaluationError: no stamp of the estimate lies within the truth.
    """
    known, wanted = truth.stamps_ns.numpy(), estimate.stamps_ns.numpy()
    low, high = known[:1] - max_difference_ns, known[-1:] + max_difference_ns
    inside = (wanted >= low) & (wanted <= high) if known.size else np.zeros(wanted.shape, bool)
    if not inside.any():
        raise EvaluationError(_no_overlap(known, wanted, max_difference_ns))
    at = wanted[inside]
    poses = estimate.T_world_cam.numpy()[inside]
    return PosePairs(at, _poses_at(truth.T_world_cam.numpy(), known, at), poses)


def _poses_at(poses: FloatArray, stamps: IndexArray, at: IndexArray) -> FloatArray:
    if len(stamps) == 1:
        return np.repeat(poses, len(at), axis=0)
    # Seconds since the first stamp: float64 nanoseconds of a wall clock would lose digits.
    times, targets = (stamps - stamps[0]) * 1e-9, (np.clip(at, stamps[0], stamps[-1])) - stamps[0]
    seconds = np.minimum(targets * 1e-9, times[-1])
    result = np.tile(np.eye(4), (len(at), 1, 1))
    result[:, :3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(seconds).as_matrix()
    for axis in range(3):
        result[:, axis, 3] = np.interp(seconds, times, poses[:, axis, 3])
    return result


def pair_by_index(truth: FloatArray, estimate: FloatArray) -> PosePairs:
    """Pair the i-th poses of two (N, 4, 4) lists without stamps, as KITTI's files are.

    Raises:
        EvaluationError: the lists differ in length.
    """
    if truth.shape != estimate.shape:
        raise EvaluationError(
            f"{len(estimate)} poses against {len(truth)} of the truth; files without stamps must "
            "hold one pose per frame each"
        )
    return PosePairs(np.arange(len(truth), dtype=np.int64), truth, estimate)


def _match(
    sparse_ns: IndexArray, dense_ns: IndexArray, max_difference_ns: int
) -> tuple[IndexArray, IndexArray]:
    """Indices into the sparse and the dense stamps of the pairs that are near enough."""
    if dense_ns.size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    sparse, dense = _seconds(sparse_ns), _seconds(dense_ns)
    after = np.searchsorted(dense, sparse).clip(0, dense.size - 1)
    before = (after - 1).clip(0)
    # The earlier one wins a tie.
    nearest = np.where(
        np.abs(dense[after] - sparse) < np.abs(sparse - dense[before]), after, before
    )
    near = np.abs(dense[nearest] - sparse) <= max_difference_ns * 1e-9
    return np.flatnonzero(near), nearest[near]


def _seconds(stamps_ns: IndexArray) -> FloatArray:
    """Stamps as the float64 other tools read, so that their figures agree where two are as near.

    Python's division of integers rounds once; numpy's would round the nanoseconds first.
    """
    return np.array([stamp / 1_000_000_000 for stamp in stamps_ns.tolist()])


def _no_overlap(truth: IndexArray, estimate: IndexArray, max_difference_ns: int) -> str:
    def span(stamps: IndexArray) -> str:
        return f"{stamps[0] * 1e-9:.3f} to {stamps[-1] * 1e-9:.3f} s" if stamps.size else "empty"

    return (
        f"the estimate ({span(estimate)}) and the truth ({span(truth)}) have no stamps within "
        f"{max_difference_ns * 1e-9:g} s of each other; do they belong to the same sequence?"
    )


def fit_similarity(
    source: FloatArray, target: FloatArray, mode: AlignmentMode = "sim3"
) -> Similarity:
    """Least-squares alignment of points (N, 3) to points (N, 3).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns"
    (PAMI 1991), equations 34 to 43. Points on a line are allowed (a car drives straight): their
    roll about the line does not change the distances that are judged.

    Raises:
        EvaluationError: fewer than 3 pairs, or all points on one spot (nothing to align).
    """
    if mode == "none":
        return Similarity(1.0, np.eye(3), np.zeros(3))
    if len(source) < 3:
        raise EvaluationError(f"{len(source)} matched poses; an alignment needs at least 3")
    mean_source, mean_target = source.mean(0), target.mean(0)
    centred = source - mean_source
    covariance = (target - mean_target).T @ centred / len(source)
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    variance = np.mean(np.sum(centred**2, axis=1))
    if mode == "sim3" and (variance == 0 or singular @ signs <= 0):
        raise EvaluationError("all estimated or all true positions coincide: no scale to align")
    rotation = left @ np.diag(signs) @ right
    scale = float(singular @ signs / variance) if mode == "sim3" else 1.0
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)


def align(pairs: PosePairs, mode: AlignmentMode = "sim3") -> PosePairs:
    """The same pairs with the estimate moved onto the truth by its positions."""
    similarity = fit_similarity(pairs.estimate[:, :3, 3], pairs.truth[:, :3, 3], mode)
    return PosePairs(pairs.stamps_ns, pairs.truth, similarity.apply(pairs.estimate))


def absolute_errors(pairs: PosePairs) -> FloatArray:
    """Distance between paired positions, (N,), in units of the truth."""
    distance: FloatArray = np.linalg.norm(pairs.estimate[:, :3, 3] - pairs.truth[:, :3, 3], axis=1)
    return distance


def consecutive_pairs(num_poses: int, delta: int = 1, overlap: bool = False) -> IndexArray:
    """Index pairs (M, 2) that are `delta` poses apart.

    End to end by default, every start when `overlap`; the same thing for delta 1.
    """
    starts = np.arange(0, num_poses - delta, 1 if overlap else delta)
    return np.stack([starts, starts + delta], axis=1)


def pairs_by_path_length(positions: FloatArray, delta: float) -> IndexArray:
    """Index pairs (M, 2), end to end, each the first to cover a path of `delta` units."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    ends, covered = [0], 0.0
    for index, step in enumerate(steps, start=1):
        covered += float(step)
        if covered >= delta:
            ends.append(index)
            covered = 0.0
    return np.stack([ends[:-1], ends[1:]], axis=1).astype(np.int64)


def relative_errors(pairs: PosePairs, index: IndexArray) -> tuple[FloatArray, FloatArray]:
    """Relative pose error over index pairs (M, 2).

    E = (Q_i^-1 Q_j)^-1 (P_i^-1 P_j) with truth Q and estimate P (Sturm et al., equation 2).

    Returns:
        Length of the translation of E, (M,), in units of the truth, and its angle, (M,), in deg.

    Raises:
        EvaluationError: there is no index pair.
    """
    if len(index) == 0:
        raise EvaluationError(
            f"{len(pairs.truth)} matched poses hold no motion of the asked step; "
            "use a smaller step or a longer trajectory"
        )
    i, j = index.T
    motion_truth = _inverse(pairs.truth[i]) @ pairs.truth[j]
    motion_estimate = _inverse(pairs.estimate[i]) @ pairs.estimate[j]
    error = _inverse(motion_truth) @ motion_estimate
    return np.linalg.norm(error[:, :3, 3], axis=1), np.degrees(rotation_angle(error[:, :3, :3]))


def _inverse(poses: FloatArray) -> FloatArray:
    """Inverse of (N, 4, 4) rigid motions, by transposing the rotation."""
    inverse = np.tile(np.eye(4), (len(poses), 1, 1))
    inverse[:, :3, :3] = np.swapaxes(poses[:, :3, :3], 1, 2)
    inverse[:, :3, 3:] = -inverse[:, :3, :3] @ poses[:, :3, 3:]
    return inverse


def rotation_angle(rotations: FloatArray) -> FloatArray:
    """Angle of (N, 3, 3) rotations in [0, pi] rad, exact for tiny angles too."""
    skew = rotations - np.swapaxes(rotations, 1, 2)
    sine = np.sqrt(skew[:, 0, 1] ** 2 + skew[:, 0, 2] ** 2 + skew[:, 1, 2] ** 2) / 2
    cosine = (np.trace(rotations, axis1=1, axis2=2) - 1) / 2
    angle: FloatArray = np.arctan2(sine, cosine)
    return angle

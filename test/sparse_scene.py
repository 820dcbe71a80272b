"""Points and cameras with nothing in between: exact observations for the sparse estimators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from recon4d_ros.predictors.classical.problem import Readout
from recon4d_ros.predictors.classical.shutter import ReadoutTime

FOCAL = 500.0


def motion(rotvec: tuple[float, ...], translation: tuple[float, ...]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    T[:3, 3] = translation
    return T


@dataclass(frozen=True)
class Path:
    """T_cam_world of frame k: k steps of the same twist, with a wobble."""

    rotvec: tuple[float, float, float] = (0.0, 0.01, 0.0)
    translation: tuple[float, float, float] = (-0.04, 0.0, 0.0)
    num_frames: int = 6

    def poses(self) -> np.ndarray:
        wobble = 0.005 * np.sin(np.arange(self.num_frames)[:, None] * (1.0, 1.7, 2.3))
        still = not any(self.translation)
        return np.stack(
            [
                motion(
                    tuple(k * np.array(self.rotvec)),
                    tuple(k * np.array(self.translation) + (0 if still else 1) * wobble[k]),
                )
                for k in range(self.num_frames)
            ]
        )


def bearings(count: int, seed: int) -> np.ndarray:
    """Normalised image coordinates (N, 2) over a view of 60 degrees."""
    return np.random.default_rng(seed).uniform((-0.6, -0.45), (0.6, 0.45), (count, 2))


def inverse_depths(count: int, seed: int) -> np.ndarray:
    return 1.0 / np.random.default_rng(seed + 1).uniform(0.6, 2.0, count)


def project(T_cam_host: np.ndarray, ray: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """(N, 2) normalised image coordinates, by the pinhole equations on whole points."""
    points = np.concatenate([ray, np.ones((len(ray), 1))], axis=1) / rho[:, None]
    moved = points @ T_cam_host[:3, :3].T + T_cam_host[:3, 3]
    return moved[:, :2] / moved[:, 2:]


def global_shutter(num_points: int, num_frames: int) -> Readout:
    """All rows are read at once, whatever the readout is believed to be."""
    sweep = np.zeros((num_points, num_frames, 2))
    return Readout(sweep, np.zeros((num_points, 2)), ReadoutTime())

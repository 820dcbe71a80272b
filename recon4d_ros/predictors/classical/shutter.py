"""Rolling shutter: the rows of an image are read one after the other while the camera moves.

A camera that turns by 10 px per frame and takes most of the frame interval to read an image
bends it by as many px, more than the parallax of the first frames. Two things undo it: the
camera's velocity at each frame, from the poses around it, and the time that it takes to read an
image, one number per camera, which the bundle adjustment finds (0 for a global shutter). Poses
are those of the middle row. The model is linear in the readout and the velocity (Hedborg et al.,
Rolling Shutter Bundle Adjustment, CVPR 2012, interpolate poses likewise).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Index, places

_LEAST_SIGMA_S = 0.005  # what the past may claim to know: windows share most of their frames
_LEAST_BEND_PX = 0.1  # what a better known velocity must move at the image's upper and lower edge
_FORGETTING = 1.5  # growth of the standard deviation from window to window


def image_motion(uv: Array, rho: Array, xi: Array) -> Array:
    """Velocity (..., 2) of normalised image points of still surfaces.

    Longuet-Higgins and Prazdny, The interpretation of a moving retinal image (1980).

    Args:
        uv: (..., 2) normalised image coordinates.
        rho: (...,) inverse depth.
        xi: (..., 6) twist of T_cam_world, T(t + dt) = exp(xi dt) T(t), translation part first.
    """
    u, v = uv[..., 0], uv[..., 1]
    x, y, z, wx, wy, wz = (xi[..., k] for k in range(6))
    along_u = rho * (x - u * z) - u * v * wx + (1 + u * u) * wy - v * wz
    along_v = rho * (y - v * z) - (1 + v * v) * wx + u * v * wy + u * wz
    return np.stack([along_u, along_v], axis=-1)


@dataclass(frozen=True)
class ReadoutTime:
    """Time from an image's first row to its last, and its standard deviation, seconds."""

    seconds: float = 0.0
    sigma_s: float = 0.02

    @staticmethod
    def learned(seconds: float, sigma_s: float) -> ReadoutTime:
        """What the next window is to expect after one that found this."""
        bounded = np.clip(_FORGETTING * sigma_s, _LEAST_SIGMA_S, ReadoutTime.sigma_s)
        return ReadoutTime(seconds, float(bounded))


class Shutter:
    """A camera whose rows are read one after the other, and how it moved meanwhile.

    Attributes:
        camera: pinhole of the tracking image.
        readout: what is known of the time to read an image.
    """

    def __init__(self, camera: Pinhole, readout: ReadoutTime) -> None:
        """No frame yet."""
        self.camera = camera
        self.readout = readout
        self._stamps_s: dict[int, float] = {}
        self._velocities: dict[int, Array] = {}
        self._listed: tuple[list[int], Array] | None = None

    def open(self, frame: int, stamp_ns: int) -> None:
        """A new frame, at rest until it is measured."""
        self._stamps_s[frame] = stamp_ns * 1e-9
        self._listed = None

    def measure(self, poses: Mapping[int, Array], frames: Sequence[int]) -> None:
        """Velocities of consecutive frames from their poses T_cam_world: means of both sides.

        The first one's stays when there were earlier ones: it was measured with both neighbours.
        """
        T = np.stack([poses[frame] for frame in frames])
        seconds = np.diff([self._stamps_s[frame] for frame in frames])
        between = rigid.log(T[1:] @ rigid.inverse(T[:-1])) / seconds[:, None]
        padded = np.concatenate([between[:1], between, between[-1:]])
        measured = dict(zip(frames, 0.5 * (padded[1:] + padded[:-1]), strict=True))
        if min(self._stamps_s) < frames[0]:
            del measured[frames[0]]
        self._velocities.update(measured)
        self._listed = None

    def velocity(self, frame: int) -> Array:
        """Twist (6,) of T_cam_world per second, see `image_motion`."""
        return self._velocities.get(frame, np.zeros(6))

    def is_bent(self, frame: int, expected: Array) -> bool:
        """Whether a frame's velocity bends the image otherwise than the expected one (6,)."""
        turn = np.abs(self.velocity(frame) - expected)[3:].max()
        bend_px = 0.5 * abs(self.readout.seconds) * turn * self.camera.focal
        return bool(bend_px > _LEAST_BEND_PX)

    def forget_all_but(self, kept: Container[int]) -> None:
        """Drop the frames that are not in `kept`."""
        for frame in [frame for frame in self._stamps_s if frame not in kept]:
            del self._stamps_s[frame]
            self._velocities.pop(frame, None)
        self._listed = None

    def undone(self, uv: Array, frames: Sequence[int] | Index, rho: Array) -> Array:
        """Normalised image coordinates (P, F, 2) as if all rows were read at once; see `sweep`."""
        return self.camera.normalised(uv) - self.readout.seconds * self.sweep(uv, frames, rho)

    def sweep(self, uv: Array, frames: Sequence[int] | Index, rho: Array) -> Array:
        """Displacement per second of readout, normalised image coordinates.

        Args:
            uv: (P, F, 2) px.
            frames: F frames, or P x F.
            rho: (P,) inverse depth of each point, in whichever frame is near.

        Returns:
            (P, F, 2).
        """
        known, velocities = self._list()
        xi = velocities[places(known, frames)]
        height = self.camera.height
        share = (uv[..., 1] - 0.5 * (height - 1)) / height
        moving = image_motion(self.camera.normalised(uv), rho[:, None], xi)
        return np.asarray(share[..., None] * moving)

    def _list(self) -> tuple[list[int], Array]:
        """All frames in their order and their velocities (F, 6), until one of them changes."""
        listed = self._listed
        if listed is None:
            known = sorted(self._stamps_s)
            listed = known, np.array([self.velocity(frame) for frame in known])
            self._listed = listed
        return listed

"""The first structure: poses and inverse depths of a few frames from nothing but tracks.

Several starts compete: the essential matrix, a sphere around the first camera with a small step
along an axis, and the best of these with near and far swapped. Each goes through the bundle
adjustment over all frames in between, and the cheapest wins. A start in the wrong valley shows in
its cost, so that a short baseline is enough. Unless much of the view moves: then a wrong one may
explain more of a few frames than the right one, but not most of what is seen (`explains_most`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from recon4d_ros.predictors.classical import bundle, rigid
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.pose import Sightings, fit_rotation, refine_pose
from recon4d_ros.predictors.classical.problem import PRIOR_WEIGHT, Problem, Readout
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import ReadoutTime, Shutter
from recon4d_ros.predictors.classical.tracks import Mask

MIN_POINTS = 50
_FOCALS = (0.7, 0.95, 1.3)  # of the long side, tried when the focal length is not given
_STEP = 0.03  # of the depth, length of the axis starts
_ITERATIONS = 15
_LEAST_RHO = 0.05  # of a start; the median is 1
_SURE = 0.15  # relative standard deviation of a depth that counts as known
_SURE_SHARE = 0.6  # of the points
_MOST, _FITTING_PX = 0.8, 0.33  # of what was seen fits, within so much for each frame
_EXPLAINED = 0.25  # of what rotation leaves over may remain


@dataclass(frozen=True, eq=False)
class Views:
    """P points seen in F frames, the first of which is their host.

    Attributes:
        uv: (P, F, 2) normalised image coordinates; column 0 and the last one are complete.
        R_cam_first: (F, 3, 3) rotations as far as known.
        rotation_residual_px: median residual of the last frame when only rotation is allowed.
        focal_px: px per unit.
        sigma_px: scale of the robust kernel.
        readout: what the rows' different times do to `uv`.
    """

    uv: Array
    R_cam_first: Array
    rotation_residual_px: float
    focal_px: float
    sigma_px: float
    readout: Readout


@dataclass(frozen=True, eq=False)
class Structure:
    """What a bootstrap found; the median inverse depth is 1.

    Attributes:
        T_cam_first: (F, 4, 4).
        rho, rho_sigma: (P,) inverse depths in the first frame.
        residual_px: (P, F).
        cost: robust cost per observation.
        readout: time to read an image.
    """

    T_cam_first: Array
    rho: Array
    rho_sigma: Array
    residual_px: Array
    cost: float
    readout: ReadoutTime

    @property
    def explains_most(self) -> bool:
        """Whether most of what was seen fits; the fewer frames, the easier that is."""
        fits = np.nanquantile(self.residual_px, _MOST) < _FITTING_PX * len(self.T_cam_first)
        return bool(fits)


def bootstrap(views: Views) -> Structure | None:
    """The best structure, or None when no start explains the tracks with sure depths."""
    found = [_adjusted(views, T_last, rho) for T_last, rho in _starts(views)]
    best = min(found, key=_cost)
    best = min(best, _adjusted(views, *_reversed(best)), key=_cost)
    return best if _convincing(views, best) else None


def _reversed(structure: Structure) -> tuple[Array, Array]:
    """Near and far swapped, and the camera's way with them.

    Seen over a short baseline both look alike but for the second order, for a rotation makes up
    for the rest; where a start leads into the wrong one of the two valleys, this leads out of it.
    """
    T = structure.T_cam_first[-1].copy()
    T[:3, 3] *= -1.0
    return T, np.clip(2.0 - structure.rho, _LEAST_RHO, None)


def _cost(structure: Structure) -> float:
    return structure.cost


def bootstrap_uncalibrated(
    shutter: Shutter, long_side_px: int, views: Callable[[], Views]
) -> Structure | None:
    """The best structure over the usual focal lengths; the shutter's camera takes the best one.

    Args:
        shutter: whose camera is unknown but for its principal point.
        long_side_px: of the images.
        views: seen through the shutter's present camera.
    """
    found: list[tuple[Structure, Pinhole]] = []
    for share in _FOCALS:
        focal = share * long_side_px
        shutter.camera = replace(shutter.camera, fx=focal, fy=focal)
        structure = bootstrap(views())
        if structure is not None:
            found.append((structure, shutter.camera))
    if not found:
        return None
    structure, shutter.camera = min(found, key=lambda entry: _cost(entry[0]))
    return structure


def _convincing(views: Views, structure: Structure) -> bool:
    sure = structure.rho_sigma < _SURE * structure.rho
    residual = float(np.nanmedian(structure.residual_px))
    explained = residual < _EXPLAINED * views.rotation_residual_px
    return bool(explained and sure.sum() > _SURE_SHARE * len(sure))


def _starts(views: Views) -> Iterator[tuple[Array, Array]]:
    """Pose of the last frame and inverse depths to start from."""
    num_points = len(views.uv)
    for axis, sign in ((0, 1.0), (2, -1.0)):
        T = rigid.turned(views.R_cam_first[-1])
        T[axis, 3] = sign * _STEP
        yield T, np.ones(num_points)
    essential = _essential_start(views)
    if essential is not None:
        yield essential


def _essential_start(views: Views) -> tuple[Array, Array] | None:
    first, last = views.uv[:, 0] * views.focal_px, views.uv[:, -1] * views.focal_px
    K = np.diag([views.focal_px, views.focal_px, 1.0])
    cv2.setRNGSeed(0)
    E, mask = cv2.findEssentialMat(
        first.copy(), last.copy(), K, method=cv2.USAC_MAGSAC, prob=0.9999, threshold=1.0
    )
    if E is None or len(E) < 3:
        return None
    R1, R2, t = cv2.decomposeEssentialMat(np.ascontiguousarray(E[:3]))
    candidates = [
        (np.asarray(R, np.float64), np.asarray(s * t[:, 0], np.float64))
        for R in (R1, R2)
        for s in (1.0, -1.0)
    ]
    solved = [(*_depths(views, R, u), R, u) for R, u in candidates]
    rho, front, R, u = max(solved, key=lambda entry: (entry[1] & (mask[:, 0] > 0)).sum())
    if front.sum() < MIN_POINTS // 2:
        return None
    unit = float(np.median(rho[front]))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, u * unit
    rho = rho / unit
    return T, np.where(front & (rho > _LEAST_RHO) & (rho < 20.0), rho, 1.0)


def _depths(views: Views, R: Array, t: Array) -> tuple[Array, Mask]:
    """Linear inverse depths for a relative pose, and which points lie before both cameras."""
    q, uv = rigid.homogeneous(views.uv[:, 0]) @ R.T, views.uv[:, -1]
    along, off = t[:2] - uv * t[2], q[:, :2] - uv * q[:, 2:]
    rho = -(along * off).sum(1) / np.maximum((along**2).sum(1), 1e-12)
    return rho, (rho > 0) & (q[:, 2] + rho * t[2] > 0)


def _adjusted(views: Views, T_last: Array, rho: Array) -> Structure:
    num_frames = views.uv.shape[1]
    T = np.stack([_between(views, T_last, rho, frame) for frame in range(num_frames)])
    prior = float(np.median(rho))
    problem = Problem(
        T_cam_world=T,
        free=np.arange(num_frames) > 0,
        host=np.zeros(len(rho), np.int64),
        ray=views.uv[:, 0],
        rho=rho,
        uv=views.uv,
        rho_prior=np.full(len(rho), prior),
        rho_prior_weight=np.full(len(rho), PRIOR_WEIGHT / prior**2),
        focal_px=views.focal_px,
        focal_sigma=0.0,
        sigma_px=views.sigma_px,
        readout=views.readout,
    )
    solution = bundle.solve(problem, _ITERATIONS)
    cost = solution.cost / max(int(np.isfinite(solution.residual_px).sum()), 1)
    solution = solution.scaled(float(np.median(solution.rho)))
    return Structure(
        solution.T_cam_world,
        solution.rho,
        solution.rho_sigma,
        solution.residual_px,
        cost,
        ReadoutTime.learned(solution.readout_s, solution.readout_sigma_s),
    )


def _between(views: Views, T_last: Array, rho: Array, frame: int) -> Array:
    """Pose of a frame on the way: interpolated, then fitted to the points."""
    if frame == 0:
        return np.eye(4)
    last = views.uv.shape[1] - 1
    if frame == last:
        return T_last
    seen = np.isfinite(views.uv[:, frame, 0])
    T = rigid.turned(views.R_cam_first[frame])
    T[:3, 3] = T_last[:3, 3] * frame / last
    if seen.sum() < MIN_POINTS // 2:
        return T
    hosts = np.broadcast_to(np.eye(4), (int(seen.sum()), 4, 4))
    sightings = Sightings(
        hosts, views.uv[seen, 0], rho[seen], 0.5 * rho[seen], views.uv[seen, frame], views.focal_px
    )
    return refine_pose(sightings, T).T_cam_world


def rotation_between(views_uv: Array, R: Array, focal_px: float) -> tuple[Array, float]:
    """Rotation from the first to the last frame of (P, F, 2) views, and its median residual px."""
    R, length = fit_rotation(views_uv[:, 0], views_uv[:, -1], R, focal_px)
    return R, float(np.median(length))

"""The bundle adjustment of the odometry's window: what goes in, what is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from recon4d_ros.config import OdometryConfig
from recon4d_ros.predictors.classical import bundle, rigid
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.points import SURE
from recon4d_ros.predictors.classical.problem import PRIOR_WEIGHT, Problem, Readout, Solution
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import Shutter
from recon4d_ros.predictors.classical.tracks import Index, TrackTable, places

_APART = 1e-9  # predictor units: more than rounding
_WEAK_PRIOR = 0.01  # its weight once a depth is known
_UNSURE = 20  # times the iterations at most: it converges before
# Relative error of depths by that of the focal length, above which the shape of the scene is not
# known. A percent of it may bend depth by several, or not at all where the view goes straight.
_SURE_SHAPE = 0.02


@dataclass(frozen=True, eq=False)
class Setup:
    """A problem and where its rows come from.

    Attributes:
        rows, ids: (P,) rows of the table and the points they held.
        frames: the F frames, hosts that left the table first.
        seam: newest frame that was handed out.
        problem: to solve.
    """

    rows: Index
    ids: Index
    frames: list[int]
    seam: int
    problem: Problem


def window_problem(
    table: TrackTable,
    poses: Mapping[int, Array],
    shutter: Shutter,
    first_free: int,
    seam: int,
    config: OdometryConfig,
) -> Setup:
    """Everything the table remembers of what rests; frames before `first_free` keep their pose.

    So do hosts that left the table: nothing but their own points holds them any more.
    """
    camera = shutter.camera
    columns = np.flatnonzero(table.frames >= 0)
    columns = columns[np.argsort(table.frames[columns])]
    seen = np.isfinite(table.uv[:, columns, 0]).sum(axis=1)
    rows = _most_seen(
        np.flatnonzero(table.used & ~table.moving & (seen >= 2)), seen, config.max_adjusted
    )
    inside = table.frames[columns].tolist()
    outside = sorted(set(table.host[rows].tolist()) - set(inside))
    frames = [*outside, *inside]
    rho, host, host_uv = table.rho[rows], table.host[rows], table.host_uv[rows]
    seen_uv = table.uv[np.ix_(rows, columns)]

    def nowhere_outside(values: Array) -> Array:
        missing = np.full((len(rows), len(outside), 2), np.nan)
        return np.concatenate([missing, values], axis=1)

    free = np.array(frames) >= first_free
    free[: max(len(outside), 1)] = False
    prior = table.rho_prior[rows]
    sure = table.rho_sigma[rows] < SURE * rho
    problem = Problem(
        T_cam_world=np.stack([poses[frame] for frame in frames]),
        free=free,
        host=places(frames, host),
        ray=camera.normalised(host_uv),
        rho=rho,
        uv=nowhere_outside(camera.normalised(seen_uv)),
        rho_prior=prior,
        rho_prior_weight=np.where(sure, _WEAK_PRIOR, PRIOR_WEIGHT) / prior**2,
        focal_px=camera.focal,
        focal_sigma=camera.sigma,
        sigma_px=config.noise_px,
        readout=Readout(
            sweep=nowhere_outside(shutter.sweep(seen_uv, inside, rho)),
            host_sweep=shutter.sweep(host_uv[:, None], host[:, None], rho)[:, 0],
            expected=shutter.readout,
        ),
    )
    return Setup(rows, table.ids[rows], frames, seam, problem)


def _most_seen(rows: Index, seen: Index, limit: int) -> Index:
    """The rows with the most sights, in their order; older points first among equals."""
    if len(rows) <= limit:
        return rows
    return np.sort(rows[np.argsort(-seen[rows], kind="stable")[:limit]])


def solved(setup: Setup, camera: Pinhole, iterations: int) -> Solution:
    """The adjustment, until it converges while the focal length is not known.

    One that no camera has (a scene that bends gives such) is not taken: it is held instead.
    """
    if camera.is_sure:
        return bundle.solve(setup.problem, iterations)
    found = bundle.solve(setup.problem, _UNSURE * iterations)
    if camera.is_usual(found.focal_px):
        return found
    return bundle.solve(replace(setup.problem, focal_sigma=0.0), iterations)


def regauged(setup: Setup, solution: Solution) -> Solution:
    """The same where the path goes on from what was handed out.

    Nothing is held while the structure is not sure, or the focal length: the newest frame that was
    handed out keeps its pose. Without two fixed frames nothing holds the scale: the path keeps its
    spread. One step of it would be a poor measure: a hundredth too much, and after a dozen steps
    the path tears. Frames before the first structure are all in one place, which says nothing.
    """
    before = setup.problem.T_cam_world
    if (~setup.problem.free).sum() <= 1:
        solution = solution.scaled(_shrinkage(before, solution.T_cam_world))
    T = solution.T_cam_world
    if setup.seam in setup.frames:
        row = setup.frames.index(setup.seam)
        T = T @ rigid.inverse(T[row]) @ before[row]
    # What rounding leaves would grow from window to window.
    return replace(solution, T_cam_world=rigid.orthonormal(T))


def _shrinkage(before: Array, after: Array) -> float:
    """Spread of the cameras (F, 4, 4) before over that after, of those that were not at the first.

    1 where that is none.
    """
    places = rigid.inverse(np.stack([before, after]))[..., :3, 3]
    apart = np.linalg.norm(places[0] - places[0, 0], axis=1) > _APART
    if apart.sum() < 2:
        return 1.0
    spread = np.sqrt(np.var(places[:, apart], axis=1).sum(axis=1))
    return float(spread[0] / spread[1]) if spread.min() > _APART else 1.0


def depth_error(table: TrackTable, setup: Setup, solution: Solution) -> float:
    """Median relative error of the live points' depths.

    Their standard deviations assume the noise of the robust kernel; where more than that is left
    over, a rolling shutter or blur, they are that much too small.
    """
    live = table.alive[setup.rows]
    if not live.any():
        return np.inf
    relative = np.median(solution.rho_sigma[live] / solution.rho[live])
    excess = float(np.nanmedian(solution.residual_px)) / setup.problem.sigma_px
    return float(relative) * max(1.0, excess)


def is_shape_sure(table: TrackTable, setup: Setup, solution: Solution, camera: Pinhole) -> bool:
    """Whether the live points' depths, but for their scale, hang little on the focal length."""
    live = table.alive[setup.rows]
    if camera.is_given or not live.any():
        return camera.is_given
    by_focal = solution.rho_by_focal[live] / solution.rho[live]
    if not by_focal.any():  # it was held, because what was found no camera has
        return False
    bent = float(np.median(np.abs(by_focal - np.median(by_focal))))
    return bent * camera.sigma < _SURE_SHAPE


def take_over(table: TrackTable, setup: Setup, solution: Solution, outlier_px: float) -> None:
    """Write the depths into the table and drop the sights that do not fit.

    A point that does not fit in the newest frame, or in more than two, is tracked no more. Rows
    that hold another point by now are left alone.
    """
    same = table.ids[setup.rows] == setup.ids
    rows = setup.rows[same]
    table.rho[rows], table.rho_sigma[rows] = solution.rho[same], solution.rho_sigma[same]
    median = float(np.nanmedian(solution.residual_px))
    bad = solution.residual_px[same] > max(outlier_px, 5.0 * median)
    for column, frame in enumerate(setup.frames):
        if frame in table.frames:
            table.uv[rows[bad[:, column]], table.column(frame)] = np.nan
    table.alive[rows[bad[:, -1] | (bad.sum(axis=1) > 2)]] = False

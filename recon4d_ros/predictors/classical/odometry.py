"""Monocular visual odometry: tracked points, robust pose, bundle adjustment over a window.

Coordinates are those of the first frame's camera; the unit is the median depth seen there. State
is bounded: a table of points, the window's frames and a few keyframes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np

from recon4d_ros.config import OdometryConfig, WindowConfig
from recon4d_ros.datatypes import TrackingState
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.adjustment import (
    Setup,
    depth_error,
    is_shape_sure,
    regauged,
    solved,
    take_over,
    window_problem,
)
from recon4d_ros.predictors.classical.bootstrap import (
    MIN_POINTS,
    Structure,
    Views,
    bootstrap,
    bootstrap_uncalibrated,
    rotation_between,
)
from recon4d_ros.predictors.classical.local_map import LocalMap
from recon4d_ros.predictors.classical.neighbours import moving_with
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.points import Points
from recon4d_ros.predictors.classical.pose import (
    ROUGH_STEP,
    PoseFit,
    Tracked,
    refine_pose,
    resampled,
)
from recon4d_ros.predictors.classical.problem import Readout, Solution
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import ReadoutTime, Shutter
from recon4d_ros.predictors.classical.told import ToldPoints, tell
from recon4d_ros.predictors.classical.tracks import (
    Grey,
    Index,
    Mask,
    TrackTable,
    follow,
    query_points,
)

_MIN_SUPPORT = 12  # points under which a pose is not one
_PLAIN_SHARE = 0.8  # of the points agree: no need to look for another pose
_USUAL_SHARE = 0.9  # of those that agreed in the frame before: likewise
_LONGEST_GUESS_PX = 60.0
_NEWEST = slice(-3, None)  # a new pose changes the velocities of its frame and the one before


class Odometry:
    """Poses frame after frame; `adjust` refines the window.

    One thread may track while another one adjusts, tells and reads. The lock is held for whatever
    both touch, but neither for following points from frame to frame nor for solving.

    Attributes:
        shutter: the camera, its readout and velocity; a focal length not given is learned.
        ready: there is a structure, poses have translation.
        knows_depth: depth may rest on it; not while a focal length unknown bends it.
        poses: T_cam_world (4, 4) of the remembered frames.
        is_refuted: the poses rest on what moves; no frame is posed any more.
        lock: to be held where these are read beside a tracking thread.
    """

    def __init__(
        self,
        config: OdometryConfig,
        window: WindowConfig,
        camera: Pinhole,
        readout: ReadoutTime,
        told: ToldPoints | None = None,
    ) -> None:
        """Wait for the first frame, of which `told` are points if masks have told of them."""
        self.shutter = Shutter(camera, readout)
        self.ready = self.knows_depth = self.is_refuted = False
        self.poses: dict[int, Array] = {}
        self.lock = threading.RLock()
        self._config = config
        self._window = window
        self._table = TrackTable(config.max_points, window.size + config.num_keyframes + 1)
        self._points = Points(self._table, self.poses, self.shutter)
        self._local_map = LocalMap(self._table, self._points, config.consistency_px)
        self._recent: list[int] = []
        self._keyframes: list[int] = []
        self._keyframe_points = 0
        self._velocity = np.eye(4)
        self._depth_error = np.inf
        self._settled_before = 0
        self._grey: Grey = np.zeros((0, 0), np.uint8)
        self._share = 1.0
        self._told = told
        self._support: Index = np.zeros(0, np.int64)
        self._rotation_px = 0.0
        self._next_try_px = config.bootstrap_px

    def track(self, index: int, stamp_ns: int, grey: Grey) -> Tracked:
        """Pose of the next frame, from past frames only."""
        if not self.poses:
            return self._begun(index, stamp_ns, grey)
        last = self._recent[-1]
        with self.lock:
            T_guess = rigid.orthonormal(self._velocity @ self.poses[last])
            rows, uv, guess = self._expected(last, T_guess)
        uv, good = follow(self._grey, grey, uv, guess, self._config.consistency_px)
        with self.lock:
            self._open(index, stamp_ns, grey, T_guess)
            self._table.see(rows, index, uv, good)
            return self._continued(index)

    def _begun(self, index: int, stamp_ns: int, grey: Grey) -> Tracked:
        self._open(index, stamp_ns, grey, np.eye(4))
        if self._told is not None:
            self._table.add(index, self._told.uv, np.ones(len(self._told.uv)), self._told.moving)
        self._make_keyframe(index)
        return Tracked(np.eye(4), TrackingState.INITIALISING, 0.0, 0)

    def _continued(self, index: int) -> Tracked:
        tracked = self._seen(index)
        if tracked.T_cam_world is None:
            return tracked
        if not self.ready:
            tracked = self._try_bootstrap(index, tracked)
        if self._needs_keyframe(index):
            self._make_keyframe(index)
        self._forget()
        self._take_velocity()
        return tracked

    def adjust(self, settled_before: int = 0) -> None:
        """Bundle adjustment over the window and the keyframes, once depth is known.

        Args:
            settled_before: frames before this one are handed out afterwards.
        """
        if self.ready and not self.is_refuted:
            with self.lock:
                setup = self._setup()
            solution = solved(setup, self.shutter.camera, self._config.iterations)
            with self.lock:
                self._take_adjustment(setup, solution)
        self._settled_before = settled_before

    def _setup(self) -> Setup:
        # What was handed out stays, lest the path tear; but an unsure structure could never mend.
        is_sure = self._depth_error < self._config.sure_depth_error and self.shutter.camera.is_sure
        first_free = self._recent[-1] - self._window.final_lag if is_sure else 0
        state = self._table, self.poses, self.shutter, first_free, self._settled_before - 1
        return window_problem(*state, self._config)

    def _take_adjustment(self, setup: Setup, solution: Solution) -> None:
        """What was tracked since `setup` follows its newest frame."""
        self.shutter.readout = ReadoutTime.learned(solution.readout_s, solution.readout_sigma_s)
        self.shutter.camera = self.shutter.camera.learned(solution.focal_px, solution.focal_sigma)
        solution = regauged(setup, solution)
        newest = setup.frames[-1]
        adjusted = dict(zip(setup.frames, solution.T_cam_world, strict=True))
        correction = rigid.inverse(self.poses[newest]) @ adjusted[newest]
        adjusted |= {frame: T @ correction for frame, T in self.poses.items() if frame > newest}
        self.poses.update((frame, T) for frame, T in adjusted.items() if frame in self.poses)
        self._depth_error = depth_error(self._table, setup, solution)
        camera = self.shutter.camera
        self.knows_depth = self.knows_depth or is_shape_sure(self._table, setup, solution, camera)
        take_over(self._table, setup, solution, self._config.outlier_px)
        self._take_velocity(slice(None))

    def tell_moving(self, index: int, moving: Mask | None) -> bool:
        """Hear from a mask which points lie on what moves; they hold no pose any more.

        Args:
            index: of a frame.
            moving: (H, W) px of the images tracked; None to forget what was told.

        Returns:
            Whether this refutes the poses, which rest on what moves.
        """
        table = self._table
        with self.lock:
            if moving is None:
                table.moving[:] = False
            elif index in table.frames and not self.is_refuted:
                told = tell(table, index, self._recent[-1], moving)
                support = table.moving[np.intersect1d(told, self._support)]
                self.is_refuted = len(support) >= _MIN_SUPPORT and bool(support.mean() > 0.5)
                return self.is_refuted
        return False

    def told(self, index: int) -> ToldPoints | None:
        """The points of a frame, for whoever begins with it; None if nothing was told."""
        return ToldPoints.of(self._table, index)

    def landmarks(self) -> tuple[Index, Array]:
        """Ids (P,) and world positions (P, 3) of the points of surely known depth."""
        with self.lock:
            rows = np.flatnonzero(self._table.used)
            rows = rows[self._points.are_sure(rows)]
            return self._table.ids[rows], self._points.positions(rows)

    def tracks(self, frames: Sequence[int]) -> tuple[Index, Array, Mask]:
        """Ids (N,), px (T, N, 2), NaN where not seen, and which of the points are surely known."""
        table = self._table
        with self.lock:
            uv = table.seen_in(frames)
            rows = np.flatnonzero(table.used & np.isfinite(uv[..., 0]).any(axis=0))
            return table.ids[rows], uv[:, rows], self._points.are_sure(rows)

    def sparse_depth(self, index: int) -> Array:
        """Depths (N,) of the surely known points seen in a frame."""
        with self.lock:
            return 1.0 / self._points.rho_in(index, self._points.sure_rows(index))

    # ------------------------------------------------------------------ front end
    def _open(self, index: int, stamp_ns: int, grey: Grey, T: Array) -> None:
        self.shutter.open(index, stamp_ns)
        self._table.open_column(index)
        self._recent.append(index)
        self.poses[index] = T
        self._grey = grey

    def _expected(self, last: int, T_guess: Array) -> tuple[Index, Array, Array]:
        """Rows of the points of a frame, where they are there and where they are sought next."""
        rows = self._table.rows_in(last)
        uv = self._table.uv[rows, self._table.column(last)]
        expected, before = self._points.projected(rows, [T_guess, self.poses[last]])
        shift = expected - before
        sane = np.linalg.norm(shift, axis=1) < _LONGEST_GUESS_PX  # False for NaN
        sane &= ~self._table.moving[rows]
        return rows, uv, np.where(sane[:, None], uv + shift, uv)

    def _seen(self, index: int) -> Tracked:
        """Pose by what is seen."""
        self._take_velocity()
        tracked = self._posed(index) if self.ready else self._rotated(index)
        if tracked.T_cam_world is not None:
            self.poses[index] = tracked.T_cam_world
        return tracked

    def _take_velocity(self, changed: slice = _NEWEST) -> None:
        last, newest = self._recent[-2:]
        self._velocity = self.poses[newest] @ rigid.inverse(self.poses[last])
        self.shutter.measure(self.poses, self._recent[changed])

    def _posed(self, index: int) -> Tracked:
        """Pose by the structure: roughly first, which tells how the shutter bent the image."""
        rows = self._table.resting_in(index)
        rows = rows[self._table.host[rows] != index]
        if len(rows) < _MIN_SUPPORT or self.is_refuted:
            return Tracked(None, TrackingState.LOST, np.inf, len(rows))
        seen = self._points.sightings(rows, index)
        fit = refine_pose(seen, self.poses[index], ROUGH_STEP)
        if fit.inlier.mean() <= min(_PLAIN_SHARE, _USUAL_SHARE * self._share):
            fit = resampled(seen, self._points.are_sure(rows), fit)
        if self._agree(fit):
            expected = self.shutter.velocity(index)
            self.poses[index] = fit.T_cam_world
            self._take_velocity()
            if self.shutter.is_bent(index, expected):
                seen = self._points.sightings(rows, index)
            fit = refine_pose(seen, fit.T_cam_world)
        self._share = float(fit.inlier.mean())
        self._support = rows[fit.inlier]
        support = len(self._support)
        if not self._agree(fit):
            return Tracked(None, TrackingState.LOST, fit.residual_px, support)
        return Tracked(fit.T_cam_world, self._state, fit.residual_px, support)

    @property
    def _state(self) -> TrackingState:
        return TrackingState.TRACKING if self.knows_depth else TrackingState.INITIALISING

    def _agree(self, fit: PoseFit) -> bool:
        """Whether enough points agree with a pose to believe it."""
        share = self._config.min_inlier_share
        return bool(fit.inlier.sum() >= max(_MIN_SUPPORT, share * len(fit.inlier)))

    def _rotated(self, index: int) -> Tracked:
        """Before depth is known: the rotation since the reference, no translation."""
        reference, rows = self._reference(index)
        if len(rows) < MIN_POINTS:
            return Tracked(None, TrackingState.LOST, np.inf, len(rows))
        R = (self.poses[index] @ rigid.inverse(self.poses[reference]))[:3, :3]
        views = self._points.views(rows, [reference, index])
        R, self._rotation_px = rotation_between(views, R, self.shutter.camera.focal)
        T = rigid.turned(R) @ self.poses[reference]
        return Tracked(T, TrackingState.INITIALISING, self._rotation_px, len(rows))

    # ------------------------------------------------------------------ start
    def _reference(self, index: int) -> tuple[int, Index]:
        """Oldest keyframe that shares enough points with a frame, else the one with most."""
        rows = self._table.resting_in(index)
        shared = {k: self._table.seen_among(rows, k) for k in self._keyframes}
        enough = (k for k, those in shared.items() if len(those) >= 2 * MIN_POINTS)
        best = next(enough, max(shared, key=lambda k: len(shared[k])))
        return best, shared[best]

    def _try_bootstrap(self, index: int, tracked: Tracked) -> Tracked:
        """First structure once rotation leaves enough over, if it is sure or cannot wait."""
        if self._rotation_px < self._next_try_px:
            return tracked
        reference, rows = self._reference(index)
        frames = [reference, *(frame for frame in self._recent if frame > reference)]
        guess, structure = self.shutter.camera, self._best_structure(rows, frames)
        if structure is None:
            self._next_try_px = max(self._rotation_px * 1.2, self._config.bootstrap_px)
        may_wait = len(self._recent) <= self._window.final_lag
        if structure is None or (may_wait and not structure.explains_most):
            self.shutter.camera = guess  # with which the rotations were found
            return tracked
        self._take(structure, rows, frames)
        residual = float(np.nanmedian(structure.residual_px))
        return Tracked(self.poses[index], self._state, residual, len(rows))

    def _best_structure(self, rows: Index, frames: list[int]) -> Structure | None:
        views = partial(self._views, rows, frames)
        if self.shutter.camera.is_sure:
            return bootstrap(views())
        return bootstrap_uncalibrated(self.shutter, max(self._grey.shape), views)

    def _views(self, rows: Index, frames: list[int]) -> Views:
        base = rigid.inverse(self.poses[frames[0]])
        rotations = np.stack([(self.poses[frame] @ base)[:3, :3] for frame in frames])
        uv = self._points.seen(rows, frames)
        sweep = self.shutter.sweep(uv, frames, self._table.rho[rows])
        return Views(
            self.shutter.camera.normalised(uv),
            rotations,
            self._rotation_px,
            self.shutter.camera.focal,
            self._config.noise_px,
            Readout(sweep, sweep[:, 0], self.shutter.readout),
        )

    def _take(self, structure: Structure, rows: Index, frames: list[int]) -> None:
        """The structure becomes the map; its first and last frame are keyframes."""
        table, base = self._table, self.poses[frames[0]]
        for frame, T in zip(frames, structure.T_cam_first, strict=True):
            self.poses[frame] = rigid.orthonormal(T @ base)
        table.rehost(rows, frames[0])
        table.rho[rows], table.rho_sigma[rows] = structure.rho, structure.rho_sigma
        table.rho_prior[rows] = 1.0
        self.shutter.readout = structure.readout
        self._support = rows
        self.ready, self.knows_depth = True, self.shutter.camera.is_given
        if frames[-1] not in self._keyframes:
            self._make_keyframe(frames[-1])
        self._take_velocity(slice(None))

    # ------------------------------------------------------------------ keyframes
    def _needs_keyframe(self, index: int) -> bool:
        """Points moved far from the last keyframe, or too many of them are gone."""
        if index in self._keyframes:
            return False
        rows = self._table.resting_in(index)
        moved = self._table.displacements(rows, self._keyframes[-1], index)
        few = len(rows) < 0.6 * self._keyframe_points or len(moved) < MIN_POINTS
        return few or float(np.median(np.linalg.norm(moved, axis=1))) > self._config.keyframe_px

    def _make_keyframe(self, index: int) -> None:
        table = self._table
        self._local_map.add(index, self.poses[index], self._grey)
        rows = table.rows_in(index)
        occupied, moving = table.uv[rows, table.column(index)], table.moving[rows]
        uv = query_points(self._grey, occupied, self._config.cell_px, seed=index)
        rho = self._points.expected_rho(index, uv)
        table.add(index, uv, rho, moving_with(uv, occupied, moving))
        self._keyframes.append(index)
        self._keyframe_points = int((table.alive & ~table.moving).sum())

    def _forget(self) -> None:
        """Drop what falls out of the window, and the oldest keyframe beyond the bound."""
        while len(self._recent) > self._window.size:
            frame = self._recent.pop(0)
            if frame not in self._keyframes:
                self._table.close_column(frame)
        older = [frame for frame in self._keyframes if frame not in self._recent]
        for frame in older[: max(0, len(older) - self._config.num_keyframes)]:
            self._keyframes.remove(frame)
            self._table.close_column(frame)
        kept = {*self._table.frames.tolist(), *self._table.host.tolist()}
        kept.update(range(self._recent[-1] - self._window.num_remembered + 1, self._recent[-1]))
        for frame in [frame for frame in self.poses if frame not in kept]:
            del self.poses[frame]
        self.shutter.forget_all_but(kept)
        self._local_map.forget_all_but(self._keyframes)

"""Where the tracked points lie, by their inverse depths and the poses of their hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.neighbours import NEIGHBOURS, typical
from recon4d_ros.predictors.classical.pose import Sightings
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import Shutter
from recon4d_ros.predictors.classical.tracks import Index, Mask, TrackTable, places

SURE = 0.2  # relative standard deviation of a depth that counts as known


class Points:
    """Geometry of the rows of a track table; it keeps nothing of its own."""

    def __init__(self, table: TrackTable, poses: Mapping[int, Array], shutter: Shutter) -> None:
        """Look at a table, the poses T_cam_world of its frames and the camera."""
        self._table = table
        self._poses = poses
        self._shutter = shutter

    def host_poses(self, rows: Index) -> Array:
        """T_world_cam (N, 4, 4) of the points' hosts."""
        frames = sorted(self._poses)
        which = places(frames, self._table.host[rows])
        return rigid.inverse(np.stack([self._poses[frame] for frame in frames]))[which]

    def rays(self, rows: Index) -> Array:
        """Normalised image coordinates (N, 2) in the hosts, at the time of their middle rows."""
        table = self._table
        uv, host = table.host_uv[rows, None], table.host[rows, None]
        return self._shutter.undone(uv, host, table.rho[rows])[:, 0]

    def sightings(self, rows: Index, index: int) -> Sightings:
        """What a frame sees of the points."""
        table = self._table
        return Sightings(
            self.host_poses(rows),
            self.rays(rows),
            table.rho[rows],
            table.rho_sigma[rows],
            self.views(rows, [index])[:, 0],
            self._shutter.camera.focal,
        )

    def seen(self, rows: Index, frames: Sequence[int]) -> Array:
        """Px (N, F, 2) where the points were seen."""
        columns = np.array([self._table.column(frame) for frame in frames])
        return np.asarray(self._table.uv[np.ix_(rows, columns)])

    def views(self, rows: Index, frames: Sequence[int]) -> Array:
        """The same in normalised image coordinates, at the time of the middle rows."""
        return self._shutter.undone(self.seen(rows, frames), frames, self._table.rho[rows])

    def are_sure(self, rows: Index) -> Mask:
        """Which points' depth is known, (N,); never that of what moves."""
        table = self._table
        narrow = table.rho_sigma[rows] < SURE * table.rho[rows]
        return np.asarray(narrow & ~table.moving[rows])

    def sure_rows(self, index: int) -> Index:
        """Rows of the points in a frame whose depth is known."""
        rows = self._table.rows_in(index)
        return rows[self.are_sure(rows)]

    def expected_rho(self, index: int, uv: Array) -> Array:
        """Inverse depth (N,) of new points (N, 2) px: that of the known ones around them."""
        rows = self.sure_rows(index)
        if len(rows) < NEIGHBOURS:
            known = self._table.rho[self._table.used]
            return np.full(len(uv), float(np.median(known)) if len(known) else 1.0)
        at = self._table.uv[rows, self._table.column(index)]
        return typical(uv, at, self.rho_in(index, rows))

    def positions(self, rows: Index) -> Array:
        """World coordinates (N, 3)."""
        return np.asarray(self._in_world(rows)[:, :3] / self._table.rho[rows, None])

    def projected(self, rows: Index, poses: Sequence[Array]) -> list[Array]:
        """Px (N, 2) of points in cameras T_cam_world (4, 4), NaN behind them."""
        points = self._in_world(rows)
        seen = (points @ T[:3].T for T in poses)
        at = (q[:, :2] / np.where(q[:, 2:] > 1e-3, q[:, 2:], np.nan) for q in seen)
        return [self._shutter.camera.pixels(uv) for uv in at]

    def rho_in(self, index: int, rows: Index) -> Array:
        """Inverse depth (N,) of points in a frame."""
        z = self._in_world(rows) @ self._poses[index][2]
        return np.asarray(self._table.rho[rows] / np.maximum(z, 1e-3))

    def _in_world(self, rows: Index) -> Array:
        """Homogeneous world coordinates (N, 4), the last of which is the inverse depth."""
        T, rho = self.host_poses(rows), self._table.rho[rows, None]
        bearing = rigid.homogeneous(self.rays(rows))[..., None]
        return np.concatenate([(T[:, :3, :3] @ bearing)[..., 0] + rho * T[:, :3, 3], rho], axis=1)

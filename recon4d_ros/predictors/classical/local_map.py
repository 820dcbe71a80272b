"""Points that were lost and come back into sight, found by their patches in older keyframes.

Between consecutive frames a point that somebody walks past is lost for good, and whatever is born
in its place takes its depth from less. The step is known as tracking of the local map (Mur-Artal
et al., ORB-SLAM, 2015, section V.D).
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from recon4d_ros.predictors.classical.points import Points
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Grey, Index, TrackTable, follow

_MOST_HOSTS = 2  # whose points are sought, up to 7 ms each; more change little
_LEAST_FOUND = 10  # of one host; a handful may all be mistaken
_FARTHEST_PX = 12.0  # from where it is expected: by so much the newest poses may have drifted


class LocalMap:
    """Images of the remembered keyframes, one each."""

    def __init__(self, table: TrackTable, points: Points, max_mismatch_px: float) -> None:
        """Look at a table and its points; `max_mismatch_px` as for `follow`."""
        self._table = table
        self._points = points
        self._max_mismatch_px = max_mismatch_px
        self._images: dict[int, Grey] = {}

    def add(self, keyframe: int, T_cam_world: Array, grey: Grey) -> None:
        """Record in the table which lost points of sure depth a new keyframe shows again.

        Args:
            keyframe: a frame of the table.
            T_cam_world: (4, 4) its pose.
            grey: (H, W) its image.
        """
        rows, guess = self._candidates(T_cam_world, grey)
        hosts = self._table.host[rows]
        for host in self._most_missed(hosts):
            mine = hosts == host
            self._find(rows[mine], guess[mine], host, keyframe, grey)
        self._images[keyframe] = grey

    def forget_all_but(self, kept: Container[int]) -> None:
        """Drop the keyframes that are not in `kept`."""
        self._images = {frame: grey for frame, grey in self._images.items() if frame in kept}

    def _candidates(self, T_cam_world: Array, grey: Grey) -> tuple[Index, Array]:
        """Rows of the lost points that would lie in an image, and where (N, 2) px."""
        rows = np.flatnonzero(self._table.used & ~self._table.alive)
        rows = rows[self._points.are_sure(rows)]
        (uv,) = self._points.projected(rows, [T_cam_world])
        inside = ((uv >= 0) & (uv < grey.shape[::-1])).all(axis=1)  # False for NaN
        return rows[inside], uv[inside]

    def _most_missed(self, hosts: Index) -> list[int]:
        """Of the hosts (N,) of points, those of the most of them; their images are remembered."""
        frames, counts = np.unique(hosts[np.isin(hosts, list(self._images))], return_counts=True)
        most = np.argsort(-counts, kind="stable")[:_MOST_HOSTS]
        return [int(frame) for frame in frames[most[counts[most] >= _LEAST_FOUND]]]

    def _find(self, rows: Index, guess: Array, host: int, keyframe: int, grey: Grey) -> None:
        """Seek points from their patches in their host."""
        start = self._table.host_uv[rows]
        uv, good = follow(self._images[host], grey, start, guess, self._max_mismatch_px)
        good &= np.linalg.norm(uv - guess, axis=1) < _FARTHEST_PX
        if good.sum() >= _LEAST_FOUND:
            self._table.see_again(rows[good], keyframe, uv[good])

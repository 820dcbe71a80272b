"""C4D's point trajectory smoothness on a stream: smoothed tracks and depth of final frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.config import RefinementConfig
from recon4d_ros.datatypes import Reconstruction, Tracks, Tracks3D
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.refinement.blend_displacement import BlendedDisplacement, Controls
from recon4d_ros.refinement.lifting import lift_tracks
from recon4d_ros.refinement.track_history import Sights, SmoothedSights, TrackHistory

# What a frame has beside its own depth and pose: tracks (T = 1, px of its own size) or None.
Tracked = tuple[Reconstruction, Tracks | None]


class Refiner:
    """Refines the frames of one stream, in the order in which they become final.

    Each is smoothed together with the `radius` frames on either side. Bounded: the tracks of a few
    frames. A frame without pose, depth or tracks passes through unchanged; submaps are smoothed
    apart, for they share no gauge.
    """

    def __init__(self, config: RefinementConfig) -> None:
        """Make a refiner that has seen nothing."""
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._history = TrackHistory(self._config)
        self._submap = 0
        self._num_known = 0

    def refine(
        self, settled: Sequence[Tracked], ahead: Sequence[Tracked]
    ) -> tuple[Reconstruction, ...]:
        """Refined frames, as many as are settled.

        Args:
            settled: the next frames of the stream.
            ahead: frames that follow them, as far as they are known and whatever becomes of them;
                the last of the settled ones are smoothed with these.

        Raises:
            GeometryError: tracks are those of several frames.
        """
        frames = [frame for frame, _ in settled]
        if self._config.mode == "off" or not settled:
            return tuple(frames)
        done: list[SmoothedSights] = []
        for row, (frame, tracks) in enumerate(settled):
            if frame.submap != self._submap:
                done += self._rest(row - len(done), ())
                self.reset()
                self._submap = frame.submap
            done += self._pushed(self._history, self._sights(frame, tracks))
        done += self._rest(len(settled) - len(done), ahead)
        pairs = zip(frames, done, strict=True)
        return tuple(self._refined(frame, smoothed) for frame, smoothed in pairs)

    def _sights(self, frame: Reconstruction, tracks: Tracks | None) -> Sights:
        return lift_tracks(tracks, frame, self._config.min_visibility)

    def _pushed(self, history: TrackHistory, sights: Sights) -> list[SmoothedSights]:
        """What one more frame brings, less what was handed out before it was known."""
        if self._num_known > 0 and history.is_due:
            self._num_known -= 1
            history.skip(sights)
            return []
        smoothed = history.push(sights)
        return [] if smoothed is None else [smoothed]

    def _rest(self, number: int, ahead: Sequence[Tracked]) -> list[SmoothedSights]:
        """The newest `number` frames, smoothed with what is known of those that follow."""
        if number == 0:
            return []
        history = self._history.copy()
        smoothed = [
            history.push(self._sights(frame, tracks))
            for frame, tracks in ahead[: self._config.radius]
            if frame.submap == self._submap
        ]
        known = [entry for entry in smoothed if entry is not None] + list(history.finish())
        # The history still holds frames handed out before, and what it was given of later ones.
        first = self._num_known
        self._num_known += number
        return known[first : first + number]

    def _refined(self, before: Reconstruction, smoothed: SmoothedSights) -> Reconstruction:
        """The frame with the depth that its smoothed tracks ask for."""
        seen = smoothed.points.isfinite().all(dim=-1)
        if before.T_map_cam is None or not bool(seen.any()):
            return before
        tracks = Tracks3D(
            ids=smoothed.sights.ids[seen],
            age=smoothed.age[seen],
            points=smoothed.points[seen].float(),
            mobility=smoothed.sights.mobility[seen],
        )
        controls = _controls(smoothed, seen, before.T_map_cam)
        if not bool((controls.displacements != 0).any()):  # tracks seen in this frame alone
            return replace(before, tracks=tracks)
        return replace(before, depth=self._depth(before, controls), tracks=tracks)

    def _depth(self, reconstruction: Reconstruction, controls: Controls) -> Tensor:
        mask, reach = reconstruction.dynamic_mask, self._config.reach
        if self._config.mode == "literal":  # every pixel listens to every control, however far
            mask, reach = torch.zeros_like(mask), np.inf
            controls = replace(controls, moving=torch.zeros_like(controls.moving))
        points = pointmap.from_depth(reconstruction.depth, reconstruction.intrinsics)
        field = BlendedDisplacement(controls, self._config.neighbours, reach)
        displacement = field.over(points, mask, self._config.grid_step)
        return pointmap.depth_towards(points, displacement, self._config.max_change)


def _controls(smoothed: SmoothedSights, seen: Tensor, T_map_cam: Tensor) -> Controls:
    """What smoothing did to the tracks `seen` (N,), in the frame's camera."""
    T_cam_map = se3.inverse(T_map_cam.double())
    raw = se3.transform(T_cam_map, smoothed.sights.points[seen])
    wanted = se3.transform(T_cam_map, smoothed.points[seen])
    return Controls(raw, wanted - raw, smoothed.sights.masked[seen])

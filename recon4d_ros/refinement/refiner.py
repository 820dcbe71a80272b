"""C4D's point trajectory smoothness on a stream: smoothed tracks and depth at a fixed lag."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.config import RefinementConfig
from recon4d_ros.datatypes import Reconstruction, Tracks, Tracks3D
from recon4d_ros.geometry import pointmap, se3
from recon4d_ros.refinement.blend_displacement import BlendedDisplacement, Controls
from recon4d_ros.refinement.closed_form_depth import closed_form_depth
from recon4d_ros.refinement.lifting import lift_tracks
from recon4d_ros.refinement.track_history import SmoothedSights, TrackHistory


class Refiner:
    """Gives each frame of one stream back `lag` frames later, refined.

    Bounded: `lag` reconstructions, and the tracks of a few frames more. A frame without pose,
    depth or tracks passes through unchanged; submaps are smoothed apart, for they share no gauge.
    """

    def __init__(self, config: RefinementConfig) -> None:
        """Make a refiner that has seen nothing."""
        self._config = config
        self._history = TrackHistory(config)
        self._waiting: deque[Reconstruction] = deque()

    @property
    def lag(self) -> int:
        """Frames that must follow before a frame comes back."""
        return 0 if self._config.mode == "off" else self._config.radius

    def push(
        self, reconstruction: Reconstruction, tracks: Tracks | None
    ) -> tuple[Reconstruction, ...]:
        """Take the next frame; give back what is done, oldest first.

        Args:
            reconstruction: of the frame.
            tracks: of the frame alone (T = 1), px of its own size; None: there are none.

        Returns:
            Mostly one frame; none at first, and all that wait when a new submap begins.

        Raises:
            GeometryError: the tracks are those of several frames.
        """
        if self._config.mode == "off":
            return (reconstruction,)
        sights = lift_tracks(tracks, reconstruction, self._config.min_visibility)
        done: tuple[Reconstruction, ...] = ()
        if self._waiting and self._waiting[-1].submap != reconstruction.submap:
            done = self.finish()
        self._waiting.append(reconstruction)
        smoothed = self._history.push(sights)
        return done if smoothed is None else (*done, self._refined(smoothed))

    def finish(self) -> tuple[Reconstruction, ...]:
        """At the end of a stream or submap: the frames that still wait, oldest first."""
        return tuple(self._refined(smoothed) for smoothed in self._history.finish())

    def reset(self) -> None:
        """Forget everything."""
        self._history.reset()
        self._waiting.clear()

    def _refined(self, smoothed: SmoothedSights) -> Reconstruction:
        """The oldest waiting frame with the depth that its smoothed tracks ask for."""
        before = self._waiting.popleft()
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
        return replace(before, depth=self._depth(before, controls), tracks=tracks)

    def _depth(self, reconstruction: Reconstruction, controls: Controls) -> Tensor:
        mask, reach = reconstruction.dynamic_mask, self._config.reach
        if self._config.mode == "literal":  # every pixel listens to every control, however far
            mask, reach = torch.zeros_like(mask), np.inf
            controls = replace(controls, moving=torch.zeros_like(controls.moving))
        points = pointmap.from_depth(reconstruction.depth, reconstruction.intrinsics)
        field = BlendedDisplacement(controls, self._config.neighbours, reach)
        displacement = field.over(points, mask, self._config.grid_step)
        return closed_form_depth(points, displacement, self._config.max_change)


def _controls(smoothed: SmoothedSights, seen: Tensor, T_map_cam: Tensor) -> Controls:
    """What smoothing did to the tracks `seen` (N,), in the frame's camera."""
    T_cam_map = se3.inverse(T_map_cam.double())
    raw = se3.transform(T_cam_map, smoothed.sights.points[seen])
    wanted = se3.transform(T_cam_map, smoothed.points[seen])
    return Controls(raw, wanted - raw, smoothed.sights.masked[seen])

"""An exact reconstruction for tests of the node; no test in here."""

from __future__ import annotations

from dataclasses import replace

import torch

from recon4d_ros.datatypes import (
    EventKind,
    Intrinsics,
    IntrinsicsSource,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackedFrame,
    TrackingState,
)
from recon4d_ros.errors import PredictorError

_GATE_S = 60.0  # after which a gate that no test opens lets go


class ExactCore:
    """A camera that moves 0.1 along x per frame before a slanted wall, with one moving square.

    Frames become final after two more. `states` and `submaps` set what a frame number shows;
    `fail` raises at a frame number; `gate` and `map_gate` hold tracking and mapping up.
    """

    def __init__(self, config, states=None, submaps=None, fail=None, gate=None, map_gate=None):
        self.config = config
        self._states, self._submaps, self._fail = states or {}, submaps or {}, fail or {}
        self._gate, self._map_gate = gate, map_gate
        self.num_begun = 0
        self.frames = []
        self.mapped = []
        self._waiting = []
        self.num_resets = 0

    maps_aside = True

    def track(self, frame, on_pose=None, *, dense=True, exclusive=None):
        self.num_begun += 1
        if self._gate is not None:
            self._gate.wait(_GATE_S)
        if frame.index in self._fail:
            raise self._fail.pop(frame.index)
        if self.frames and frame.size != self.frames[-1].size:
            raise PredictorError("size changed")
        self.frames.append(frame)
        events = ()
        if frame.index == 0:
            events = (MapEvent(EventKind.INITIALISED, frame.stamp_ns, 0, "started"),)
        pose = self._reconstruct(frame)
        tracked = TrackedFrame(pose, None, 1.0, dense, None, events, {"track": 0.001})
        if on_pose is not None:
            with exclusive:
                on_pose(tracked)
        return tracked

    def map(self, tracked, on_provisional=None, on_window=None, exclusive=None):
        if self._map_gate is not None:
            self._map_gate.wait(_GATE_S)
        result = tracked.pose
        if on_provisional is not None:
            on_provisional(result)
        self._waiting.append(result)
        final = ()
        if len(self._waiting) > 2:
            final = (replace(self._waiting.pop(0), is_final=True),)
        events = self._window_events(result.frame)
        if on_window is not None:
            with exclusive:
                on_window(final, events)
        self.mapped.append(result.frame)
        return StepOutput(result, final, events, tracked.stage_seconds)

    def _window_events(self, frame):
        return ()

    def _reconstruct(self, frame):
        height, width = frame.size[0] // 2, frame.size[1] // 2
        state = self._states.get(frame.index, TrackingState.TRACKING)
        T_map_cam = torch.eye(4, dtype=torch.float64)
        T_map_cam[0, 3] = 0.1 * frame.index
        depth = (2.0 + torch.arange(width) / width).expand(height, width).clone()
        depth[0] = torch.nan
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[4:12, 6:16] = True
        known = frame.intrinsics is not None
        return Reconstruction(
            frame=frame,
            is_final=False,
            T_map_cam=None if state is TrackingState.LOST else T_map_cam,
            depth=depth.float(),
            confidence=torch.isfinite(depth).float(),
            dynamic_mask=mask,
            filled=mask,
            intrinsics=Intrinsics(30.0, 30.0, (width - 1) / 2, (height - 1) / 2, width, height),
            intrinsics_source=IntrinsicsSource.GIVEN if known else IntrinsicsSource.ESTIMATED,
            state=state,
            submap=self._submaps.get(frame.index, 0),
            scale_known=False,
            residual_px=0.2,
            num_support=100,
        )

    def static_map(self):
        num = len(self.frames)
        points = torch.arange(3 * num).reshape(num, 3).float()
        rgb = torch.tensor([[10, 20, 30]], dtype=torch.uint8).expand(num, 3).contiguous()
        return PointCloud(points, rgb, torch.ones(num), torch.full((num,), 2, dtype=torch.int32))

    def reset(self):
        self.num_resets += 1
        self.frames.clear()
        self._waiting.clear()
        return MapEvent(EventKind.RESET, 0, 0, "reset")

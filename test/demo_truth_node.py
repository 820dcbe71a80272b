"""The node as a process, around the truth about the demo's scene; started by tests."""

import sys

import torch

from recon4d_ros.datatypes import (
    EventKind,
    IntrinsicsSource,
    MapEvent,
    Reconstruction,
    StepOutput,
    TrackedFrame,
    TrackingState,
)
from recon4d_ros.geometry import camera
from recon4d_ros.mapping.static_map import StaticMap
from recon4d_ros.ros.node import main
from recon4d_ros.synthetic import raycast, scenes
from recon4d_ros.synthetic.renderer import moving_solids
from recon4d_ros.synthetic.scene import snapshot


class TruthCore:
    """Every frame final at once, with exact pose, depth and mask on a grid 160 px wide."""

    def __init__(self, config):
        torch.set_num_threads(1)
        self._map = StaticMap(config.map)
        self._scene = scenes.demo(width=160)

    maps_aside = False

    def track(self, frame, on_pose=None, *, dense=True, exclusive=None):
        tracked = TrackedFrame(self._reconstruct(frame), None, 1.0, dense, None, (), {})
        with exclusive:
            on_pose(tracked)
        return tracked

    def map(self, tracked, on_provisional=None, on_window=None, exclusive=None):
        result = tracked.pose
        on_provisional(result)
        self._map.insert(result)
        with exclusive:
            on_window((result,), ())
        return StepOutput(result, (result,))

    def static_map(self):
        return self._map.cloud()

    def reset(self):
        self._map.reset()
        return MapEvent(EventKind.RESET, 0, 0, "reset")

    def _reconstruct(self, frame):
        scene = self._scene
        index = round((frame.stamp_ns - scene.start_ns) * 1e-9 * scene.rate_hz)
        view, size = snapshot(scene, index), scene.intrinsics.size
        hits = raycast.cast(view, camera.pixel_grid(size).reshape(-1, 2))
        mask = moving_solids(scene, index)[hits.solid].reshape(size)
        return Reconstruction(
            frame=frame,
            is_final=True,
            T_map_cam=view.T_world_cam,
            depth=hits.depth.reshape(size).float(),
            confidence=torch.ones(size),
            dynamic_mask=mask,
            filled=torch.zeros_like(mask),
            intrinsics=scene.intrinsics,
            intrinsics_source=IntrinsicsSource.GIVEN,
            state=TrackingState.TRACKING,
            submap=0,
            scale_known=True,
            residual_px=0.0,
            num_support=100,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv, build_core=TruthCore))

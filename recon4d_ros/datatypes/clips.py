"""Short clips with everything that is true about them: what trackers are trained and judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class CameraMotion(Enum):
    """How the camera of a clip moves; figures are reported for each kind apart."""

    STANDING = "standing"
    ROTATION = "rotation"
    FORWARD = "forward"
    LATERAL = "lateral"
    ORBIT = "orbit"
    HANDHELD = "handheld"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Clips:
    """B clips of T frames with N tracked points each, on the device that made them.

    Attributes:
        rgb: (B, T, H, W, 3) uint8.
        queries: (B, N, 3) float32: frame number in the clip, then x and y, px.
        tracks: (B, T, N, 2) float32 px, exact also where the point is hidden; NaN where the truth
            does not know it.
        visibility: (B, T, N) bool, inside the image and not covered.
        moves_in_clip: (B, N) bool, the point moves in the world at some time in the clip.
        moves_in_frame: (B, T, N) bool, it moves about this frame.
        is_judged: (B, N) bool, False for points too slow to call moving and too fast to call
            static; their mobility counts neither in a loss nor in a figure.
        object_ids: (B, N) int64, which solid the point lies on; 0 is the background.
        camera_motion: one for each clip.
        T_world_cam: (B, T, 4, 4) float64, or None.
        K: (B, 3, 3) float64, or None.
        depth: (B, T, H, W) float32 z-depth, NaN where unknown, or None.
        dynamic_mask: (B, T, H, W) bool, the surface moves in the world about this frame, or None.
        flow: (B, T - 1, H, W, 2) float32 px from each frame to the next one, or None.
        scene_flow: (B, T - 1, H, W, 3) float32, displacement of the surface point to the next
            frame's time in the camera of the earlier frame, or None.
        searched_flow: (B, 2, T - 1, 3, H, W) float16, flow as a search finds it: from each frame
            to the next one, then from that one back; u, v px, and 1 where the way back agrees or
            else 0. None where nothing was searched.
    """

    rgb: Tensor
    queries: Tensor
    tracks: Tensor
    visibility: Tensor
    moves_in_clip: Tensor
    moves_in_frame: Tensor
    is_judged: Tensor
    object_ids: Tensor
    camera_motion: tuple[CameraMotion, ...]
    T_world_cam: Tensor | None = None
    K: Tensor | None = None
    depth: Tensor | None = None
    dynamic_mask: Tensor | None = None
    flow: Tensor | None = None
    scene_flow: Tensor | None = None
    searched_flow: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Clips]) -> Clips:
        """One batch of several of the same shape; what one of them lacks, the batch lacks."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            members = [getattr(part, item.name) for part in parts]
            if item.name == "camera_motion":
                values[item.name] = tuple(motion for member in members for motion in member)
            else:
                lacks = any(member is None for member in members)
                values[item.name] = None if lacks else torch.cat(members)
        return cls(**values)

    def rows(self, which: Sequence[int]) -> Clips:
        """Chosen ones."""
        index = torch.tensor(which, device=self.rgb.device)
        tensors = {name: v[index] for name, v in vars(self).items() if isinstance(v, Tensor)}
        motion = tuple(self.camera_motion[row] for row in which)
        return dataclasses.replace(self, camera_motion=motion, **tensors)

    def to(self, device: torch.device) -> Clips:
        """On another device."""
        tensors = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        moved = {name: value.to(device) for name, value in tensors.items()}
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type]

"""The truth about pointmaps: what POMATO should say of pairs of frames of a clip.

Source: POMATO, arXiv 2504.05692, section 3.2: points in the first camera, and where the points of
the second image were at the time of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import TrainingError
from recon4d_ros.geometry import camera, pointmap, se3

# Depths that differ by less than this share are of one surface.
_SAME_SURFACE = 0.02


@dataclass(frozen=True, eq=False)
class PointmapTargets:
    """P pairs, the pairs of a clip after one another; NaN where nothing is known.

    Attributes:
        points_1: (P, H, W, 3) float32, of the pixels of view 1, in its camera.
        points_2_in_1: of the pixels of view 2 at its own time, in the camera of view 1.
        matching_2_in_1: where these surface points were at the time of view 1.
        K: (P, 3, 3) float32.
    """

    points_1: Tensor
    points_2_in_1: Tensor
    matching_2_in_1: Tensor
    K: Tensor


def pointmap_targets(
    clips: Clips, views1: Sequence[int], views2: Sequence[int]
) -> PointmapTargets:
    """The truth of the pairs (views1[i], views2[i]) of every clip.

    Raises:
        TrainingError: the clips lack what it is made of.
    """
    surfaces = Surfaces(clips)
    first, second, matching = [], [], []
    for view1, view2 in zip(views1, views2, strict=True):
        T_cam_world = se3.inverse(surfaces.T_world_cam[:, view1])
        first.append(pointmap.transform(T_cam_world, surfaces.points[:, view1]))
        second.append(pointmap.transform(T_cam_world, surfaces.points[:, view2]))
        then = surfaces.at_time(view2, view1)
        matching.append(pointmap.transform(T_cam_world, then))
    points_1, points_2, matched = (
        torch.stack(part, dim=1).flatten(0, 1) for part in (first, second, matching)
    )
    K = surfaces.K.repeat_interleave(len(views1), dim=0)
    return PointmapTargets(points_1, points_2, matched, K)


class Surfaces:
    """The visible surfaces of clips, in world coordinates, and how they move."""

    def __init__(self, clips: Clips) -> None:
        """Take them from depth, poses and scene flow.

        Raises:
            TrainingError: one of these is missing.
        """
        needed = ("depth", "T_world_cam", "K", "scene_flow", "dynamic_mask")
        missing = [name for name in needed if getattr(clips, name) is None]
        depth, T_world_cam, K = clips.depth, clips.T_world_cam, clips.K
        scene_flow, dynamic_mask = clips.scene_flow, clips.dynamic_mask
        if (
            depth is None
            or T_world_cam is None
            or K is None
            or scene_flow is None
            or dynamic_mask is None
        ):
            raise TrainingError(
                f"the clips lack {', '.join(missing)}; pointmaps can only be learned from a "
                "source that knows them"
            )
        self.T_world_cam, self.K = T_world_cam.to(depth), K.to(depth)
        self._depth, self._dynamic_mask = depth, dynamic_mask
        in_cam = pointmap.from_depth(depth, self.K[:, None, None, None])
        self.points = pointmap.transform(self.T_world_cam, in_cam)
        R_world_cam = self.T_world_cam[:, :-1, None, None, :3, :3]
        self._forward = (R_world_cam @ scene_flow[..., None]).squeeze(-1)

    def at_time(self, frame: int, time: int) -> Tensor:
        """Where the surface points (B, H, W, 3) of a frame's pixels are at another frame's time.

        They are followed from frame to frame; NaN once one is hidden or out of sight, since its
        motion is not seen there.
        """
        points = self.points[:, frame]
        step = 1 if time > frame else -1
        for now in range(frame, time, step):
            motion = self._motion(now, step)
            if now != frame:
                motion = self._seen(motion, points, now)
            points = points + motion
        return points

    def _motion(self, frame: int, step: int) -> Tensor:
        """(B, H, W, 3) to the next frame's time, or to the time of the one before."""
        return self._forward[:, frame] if step > 0 else self._backward(frame)

    def _backward(self, frame: int) -> Tensor:
        """What each pixel's surface did since the frame before, reversed.

        The pixels of the frame before say it where they arrive. Where none does, a surface that
        does not move has none, and that of one that does is unknown.
        """
        forward = self._forward[:, frame - 1]
        arrived = self.points[:, frame - 1] + forward
        cells, hits = self._cells(arrived, frame)
        resting = torch.zeros_like(forward)
        unknown = torch.full_like(forward, torch.nan)
        motion = torch.where(self._dynamic_mask[:, frame, ..., None], unknown, resting)
        clip = torch.arange(len(motion), device=motion.device)[:, None, None].expand_as(cells)
        flat = motion.flatten(1, 2)
        flat[clip[hits], cells[hits]] = -forward[hits]
        return flat.view_as(motion)

    def _seen(self, motion: Tensor, points: Tensor, frame: int) -> Tensor:
        """The motion (B, H, W, 3) of a frame's pixels at points (B, H, W, 3) that it sees."""
        cells, hits = self._cells(points, frame)
        index = torch.where(hits, cells, 0).flatten(1)[..., None].expand(-1, -1, 3)
        found = motion.flatten(1, 2).gather(1, index).view_as(points)
        return torch.where(hits[..., None], found, torch.nan)

    def _cells(self, points: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        """Numbers (B, H, W) of a frame's pixels that see points, and whether they do."""
        size = (points.shape[1], points.shape[2])
        in_cam = pointmap.transform(se3.inverse(self.T_world_cam[:, frame]), points)
        uv = torch.floor(camera.project(in_cam, self.K[:, None, None]) + 0.5)
        inside = camera.inside(uv, size)
        x, y = torch.where(inside[..., None], uv, 0.0).long().unbind(-1)
        cells = y * size[1] + x
        depth = self._depth[:, frame].flatten(1).gather(1, cells.flatten(1)).view_as(cells)
        z = in_cam[..., 2]
        return cells, inside & ((depth - z).abs() <= _SAME_SURFACE * z)

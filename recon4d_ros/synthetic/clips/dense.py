"""Motion of every pixel to the next frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.synthetic.clips.casting import Hits
from recon4d_ros.synthetic.clips.motion import Views, deform
from recon4d_ros.synthetic.clips.world import World


@dataclass(frozen=True, eq=False)
class DenseMotion:
    """What happens to the surface points until the next frame.

    Attributes:
        flow: (B, T - 1, H, W, 2) float32 px, NaN where the point comes behind the camera.
        scene_flow: (B, T - 1, H, W, 3) float32, in the camera of the earlier frame.
    """

    flow: Tensor
    scene_flow: Tensor


def dense_motion(world: World, view: Views, hits: Hits) -> DenseMotion:
    """Motion of all pixels but those of the last frame."""
    B, T = view.T_world_cam.shape[:2]
    pictures = [
        _picture(world, view, hits, clip, frame) for clip in range(B) for frame in range(T - 1)
    ]
    return DenseMotion(
        _batched([flow for flow, _ in pictures], B),
        _batched([scene_flow for _, scene_flow in pictures], B),
    )


def _batched(pictures: list[Tensor], clips: int) -> Tensor:
    stacked = torch.stack(pictures)
    return stacked.view(clips, -1, *stacked.shape[1:])


def _picture(
    world: World, view: Views, hits: Hits, clip: int, frame: int
) -> tuple[Tensor, Tensor]:
    """Flow (H, W, 2) and scene flow (H, W, 3) of one picture, float64 within."""
    picture = clip * view.phase.shape[1] + frame
    solid = hits.solid[picture].long()
    K, half = world.K[clip], world.solids.half_size[clip][solid]
    points = pointmap.from_depth(hits.depth[picture].double(), K)
    T_now, T_next = view.T_world_solid[clip, frame], view.T_world_solid[clip, frame + 1]
    T_world_cam = view.T_world_cam[clip, frame : frame + 2]
    T_solid_cam = se3.inverse(T_now) @ T_world_cam[0]
    unit = se3.transform(T_solid_cam[solid], points) / half
    kind, wave = world.solids.kind[clip][solid], world.solids.wave[clip][solid]
    later = deform(kind, wave, view.phase[clip, frame + 1][solid], unit) * half
    moved_world = se3.transform(T_next[solid], later)
    to_cam = se3.inverse(T_world_cam)
    uv = camera.project(se3.transform(to_cam[1], moved_world), K)
    grid = camera.pixel_grid((solid.shape[0], solid.shape[1]), uv.dtype, uv.device)
    scene_flow = se3.transform(to_cam[0], moved_world) - points
    return (uv - grid).float(), scene_flow.float()

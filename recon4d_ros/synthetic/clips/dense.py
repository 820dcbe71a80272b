"""Motion of every pixel to the next frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.synthetic.clips.casting import Hits
from recon4d_ros.synthetic.clips.motion import Views, deform
from recon4d_ros.synthetic.clips.world import World

# At a time on a GPU: each has a few matrices, about a kilobyte.
_PIXELS_ON_GPU = 1 << 20


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
    B, T = view.phase.shape[:2]
    here = torch.arange(B * T, device=view.phase.device).view(B, T)[:, :-1].flatten()
    # One picture at a time on a CPU, so that what lies between stays in its cache.
    pixels = hits.depth.shape[1] * hits.depth.shape[2]
    step = 1 if here.device.type == "cpu" else max(1, _PIXELS_ON_GPU // pixels)
    parts = [_pictures(world, view, hits, rows) for rows in torch.split(here, step)]
    flow, scene_flow = (
        torch.unflatten(torch.cat(part), 0, (B, T - 1)) for part in zip(*parts, strict=True)
    )
    return DenseMotion(flow, scene_flow)


def _pictures(world: World, view: Views, hits: Hits, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Flow (F, H, W, 2) and scene flow (F, H, W, 3) of pictures (F,), float64 within."""
    clip = rows // view.phase.shape[1]
    solid = hits.solid[rows].long()
    # Each pixel's solid, among those of all pictures.
    place = torch.arange(len(rows), device=rows.device)[:, None, None], solid
    T_world_solid, T_world_cam = view.T_world_solid.flatten(0, 1), view.T_world_cam.flatten(0, 1)
    K, half = world.K[clip, None, None], world.solids.half_size[clip][place]
    points = pointmap.from_depth(hits.depth[rows].double(), K)
    T_solid_cam = se3.inverse(T_world_solid[rows]) @ T_world_cam[rows, None]
    unit = se3.transform(T_solid_cam[place], points) / half
    kind, wave = world.solids.kind[clip][place], world.solids.wave[clip][place]
    later = deform(kind, wave, view.phase.flatten(0, 1)[rows + 1][place], unit) * half
    moved_world = se3.transform(T_world_solid[rows + 1][place], later)
    to_now, to_next = (se3.inverse(T_world_cam[at])[:, None, None] for at in (rows, rows + 1))
    uv = camera.project(se3.transform(to_next, moved_world), K)
    grid = camera.pixel_grid((solid.shape[1], solid.shape[2]), uv.dtype, uv.device)
    scene_flow = se3.transform(to_now, moved_world) - points
    return (uv - grid).float(), scene_flow.float()

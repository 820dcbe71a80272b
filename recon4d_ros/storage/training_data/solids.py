"""Tracks and labels of scenes of rigid bodies, from depth, segments and poses.

A pixel is lifted to its surface point, carried along by the body it belongs to and projected into
every frame. It is seen where it lies inside the image, in front of the camera, and where one of
the four pixels around it shows its body at no less than 0.99 of its depth. Bodies move by the rule
of C4D (Wang et al., 2025, supplementary material) on their positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.datatypes import CameraMotion, Clips
from recon4d_ros.geometry import camera, se3
from recon4d_ros.storage.training_data.shape import ClipShape, Framing, evenly

_NEARER = 0.99  # of a point's depth: a surface nearer than this hides it
_GRID_PX = 4
_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


@dataclass(frozen=True)
class MobilityRule:
    """When a body moves from one frame to the next.

    Attributes:
        step: change of its position above which it moves, units of the scene.
        turn_deg: change of its orientation above which it moves too; None lets spinning pass for
            standing, as C4D's text has it.
    """

    step: float = 0.01
    turn_deg: float | None = 0.5


@dataclass(frozen=True, eq=False)
class SolidScene:
    """T frames of S rigid bodies; body 0 is the background, which stands.

    Attributes:
        name: for errors.
        rgb: (T, H, W, 3) uint8.
        depth: (T, H, W) float32 z-depth, NaN where unknown.
        bodies: (T, H, W) int64, the body each pixel shows.
        K: (3, 3) float64.
        T_world_cam: (T, 4, 4) float64.
        T_world_body: (T, S, 4, 4) float64.
    """

    name: str
    rgb: Tensor
    depth: Tensor
    bodies: Tensor
    K: Tensor
    T_world_cam: Tensor
    T_world_body: Tensor


def body_moves(T_world_body: Tensor, rule: MobilityRule) -> Tensor:
    """(T, S) bool of (T, S, 4, 4): a step of a body is about both frames that it joins."""
    before, after = T_world_body[:-1], T_world_body[1:]
    moves = torch.linalg.vector_norm((after - before)[..., :3, 3], dim=-1) > rule.step
    if rule.turn_deg is not None:
        turn = se3.angle(before[..., :3, :3].mT @ after[..., :3, :3])
        moves = moves | (torch.rad2deg(turn) > rule.turn_deg)
    return about_frames(moves)


def about_frames(moves: Tensor) -> Tensor:
    """(T, ...) bool of steps (T - 1, ...): each is about both frames that it joins."""
    none = torch.zeros_like(moves[:1])
    return torch.cat([moves, none]) | torch.cat([none, moves])


def solid_clip(
    scene: SolidScene, shape: ClipShape, rule: MobilityRule, rng: np.random.Generator
) -> Clips:
    """A clip, B = 1, of all frames of a scene, with points drawn evenly over the bodies seen.

    Raises:
        SourceError: the scene shows too few points.
    """
    framing = Framing.middle((scene.rgb.shape[1], scene.rgb.shape[2]), shape.size)
    frame, row, column = _points(scene, framing, shape.num_tracks, rng).unbind(-1)
    body = scene.bodies[frame, row, column]
    at = torch.stack([column, row], dim=-1)
    points = _carried(scene, frame, at, body)
    uv = camera.project(points, scene.K)
    moves = body_moves(scene.T_world_body, rule)
    seen = _is_seen(scene, uv, points[..., 2], body) & framing.contains(uv)
    queries = torch.cat([frame[:, None].double(), framing.uv(at.double())], dim=-1)
    return Clips(
        rgb=framing.image(scene.rgb)[None],
        queries=queries.float()[None],
        tracks=framing.uv(uv).float()[None],
        visibility=seen[None],
        moves_in_clip=moves.any(dim=0)[body][None],
        moves_in_frame=moves[:, body][None],
        is_judged=torch.ones(1, len(body), dtype=torch.bool),
        object_ids=body[None],
        camera_motion=(CameraMotion.UNKNOWN,),
        T_world_cam=scene.T_world_cam[None],
        K=framing.K(scene.K)[None],
        depth=framing.labels(scene.depth)[None],
        dynamic_mask=framing.labels(_moving_pixels(scene.bodies, moves))[None],
    )


def _points(scene: SolidScene, framing: Framing, count: int, rng: np.random.Generator) -> Tensor:
    """(N, 3) frame, row, column of pixels to track, off the outlines of bodies."""
    plane = scene.bodies[:, None].float()
    largest = functional.max_pool2d(plane, 3, stride=1, padding=1)
    smallest = -functional.max_pool2d(-plane, 3, stride=1, padding=1)
    usable = (largest == smallest)[:, 0] & torch.isfinite(scene.depth)
    on_grid = torch.zeros_like(usable)
    row, column = rng.integers(_GRID_PX, size=2)
    on_grid[:, row::_GRID_PX, column::_GRID_PX] = True
    places = (usable & on_grid).nonzero()
    places = places[framing.contains(places[:, [2, 1]].double())]
    frame, row, column = places.unbind(-1)
    return places[evenly(scene.bodies[frame, row, column], count, rng, scene.name)]


def _carried(scene: SolidScene, frame: Tensor, at: Tensor, body: Tensor) -> Tensor:
    """(T, N, 3) in the camera of each frame: the surface points of pixels, with their bodies."""
    depth = scene.depth[frame, at[:, 1], at[:, 0]].double()
    points = camera.unproject(at.double(), depth, scene.K)
    T_body_cam = se3.inverse(scene.T_world_body[frame, body]) @ scene.T_world_cam[frame]
    T_cam_body = se3.inverse(scene.T_world_cam)[:, None] @ scene.T_world_body[:, body]
    return se3.transform(T_cam_body, se3.transform(T_body_cam, points))


def _is_seen(scene: SolidScene, uv: Tensor, z: Tensor, body: Tensor) -> Tensor:
    """(T, N) bool of pixels (T, N, 2), NaN behind the camera, and their depth (T, N)."""
    height, width = scene.bodies.shape[1:]
    low = uv.nan_to_num(nan=-9.0).clamp(-9, 2 * max(height, width)).floor().long()
    frame = torch.arange(len(uv))[:, None].expand(low.shape[:-1])
    seen = torch.zeros(low.shape[:-1], dtype=torch.bool)
    for right, down in _CORNERS:
        column, row = low[..., 0] + right, low[..., 1] + down
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        place = (frame, row.clamp(0, height - 1), column.clamp(0, width - 1))
        shows = (scene.bodies[place] == body) & (scene.depth[place] >= _NEARER * z)
        seen = seen | (inside & shows)
    return seen


def _moving_pixels(bodies: Tensor, moves: Tensor) -> Tensor:
    frame = torch.arange(len(bodies))[:, None, None]
    return moves[frame, bodies]

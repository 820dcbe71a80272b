"""Material points: choose them, follow them through the clip, and say when they are seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic.clips.casting import Hits, cast_rays
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.motion import Views, deform
from recon4d_ros.synthetic.clips.pictures import pictures
from recon4d_ros.synthetic.clips.settings import ClipSettings
from recon4d_ros.synthetic.clips.world import World

# A point is seen if the surface in its direction is as far away as it, within this share.
SAME_DEPTH = 0.01
# Queries keep this far from silhouettes, where no picture tells which surface is meant.
SILHOUETTE_PX = 2
# Of the tracks on what stands, the rest lies on the room.
_ON_STATIC_SOLIDS = 0.7
# Late queries of one clip begin in so many frames.
_LATE_FRAMES = 3


@dataclass(frozen=True, eq=False)
class Material:
    """N points on solids of each clip.

    Attributes:
        solid: (B, N) int64.
        unit: (B, N, 3) float64 in the unit frame; of bent quads x and y count.
    """

    solid: Tensor
    unit: Tensor


@dataclass(frozen=True, eq=False)
class Path:
    """Where N points are in T frames.

    Attributes:
        points_cam: (B, T, N, 3) float64.
        uv: (B, T, N, 2) float64, NaN behind the camera.
        is_seen: (B, T, N) bool.
    """

    points_cam: Tensor
    uv: Tensor
    is_seen: Tensor


@dataclass(frozen=True, eq=False)
class Queries:
    """Where tracks begin: (B, N) int64 frames and (B, N, 2) float64 pixels."""

    frame: Tensor
    uv: Tensor


def draw_queries(settings: ClipSettings, dice: Dice, hits: Hits, moving: Tensor) -> Queries:
    """Pixels to track, not on silhouettes.

    Args:
        settings: of the clips.
        dice: of the clips.
        hits: of the F = B T pictures.
        moving: (B, S) bool, which solids move.
    """
    B, T, N = len(moving), settings.num_frames, settings.num_tracks
    frames = _frames_to_query(settings, dice)
    turn = dice.whole(1, _LATE_FRAMES, N) * dice.chance(settings.late_queries, N)
    on_mover = dice.chance(settings.moving_tracks, N)
    on_solid = dice.chance(_ON_STATIC_SOLIDS, N)
    place = dice.uniform(0.0, 1.0, N)
    picture = (torch.arange(B, device=frames.device)[:, None] * T + frames).flatten()
    seen = hits.solid[picture]
    solid = seen.view(B, len(frames[0]), -1)
    inner = _away_from_silhouettes(seen).view_as(solid)
    moves = moving.gather(1, solid.flatten(1).long()).view_as(solid)
    masks = (inner & moves, inner & ~moves & (solid > 0), inner & (solid == 0))
    tables = [mask.cumsum(dim=2, dtype=torch.int32) for mask in masks]
    counts = torch.stack([table[..., -1].gather(1, turn) for table in tables])
    group = _first_choice(counts, torch.where(on_mover, 0, torch.where(on_solid, 1, 2)))
    pixel = _nth_pixel(tables, counts, group, turn, place)
    width = settings.size[1]
    corner = torch.stack([pixel % width, pixel // width], dim=-1)
    return Queries(frames.gather(1, turn), corner + dice.uniform(-0.5, 0.5, N, 2))


def _frames_to_query(settings: ClipSettings, dice: Dice) -> Tensor:
    """(B, 1 + _LATE_FRAMES) int64: the first frame, and some later ones."""
    late = dice.whole(1, settings.num_frames - 1, _LATE_FRAMES)
    return torch.cat([torch.zeros_like(late[:, :1]), late], dim=1)


def _first_choice(counts: Tensor, wanted: Tensor) -> Tensor:
    """The wanted group (B, N), or where it has no pixel the next one that has any.

    With no pixel in any group the silhouettes leave nothing; then the last group stays.
    """
    group = wanted
    for _ in range(len(counts) - 1):
        empty = counts.gather(0, group[None])[0] == 0
        group = torch.where(empty, (group + 1) % len(counts), group)
    return group


def _nth_pixel(
    tables: list[Tensor], counts: Tensor, group: Tensor, turn: Tensor, place: Tensor
) -> Tensor:
    """(B, N) int64: the pixel at share `place` of those of the group in its frame."""
    B, T, P = tables[0].shape
    pixel = torch.zeros_like(turn)
    row = torch.arange(B, device=turn.device)[:, None] * T + turn
    for number, table in enumerate(tables):
        wanted = (place * counts[number]).int() + 1
        found = _search(table.flatten(0, 1), row, wanted)
        pixel = torch.where(group == number, found, pixel)
    return pixel.clamp(max=P - 1)


def _search(rows: Tensor, row: Tensor, wanted: Tensor) -> Tensor:
    """First column of rows[row] (R, P) that reaches `wanted`, all of `row`'s shape."""
    low = torch.zeros_like(row)
    high = torch.full_like(row, rows.shape[1])
    for _ in range(rows.shape[1].bit_length()):
        middle = (low + high) // 2
        below = rows[row, middle.clamp(max=rows.shape[1] - 1)] < wanted
        low = torch.where(below & (low < high), middle + 1, low)
        high = torch.where(below, high, middle)
    return low


def _away_from_silhouettes(solid: Tensor) -> Tensor:
    """(F, H, W) bool: one solid alone within SILHOUETTE_PX, and as far from the border."""
    edge = 2 * SILHOUETTE_PX + 1
    number = solid.float().unsqueeze(1)
    high = functional.max_pool2d(number, edge, stride=1)
    low = -functional.max_pool2d(-number, edge, stride=1)
    return functional.pad((high == low).squeeze(1), (SILHOUETTE_PX,) * 4)


def material_points(world: World, view: Views, queries: Queries) -> Material:
    """The points that the queries see."""
    B, N = queries.frame.shape
    T = view.T_world_cam.shape[1]
    rays = pictures(world, view, torch.float64)
    # One picture for each query: its frame's.
    picture = (torch.arange(B, device=queries.frame.device)[:, None] * T + queries.frame).flatten()
    directions = camera.directions(queries.uv, world.K[:, None]).view(B * N, 1, 3)
    depth, solid = cast_rays(rays.of(picture), directions)
    solid = solid.squeeze(1)
    matrix, origin = rays.matrix[picture, solid], rays.origin[picture, solid]
    ray = (matrix @ directions.view(-1, 3, 1)).squeeze(-1)
    unit = origin + depth * ray
    return Material(solid.view(B, N), unit.view(B, N, 3))


def follow(world: World, view: Views, material: Material) -> Tensor:
    """Points (B, T, N, 3) float64 in the cameras of all frames."""
    T_cam_solid = _of_solids(view.T_cam_solid, material.solid)
    half = world.solids.half_size.gather(1, material.solid.unsqueeze(-1).expand(-1, -1, 3))
    kind = world.solids.kind.gather(1, material.solid)[:, None]
    wave = world.solids.wave.gather(1, material.solid)[:, None]
    phase = _of_solids(view.phase, material.solid)
    shape = phase.shape
    unit = deform(
        kind.expand(shape), wave.expand(shape), phase, material.unit[:, None].expand(*shape, 3)
    )
    return se3.transform(T_cam_solid, unit * half[:, None])


def track(world: World, view: Views, size: tuple[int, int], material: Material) -> Path:
    """Follow the points, and cast a ray at each to see whether it is covered."""
    points = follow(world, view, material)
    uv = camera.project(points, world.K[:, None, None])
    z = points[..., 2:]
    # Behind the camera any ray does: the point is not seen there.
    safe = torch.where(z > 0, z, torch.ones_like(z))
    directions = torch.where(z > 0, points / safe, torch.zeros_like(points) + _AHEAD.to(points))
    depth, _ = cast_rays(pictures(world, view, torch.float64), directions.flatten(0, 1))
    depth = depth.view(points.shape[:-1])
    same = (depth / safe.squeeze(-1) - 1.0).abs() < SAME_DEPTH
    is_seen = (z.squeeze(-1) > 0) & same & camera.inside(uv, size)
    return Path(points, uv, is_seen)


_AHEAD = torch.tensor([0.0, 0.0, 1.0])


def _of_solids(table: Tensor, solid: Tensor) -> Tensor:
    """(B, T, N, ...) of (B, T, S, ...): that of each point's solid."""
    index = solid[:, None].expand(-1, table.shape[1], -1)
    extra = table.shape[3:]
    index = index.view(*index.shape, *(1,) * len(extra)).expand(-1, -1, -1, *extra)
    return table.gather(2, index)

"""What the pixels of B clips see, and what single rays see.

Pictures are cut into tiles. A tile is tested only against solids whose bounds in the image
overlap it, one candidate of each tile at a time, so that the tests are dense tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera
from recon4d_ros.synthetic.clips import shapes
from recon4d_ros.synthetic.clips.motion import Views
from recon4d_ros.synthetic.clips.shapes import Axes, Wave
from recon4d_ros.synthetic.clips.world import Kind, World

_TILE = 16
_OUTSIDE = 1e9


@dataclass(frozen=True, eq=False)
class Lens:
    """Rays of a picture in the unit frames of all solids.

    Attributes:
        matrix: (F, S, 3, 3) maps viewing directions with z = 1 to the unit frame.
        origin: (F, S, 3) the camera there.
        number, phase: (F, S) of the waves.
    """

    matrix: Tensor
    origin: Tensor
    number: Tensor
    phase: Tensor

    def of(self, picture: Tensor) -> Lens:
        """Those of chosen pictures (n,)."""
        return Lens(
            self.matrix[picture], self.origin[picture], self.number[picture], self.phase[picture]
        )


@dataclass(frozen=True, eq=False)
class Hits:
    """What each pixel of F pictures sees first.

    Attributes:
        depth: (F, H, W) z-depth.
        solid: (F, H, W) int32, place of the solid in its clip.
    """

    depth: Tensor
    solid: Tensor

    def of(self, clips: Tensor, num_frames: int) -> Hits:
        """Those of chosen clips (n,)."""
        frames = torch.arange(num_frames, device=clips.device)
        pictures = (clips[:, None] * num_frames + frames).flatten()
        return Hits(self.depth[pictures], self.solid[pictures])


def lens(world: World, view: Views, dtype: torch.dtype) -> Lens:
    """Rays of the F = B T pictures of the views."""
    T = view.T_solid_cam
    scale = 1.0 / world.solids.half_size[:, None].unsqueeze(-1)
    number = world.solids.wave[:, None].expand_as(view.phase)
    return Lens(
        (T[..., :3, :3] * scale).flatten(0, 1).to(dtype),
        (T[..., :3, 3:] * scale).squeeze(-1).flatten(0, 1).to(dtype),
        number.flatten(0, 1).to(dtype),
        view.phase.flatten(0, 1).to(dtype),
    )


def cast(
    world: World, view: Views, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Hits:
    """First hits of the rays through the centres of all pixels."""
    F = view.T_world_cam[..., 0, 0].numel()
    tiles = _Tiles(lens(world, view, dtype), _per_picture(world.K, F), size)
    overlap = _overlap(world, view, tiles)
    depth = _cast_rooms(tiles)
    solid = torch.zeros(depth.shape, dtype=torch.int32, device=depth.device)
    kind = _per_picture(world.solids.kind, F).repeat_interleave(tiles.rows * tiles.columns, 0)
    for each in (Kind.BOX, Kind.ELLIPSOID, Kind.QUAD, Kind.BENT_QUAD):
        _cast_kind(each, overlap & (kind == each), tiles, depth, solid)
    return Hits(tiles.picture(depth), tiles.picture(solid))


def cast_rays(world: World, rays: Lens, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (F, P) and solids (F, P) int64 that single rays (F, P, 3) with z = 1 meet first."""
    turned = torch.einsum("fsij,fpj->ifps", rays.matrix, directions)
    origin = Axes(*rays.origin[:, None].unbind(-1))
    direction = Axes(*turned.unbind(0))
    wave = Wave(rays.number[:, None], rays.phase[:, None])
    F = len(directions)
    kind = _per_picture(world.solids.kind, F)[:, None]
    present = _per_picture(world.solids.is_present, F)[:, None]
    depth = torch.full_like(direction.x, torch.inf)
    for each in Kind:
        found = _meet(each, origin, direction, wave)
        depth = torch.where((kind == each) & present, found, depth)
    nearest = depth.min(dim=-1)
    return nearest.values, nearest.indices


def _meet(kind: Kind, origin: Axes, direction: Axes, wave: Wave) -> Tensor:
    if kind is Kind.BENT_QUAD:
        return shapes.bent_quad(origin, direction, wave)
    meet = {
        Kind.ROOM: shapes.room,
        Kind.BOX: shapes.box,
        Kind.ELLIPSOID: shapes.ellipsoid,
        Kind.QUAD: shapes.quad,
    }
    return meet[kind](origin, direction)


class _Tiles:
    """F pictures cut into squares, one after the other, rows first."""

    def __init__(self, rays: Lens, K: Tensor, size: tuple[int, int]) -> None:
        self._lens, self._K, self._size = rays, K, size
        self.rows, self.columns = (-(-side // _TILE) for side in size)
        self.step = torch.arange(_TILE**2, device=K.device)

    @property
    def num_tiles(self) -> int:
        return len(self._K) * self.rows * self.columns

    def rays(self, number: Tensor, place: Tensor) -> tuple[Axes, Axes, Wave]:
        """Origins (n, 1), directions (n, _TILE^2) and waves (n, 1) in unit frames.

        Args:
            number: (n,) of the tiles.
            place: (n,) of the solids.
        """
        frame = number // (self.rows * self.columns)
        K, matrix = self._K[frame], self._lens.matrix[frame, place]
        # Slopes are linear in the pixel, so the corner and the two steps of a tile suffice.
        across = matrix[..., 0] / K[:, None, 0, 0].to(matrix)
        along = matrix[..., 1] / K[:, None, 1, 1].to(matrix)
        x, y = self._corner(number)
        u, v = (x - K[:, 0, 2]).to(matrix)[:, None], (y - K[:, 1, 2]).to(matrix)[:, None]
        corner = matrix[..., 2] + u * across + v * along
        column, row = (self.step % _TILE).to(matrix), (self.step // _TILE).to(matrix)
        axes = (
            torch.addcmul(
                torch.addcmul(corner[:, axis, None], along[:, axis, None], row),
                across[:, axis, None],
                column,
            )
            for axis in range(3)
        )
        wave = Wave(self._lens.number[frame, place, None], self._lens.phase[frame, place, None])
        return Axes(*self._lens.origin[frame, place, :, None].unbind(1)), Axes(*axes), wave

    def _corner(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """First pixels x and y (n,) of tiles."""
        row = number // self.columns % self.rows
        return _TILE * (number % self.columns), _TILE * row

    def picture(self, tiled: Tensor) -> Tensor:
        """Pictures (F, H, W) of tiles (F rows columns, _TILE^2)."""
        grid = tiled.view(-1, self.rows, self.columns, _TILE, _TILE).transpose(2, 3)
        whole = grid.reshape(-1, self.rows * _TILE, self.columns * _TILE)
        return whole[:, : self._size[0], : self._size[1]].contiguous()


def _per_picture(of_clips: Tensor, F: int) -> Tensor:
    """(F, ...) of (B, ...): each clip's for all its pictures."""
    return of_clips.repeat_interleave(F // len(of_clips), 0)


def _overlap(world: World, view: Views, tiles: _Tiles) -> Tensor:
    """(F rows columns, S) bool: the solid may be seen in the tile."""
    F = view.T_world_cam[..., 0, 0].numel()
    low, high = _bounds(world, view, _per_picture(world.K, F))
    reach = []
    for axis, count in ((0, tiles.columns), (1, tiles.rows)):
        first = torch.arange(count, device=low.device) * _TILE
        starts = low[..., axis, None] <= first + _TILE
        reach.append(starts & (high[..., axis, None] >= first - 1))
    seen = _per_picture(world.solids.is_present, F)[..., None, None]
    both = reach[1][..., :, None] & reach[0][..., None, :] & seen
    return both.permute(0, 2, 3, 1).flatten(0, 2)


def _bounds(world: World, view: Views, K: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest pixels (F, S, 2) of the solids' boxes; all where one reaches the lens."""
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=K.device)
    corners = torch.cartesian_prod(signs, signs, signs) * world.solids.half_size[:, :, None]
    T = view.T_cam_solid.flatten(0, 1)
    points = _per_picture(corners, len(T)) @ T[..., :3, :3].mT
    points = points + T[..., None, :3, 3]
    z = points[..., 2]
    uv = camera.project(points.nan_to_num(), K[:, None, None]).nan_to_num()
    near, behind = (z < shapes.NEAR_M).any(-1), (z < shapes.NEAR_M).all(-1)
    low = uv.amin(dim=2).masked_fill(near[..., None], -_OUTSIDE)
    high = uv.amax(dim=2).masked_fill(near[..., None], _OUTSIDE)
    return low.masked_fill(behind[..., None], _OUTSIDE), high


def _cast_rooms(tiles: _Tiles) -> Tensor:
    """Depths (F rows columns, _TILE^2) of the rooms, which every ray meets."""
    number = torch.arange(tiles.num_tiles, device=tiles.step.device)
    origin, direction, _ = tiles.rays(number, torch.zeros_like(number))
    return shapes.room(origin, direction)


def _cast_kind(kind: Kind, wanted: Tensor, tiles: _Tiles, depth: Tensor, solid: Tensor) -> None:
    """Write what is nearer than the known depths, in place.

    Args:
        kind: of the solids.
        wanted: (F rows columns, S) bool, which tile to test against which solid.
        tiles: of the pictures.
        depth: (F rows columns, _TILE^2) is updated.
        solid: (F rows columns, _TILE^2) int32 is updated.
    """
    rank = wanted.cumsum(dim=-1) * wanted
    for layer in range(1, int(rank.max()) + 1):
        number, place = (rank == layer).nonzero().unbind(-1)
        found = _meet(kind, *tiles.rays(number, place))
        known = depth[number]
        nearer = found < known
        depth[number] = torch.where(nearer, found, known)
        solid[number] = torch.where(nearer, place.int().unsqueeze(-1), solid[number])

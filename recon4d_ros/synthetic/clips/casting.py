"""What the pixels of B clips see, and what single rays see.

Pictures are cut into tiles. A tile is tested only against solids whose bounds in the image
overlap it, one candidate of each tile at a time, so that the tests are dense tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.synthetic.clips import shapes
from recon4d_ros.synthetic.clips.pictures import Pictures
from recon4d_ros.synthetic.clips.shapes import Axes, Wave
from recon4d_ros.synthetic.clips.world import Kind

_TILE = 16


@dataclass(frozen=True, eq=False)
class Hits:
    """What each pixel of F pictures sees first.

    Attributes:
        depth: (F, H, W) z-depth.
        solid: (F, H, W) int32, place of the solid in its clip.
    """

    depth: Tensor
    solid: Tensor

    def of(self, rows: Tensor | slice) -> Hits:
        """Those of chosen pictures."""
        return Hits(self.depth[rows], self.solid[rows])


def cast(pictures: Pictures, size: tuple[int, int]) -> Hits:
    """First hits of the rays through the centres of all pixels."""
    tiles = _Tiles(pictures, size)
    overlap = _overlap(pictures, tiles)
    depth = _cast_rooms(tiles)
    solid = torch.zeros(depth.shape, dtype=torch.int32, device=depth.device)
    kind = pictures.kind.repeat_interleave(tiles.rows * tiles.columns, 0)
    for each in (Kind.BOX, Kind.ELLIPSOID, Kind.QUAD, Kind.BENT_QUAD):
        _cast_kind(each, overlap & (kind == each), tiles, depth, solid)
    return Hits(tiles.picture(depth), tiles.picture(solid))


def cast_rays(pictures: Pictures, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (F, P) and solids (F, P) int64 that single rays (F, P, 3) with z = 1 meet first."""
    turned = torch.einsum("fsij,fpj->ifps", pictures.matrix, directions)
    origin = Axes(*pictures.origin[:, None].unbind(-1))
    direction = Axes(*turned.unbind(0))
    wave = Wave(pictures.number[:, None], pictures.phase[:, None])
    depth = torch.full_like(direction.x, torch.inf)
    for each in Kind:
        wanted = (pictures.kind == each) & pictures.is_present
        found = _meet(each, origin, direction, wave)
        depth = torch.where(wanted[:, None], found, depth)
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

    def __init__(self, pictures: Pictures, size: tuple[int, int]) -> None:
        self._pictures, self._size = pictures, size
        self.rows, self.columns = (-(-side // _TILE) for side in size)
        self.step = torch.arange(_TILE**2, device=pictures.K.device)

    @property
    def num_tiles(self) -> int:
        return len(self._pictures.K) * self.rows * self.columns

    def rays(self, number: Tensor, place: Tensor) -> tuple[Axes, Axes, Wave]:
        """Origins (n, 1), directions (n, _TILE^2) and waves (n, 1) in unit frames.

        Args:
            number: (n,) of the tiles.
            place: (n,) of the solids.
        """
        frame = number // (self.rows * self.columns)
        of = self._pictures
        K, matrix = of.K[frame], of.matrix[frame, place]
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
        wave = Wave(of.number[frame, place, None], of.phase[frame, place, None])
        return Axes(*of.origin[frame, place, :, None].unbind(1)), Axes(*axes), wave

    def _corner(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """First pixels x and y (n,) of tiles."""
        row = number // self.columns % self.rows
        return _TILE * (number % self.columns), _TILE * row

    def picture(self, tiled: Tensor) -> Tensor:
        """Pictures (F, H, W) of tiles (F rows columns, _TILE^2)."""
        grid = tiled.view(-1, self.rows, self.columns, _TILE, _TILE).transpose(2, 3)
        whole = grid.reshape(-1, self.rows * _TILE, self.columns * _TILE)
        return whole[:, : self._size[0], : self._size[1]].contiguous()


def _overlap(pictures: Pictures, tiles: _Tiles) -> Tensor:
    """(F rows columns, S) bool: the solid may be seen in the tile."""
    reach = []
    for axis, count in ((0, tiles.columns), (1, tiles.rows)):
        first = torch.arange(count, device=tiles.step.device) * _TILE
        starts = pictures.low[..., axis, None] <= first + _TILE
        reach.append(starts & (pictures.high[..., axis, None] >= first - 1))
    seen = pictures.is_present[..., None, None]
    both = reach[1][..., :, None] & reach[0][..., None, :] & seen
    return both.permute(0, 2, 3, 1).flatten(0, 2)


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

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

    def of(self, rows: slice) -> Hits:
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
    depth = directions.new_full((*directions.shape[:2], pictures.kind.shape[1]), torch.inf)
    for each in Kind:
        wanted = (pictures.kind == each) & pictures.is_present
        places = wanted.any(dim=0).nonzero().squeeze(-1)
        origin = Axes(*pictures.origin[:, None, places].unbind(-1))
        wave = Wave(pictures.number[:, None, places], pictures.phase[:, None, places])
        found = _meet(each, origin, Axes(*turned[..., places]), wave)
        depth[..., places] = torch.where(wanted[:, None, places], found, depth[..., places])
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
        self._size = size
        self.rows, self.columns = (-(-side // _TILE) for side in size)
        self.num_tiles = len(pictures.K) * self.rows * self.columns
        self.step = torch.arange(_TILE).to(pictures.matrix)
        tile = torch.arange(self.rows * self.columns, device=self.step.device)
        self._corner = _TILE * torch.stack([tile % self.columns, tile // self.columns])
        self._centre = pictures.K[:, :2, 2].T
        self._num_solids = pictures.kind.shape[1]
        # Slopes are linear in the pixel: those on the axis and of a step each way suffice.
        matrix, focal = pictures.matrix, pictures.K[:, None, None].to(pictures.matrix)
        across, along = matrix[..., 0] / focal[..., 0, 0], matrix[..., 1] / focal[..., 1, 1]
        wave = torch.stack([pictures.number, pictures.phase], dim=-1)
        columns = torch.cat([matrix[..., 2], across, along, pictures.origin, wave], dim=-1)
        self._columns = columns.flatten(0, 1).T.contiguous()

    def rays(self, number: Tensor, place: Tensor) -> tuple[Axes, Axes, Wave]:
        """Origins (n, 1), directions (n, _TILE^2) and waves (n, 1) in unit frames.

        Args:
            number: (n,) of the tiles.
            place: (n,) of the solids.
        """
        frame, tile = number // (self.rows * self.columns), number % (self.rows * self.columns)
        columns = self._columns.index_select(1, frame * self._num_solids + place)[..., None]
        axis, across, along, origin, wave = torch.split(columns, [3, 3, 3, 3, 2])
        corner = self._corner.index_select(1, tile) - self._centre.index_select(1, frame)
        u, v = corner.to(columns)[..., None]
        first = axis + u * across + v * along
        lines = torch.addcmul(first, along, self.step)[..., None]
        slopes = torch.addcmul(lines, across[..., None], self.step).flatten(2)
        return Axes(*origin), Axes(*slopes), Wave(*wave)

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
        known, owner = depth.index_select(0, number), solid.index_select(0, number)
        nearer = found < known
        depth.index_copy_(0, number, torch.where(nearer, found, known))
        solid.index_copy_(0, number, torch.where(nearer, place.int().unsqueeze(-1), owner))

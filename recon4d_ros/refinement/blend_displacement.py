"""Linear Blend Displacement (LBD): what smoothing did to sparse tracks, done to every pixel.

A pixel takes the mean displacement of its nearest controls in space, weighted by the inverse of
their squared distance. Two additions to the published equations: a surface that moves listens only
to moving controls and a static one only to static ones, so that nothing bleeds across objects; and
influence fades far from every control, where the normalised weights alone would not.

Source: C4D, supplementary section 3.2.2, equations 6 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry.checks import check_finite, check_shape

Array = NDArray[Any]

# Distances are softened by this share of the controls' usual distance from the camera, so that a
# control's own noise makes no spike around it.
_SOFTENING = 1e-3
# A pixel between grid points is interpolated if its depth differs by at most this share from what
# they put there; beyond, an outline passes between them.
_SMOOTH_RATIO = 0.05
_WORKERS = 2


@dataclass(frozen=True, eq=False)
class Controls:
    """Points whose displacement is known, in the camera's frame.

    Attributes:
        points: (C, 3) floats.
        displacements: (C, 3).
        moving: (C,) bool, which surfaces listen to it.
    """

    points: Tensor
    displacements: Tensor
    moving: Tensor

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            GeometryError: shapes do not fit together or a value is not finite.
        """
        for name in ("points", "displacements"):
            check_shape(getattr(self, name), f"controls.{name}", len(self.moving), 3)
            check_finite(getattr(self, name), f"controls.{name}")
        if self.moving.dtype != torch.bool or self.moving.ndim != 1:
            raise GeometryError(
                f"controls.moving is {self.moving.dtype} of shape {tuple(self.moving.shape)}; "
                "expected bool (C,)"
            )


class BlendedDisplacement:
    """The displacement field around controls."""

    def __init__(self, controls: Controls, neighbours: int = 4, reach: float = np.inf) -> None:
        """Index the controls.

        Args:
            controls: any number of them; without any the field is zero.
            neighbours: nearest controls that are blended.
            reach: distance from the nearest control at which influence fades to 1/e, over the
                usual distance between controls; both over the distance from the camera, since
                tracks lie on a grid of the image. Infinite as published: it never fades.
        """
        points = controls.points.double().numpy()
        self._neighbours = neighbours
        self._fade_at = reach * _spacing(points)
        usual = float(np.median(np.linalg.norm(points, axis=1))) if len(points) else 1.0
        self._softening = (_SOFTENING * usual) ** 2
        self._parts = {
            moving: (cKDTree(points[rows]), controls.displacements.double().numpy()[rows])
            for moving in (False, True)
            for rows in [(controls.moving == moving).numpy()]
            if rows.any()
        }

    def at(self, points: Tensor, moving: Tensor) -> Tensor:
        """Displacements (P, 3) of points (P, 3) on surfaces that move (P,) bool, or do not.

        Zero where no control of that kind exists.

        Raises:
            GeometryError: wrong shapes or points that are not finite.
        """
        check_shape(points, "points", len(moving), 3)
        check_finite(points, "points")
        result = torch.zeros_like(points)
        for kind, (tree, displacements) in self._parts.items():
            rows = moving == kind
            found = self._blend(tree, displacements, points[rows].double().numpy())
            result[rows] = torch.from_numpy(found).to(points)
        return result

    def over(self, points: Tensor, moving: Tensor, grid_step: int = 4) -> Tensor:
        """Displacements (H, W, 3) of a pointmap (H, W, 3) in the camera's frame.

        Every `grid_step`-th pixel of a row and column is blended, and those at outlines; the
        others are interpolated.

        Args:
            points: NaN where unknown; so is the displacement there.
            moving: (H, W) bool.
            grid_step: px.

        Raises:
            GeometryError: wrong shapes.
        """
        check_shape(points, "points", *moving.shape, 3)
        known = points.isfinite().all(dim=-1)
        result = torch.full_like(points, torch.nan)
        alone = known
        if grid_step > 1:
            result, smooth = self._interpolated(points, moving, known, grid_step)
            alone = known & ~smooth
        result[alone] = self.at(points[alone], moving[alone])
        return torch.where(known.unsqueeze(-1), result, torch.nan)

    def _blend(self, tree: cKDTree, displacements: Array, points: Array) -> Array:
        """Equations 6 to 11 for points (P, 3) and one kind of controls."""
        ranks = range(1, min(self._neighbours, tree.n) + 1)
        distance, nearest = tree.query(points, k=list(ranks), workers=_WORKERS)
        weight = 1.0 / (distance**2 + self._softening)
        weight /= weight.sum(axis=1, keepdims=True)
        fade_at = self._fade_at * np.linalg.norm(points, axis=1)
        weight *= np.exp(-((distance[:, 0] / fade_at) ** 2))[:, None]
        return np.asarray(np.einsum("pk,pkc->pc", weight, displacements[nearest]))

    def _interpolated(
        self, points: Tensor, moving: Tensor, known: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Displacements (H, W, 3) between grid points, and where (H, W) they can be trusted."""
        grid = slice(step // 2, None, step)
        nodes, kinds, seen = points[grid, grid], moving[grid, grid], known[grid, grid]
        if nodes.numel() == 0 or not bool(seen.any()):
            return torch.full_like(points, torch.nan), torch.zeros_like(known)
        field = torch.full_like(nodes, torch.nan)
        field[seen] = self.at(nodes[seen], kinds[seen])
        # Depth signed by kind: between nodes of both kinds it fits to neither.
        signed = torch.where(moving, -points[..., 2], points[..., 2])
        dense = enlarge(torch.cat([field, signed[grid, grid, None]], -1), known.shape, step)
        smooth = (dense[..., 3] - signed).abs() <= _SMOOTH_RATIO * points[..., 2]
        return dense[..., :3].contiguous(), smooth


def enlarge(nodes: Tensor, size: tuple[int, ...], step: int) -> Tensor:
    """Bilinear interpolation (H, W, C) of nodes (h, w, C) at every `step`-th pixel.

    The first node lies at pixel step // 2; beyond the outer ones their values go on.
    """
    for axis in (1, 0):  # the long rows last: they are copied whole
        place = (torch.arange(size[axis]).to(nodes) - step // 2) / step
        place = place.clamp(0, nodes.shape[axis] - 1)
        below = place.floor().long()
        above = (below + 1).clamp(max=nodes.shape[axis] - 1)
        share = (place - below).reshape([-1 if each == axis else 1 for each in range(3)])
        nodes = torch.lerp(nodes.index_select(axis, below), nodes.index_select(axis, above), share)
    return nodes


def _spacing(points: Array) -> float:
    """Usual distance from a control (C, 3) to the next one, over that from the camera.

    Infinite for a single one: nothing tells how far it speaks.
    """
    if len(points) < 2:
        return np.inf
    distance = cKDTree(points).query(points, k=[2])[0][:, 0] / np.linalg.norm(points, axis=1)
    return max(float(np.median(distance)), _SOFTENING)

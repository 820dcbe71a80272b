"""Normal equations of many pairs, with the depth of every pixel eliminated in closed form.

Each pixel's depth touches its own residuals only, so its block is one number and the Schur
complement costs a division; what is left are poses, scales and the focal length.
Source: Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.edge_rows import Rows
from recon4d_ros.errors import GeometryError

# Column of an unknown that is held fixed.
FIXED = -1


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of E pairs, and which unknowns they speak of.

    Attributes:
        rows: of the pairs: residual (E, R, P).
        weight: (E, P) >= 0; rows of weight zero may hold any value, also NaN.
        columns: (E, L) int64, place of every shared unknown, or `FIXED`.
        frame: (E,) int64, frame whose pixels these are.
        lift: (E, K, L) linear map from those unknowns to the ones of the rows, see
            `edge_rows.lift`; None when they are the same.
    """

    rows: Rows
    weight: Tensor
    columns: Tensor
    frame: Tensor
    lift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Equations:
    """H dx = -g of the shared unknowns, and how each depth follows.

    Attributes:
        H: (D, D) float64.
        g: (D,) float64, gradient of half the weighted sum of squares.
        depth_curvature: (N, P) float64, zero where no row speaks of the pixel.
        depth_gradient: (N, P) float64.
        coupling: per frame, columns (C,) and derivatives (C, P) float64 of the depth's gradient.
    """

    H: Tensor
    g: Tensor
    depth_curvature: Tensor
    depth_gradient: Tensor
    coupling: tuple[tuple[Tensor, Tensor], ...]


def assemble(blocks: Sequence[Block], num_unknowns: int) -> tuple[Tensor, Tensor]:
    """H (D, D) and g (D,) float64 of the shared unknowns with all depths held fixed.

    Raises:
        GeometryError: a column is out of range.
    """
    return _assembled(blocks, [_weighted(block) for block in blocks], num_unknowns)


def eliminate_depth(
    blocks: Sequence[Block], num_unknowns: int, num_frames: int, damping: float = 0.0
) -> Equations:
    """Normal equations with the depth of every pixel eliminated.

    Args:
        blocks: with the same number P of pixels each.
        num_unknowns: D shared ones.
        num_frames: N frames, each with P pixels of its own.
        damping: share added to the diagonal, also of the depths (Levenberg and Marquardt).

    Raises:
        GeometryError: a column is out of range.
    """
    weighted = [_weighted(block) for block in blocks]
    H, g = _assembled(blocks, weighted, num_unknowns)
    H = H + damping * torch.diag(H.diagonal())
    curvature, gradient = _depth_parts(blocks, weighted, num_frames)
    mixed = [_mixed(block, rows) for block, rows in zip(blocks, weighted, strict=True)]
    curvature = curvature * (1.0 + damping)
    inverse = _inverse(curvature)
    coupling = []
    for frame in range(num_frames):
        columns, derivative = _coupling(blocks, mixed, frame)
        scaled = derivative * inverse[frame]
        H[columns.unsqueeze(-1), columns] -= scaled @ derivative.mT
        g[columns] -= scaled @ gradient[frame]
        coupling.append((columns, derivative))
    return Equations(H, g, curvature, gradient, tuple(coupling))


def depth_steps(equations: Equations, step: Tensor) -> Tensor:
    """Steps (N, P) float64 of the log-depths that follow from a step (D,) of the others."""
    rest = [
        gradient + step[columns] @ derivative
        for gradient, (columns, derivative) in zip(
            equations.depth_gradient, equations.coupling, strict=True
        )
    ]
    return -torch.stack(rest) * _inverse(equations.depth_curvature)


def _assembled(
    blocks: Sequence[Block], weighted: Sequence[Rows], num_unknowns: int
) -> tuple[Tensor, Tensor]:
    # One column more takes what is held fixed.
    H = torch.zeros((num_unknowns + 1) ** 2, dtype=torch.float64)
    g = torch.zeros(num_unknowns + 1, dtype=torch.float64)
    for block, rows in zip(blocks, weighted, strict=True):
        columns = _columns(block, num_unknowns)
        J = rows.jacobian.flatten(-2)
        square, slope = J @ J.mT, J @ rows.residual.flatten(-2).unsqueeze(-1)
        if block.lift is not None:
            square, slope = block.lift.mT @ square @ block.lift, block.lift.mT @ slope
        place = columns.unsqueeze(-1) * (num_unknowns + 1) + columns.unsqueeze(-2)
        H.index_add_(0, place.flatten(), square.double().flatten())
        g.index_add_(0, columns.flatten(), slope.double().flatten())
    return H.reshape(num_unknowns + 1, -1)[:-1, :-1], g[:-1]


def _columns(block: Block, num_unknowns: int) -> Tensor:
    columns = block.columns
    if bool(((columns < FIXED) | (columns >= num_unknowns)).any()):
        raise GeometryError(
            f"columns reach from {int(columns.min())} to {int(columns.max())}; expected below "
            f"{num_unknowns}, or {FIXED} for what is held fixed"
        )
    return torch.where(columns == FIXED, num_unknowns, columns)


def _weighted(block: Block) -> Rows:
    """Rows by the root of their weight; rows without weight become zero."""
    root, rows = block.weight.sqrt().unsqueeze(-2), block.rows
    used = root > 0
    if bool(used.all()):
        return Rows(
            rows.residual * root, rows.jacobian * root.unsqueeze(-3), rows.log_depth * root
        )
    return Rows(
        torch.where(used, rows.residual * root, 0.0),
        torch.where(used.unsqueeze(-3), rows.jacobian * root.unsqueeze(-3), 0.0),
        torch.where(used, rows.log_depth * root, 0.0),
    )


def _depth_parts(
    blocks: Sequence[Block], weighted: Sequence[Rows], num_frames: int
) -> tuple[Tensor, Tensor]:
    """Curvature and gradient (N, P) of the depths."""
    num_pixels = blocks[0].weight.shape[1]
    curvature = torch.zeros(num_frames, num_pixels, dtype=torch.float64)
    gradient = torch.zeros_like(curvature)
    for block, rows in zip(blocks, weighted, strict=True):
        d = rows.log_depth
        curvature.index_add_(0, block.frame, d.square().sum(dim=-2).double())
        gradient.index_add_(0, block.frame, (d * rows.residual).sum(dim=-2).double())
    return curvature, gradient


def _mixed(block: Block, rows: Rows) -> Tensor:
    """Derivative (E, L, P) of the gradient of each depth by the shared unknowns."""
    J, d = rows.jacobian, rows.log_depth
    mixed = J[..., 0, :] * d[..., None, 0, :]
    for row in range(1, d.shape[-2]):
        mixed.addcmul_(J[..., row, :], d[..., None, row, :])
    return (mixed if block.lift is None else block.lift.mT @ mixed).double()


def _coupling(
    blocks: Sequence[Block], mixed: Sequence[Tensor], frame: int
) -> tuple[Tensor, Tensor]:
    """Unknowns (C,) that the depths of a frame depend on, and the mixed derivatives (C, P)."""
    of_frame = [block.frame == frame for block in blocks]
    columns = torch.cat(
        [block.columns[rows].flatten() for block, rows in zip(blocks, of_frame, strict=True)]
    )
    parts = torch.cat(
        [part[rows].flatten(0, 1) for part, rows in zip(mixed, of_frame, strict=True)]
    )
    parts, columns = parts[columns != FIXED], columns[columns != FIXED]
    unique, place = torch.unique(columns, return_inverse=True)
    derivative = torch.zeros(len(unique), parts.shape[-1], dtype=torch.float64)
    return unique, derivative.index_add_(0, place, parts)


def _inverse(curvature: Tensor) -> Tensor:
    """1 / curvature, and 0 where nothing speaks of the depth, so that it stays."""
    return torch.where(curvature > 0, 1.0 / curvature.clamp(min=1e-300), 0.0)

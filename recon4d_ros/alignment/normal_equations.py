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
        rows: of the pairs: residual (E, P, R).
        weight: (E, P) >= 0; rows of weight zero may hold any value, also NaN.
        columns: (E, K) int64, place of every shared unknown, or `FIXED`.
        frame: (E,) int64, frame whose pixels these are.
    """

    rows: Rows
    weight: Tensor
    columns: Tensor
    frame: Tensor


@dataclass(frozen=True, eq=False)
class Equations:
    """H dx = -g of the shared unknowns, and how each depth follows.

    Attributes:
        H: (D, D) float64.
        g: (D,) float64, gradient of half the weighted sum of squares.
        depth_curvature: (N, P) float64, zero where no row speaks of the pixel.
        depth_gradient: (N, P) float64.
        coupling: per frame, columns (L,) and derivatives (P, L) float64 of the depth's gradient.
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
    # One column more takes what is held fixed.
    H = torch.zeros((num_unknowns + 1) ** 2, dtype=torch.float64)
    g = torch.zeros(num_unknowns + 1, dtype=torch.float64)
    for block in blocks:
        columns = _columns(block, num_unknowns)
        J, r, _ = _weighted(block)
        place = columns.unsqueeze(-1) * (num_unknowns + 1) + columns.unsqueeze(-2)
        H.index_add_(0, place.flatten(), (J.mT @ J).double().flatten())
        g.index_add_(0, columns.flatten(), (J.mT @ r.unsqueeze(-1)).double().flatten())
    return H.reshape(num_unknowns + 1, -1)[:-1, :-1], g[:-1]


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
    H, g = assemble(blocks, num_unknowns)
    H = H + damping * torch.diag(H.diagonal())
    curvature, gradient, mixed = _depth_parts(blocks, num_frames)
    inverse = _inverse(curvature * (1.0 + damping))
    coupling = []
    for frame in range(num_frames):
        columns, derivative = _coupling(blocks, mixed, frame, num_unknowns)
        scaled = derivative * inverse[frame].unsqueeze(-1)
        H[columns.unsqueeze(-1), columns] -= derivative.mT @ scaled
        g[columns] -= scaled.mT @ gradient[frame]
        coupling.append((columns, derivative))
    return Equations(H, g, curvature * (1.0 + damping), gradient, tuple(coupling))


def depth_steps(equations: Equations, step: Tensor) -> Tensor:
    """Steps (N, P) float64 of the log-depths that follow from a step (D,) of the others."""
    rest = [
        gradient + derivative @ step[columns]
        for gradient, (columns, derivative) in zip(
            equations.depth_gradient, equations.coupling, strict=True
        )
    ]
    return -torch.stack(rest) * _inverse(equations.depth_curvature)


def _columns(block: Block, num_unknowns: int) -> Tensor:
    columns = block.columns
    if bool(((columns < FIXED) | (columns >= num_unknowns)).any()):
        raise GeometryError(
            f"columns reach from {int(columns.min())} to {int(columns.max())}; expected below "
            f"{num_unknowns}, or {FIXED} for what is held fixed"
        )
    return torch.where(columns == FIXED, num_unknowns, columns)


def _weighted(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives (E, PR, K), residuals (E, PR) and depth derivatives (E, P, R) by sqrt(weight).

    Rows without weight become zero.
    """
    root = block.weight.sqrt()
    rows, used = block.rows, (block.weight > 0).unsqueeze(-1)
    r = torch.where(used, rows.residual * root.unsqueeze(-1), 0.0)
    d = torch.where(used, rows.log_depth * root.unsqueeze(-1), 0.0)
    J = torch.where(used.unsqueeze(-1), rows.jacobian * root[..., None, None], 0.0)
    return J.flatten(1, 2), r.flatten(1, 2), d


def _depth_parts(blocks: Sequence[Block], num_frames: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Curvature and gradient (N, P) of the depths, and each block's mixed part (E, P, K)."""
    num_pixels = blocks[0].weight.shape[1]
    curvature = torch.zeros(num_frames, num_pixels, dtype=torch.float64)
    gradient = torch.zeros_like(curvature)
    mixed = []
    for block in blocks:
        J, r, d = _weighted(block)
        curvature.index_add_(0, block.frame, d.square().sum(dim=-1).double())
        gradient.index_add_(0, block.frame, (d * r.reshape(d.shape)).sum(dim=-1).double())
        J = J.reshape(*d.shape, -1)
        mixed.append((d.unsqueeze(-2) @ J).squeeze(-2).double())
    return curvature, gradient, mixed


def _coupling(
    blocks: Sequence[Block], mixed: Sequence[Tensor], frame: int, num_unknowns: int
) -> tuple[Tensor, Tensor]:
    """Unknowns (L,) that the depths of a frame depend on, and the mixed derivatives (P, L)."""
    of_frame = [block.frame == frame for block in blocks]
    columns = torch.cat(
        [block.columns[rows].flatten() for block, rows in zip(blocks, of_frame, strict=True)]
    )
    parts = torch.cat(
        [part[rows].movedim(1, 0).flatten(1) for part, rows in zip(mixed, of_frame, strict=True)],
        dim=1,
    )
    parts, columns = parts[:, columns != FIXED], columns[columns != FIXED]
    unique, place = torch.unique(columns, return_inverse=True)
    derivative = torch.zeros(len(parts), len(unique), dtype=torch.float64)
    return unique, derivative.index_add_(1, place, parts)


def _inverse(curvature: Tensor) -> Tensor:
    """1 / curvature, and 0 where nothing speaks of the depth, so that it stays."""
    return torch.where(curvature > 0, 1.0 / curvature.clamp(min=1e-300), 0.0)

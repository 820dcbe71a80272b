"""Similarities between keyframes, and the places that fit them best.

Source: Strasdat, Montiel and Davison, Scale drift-aware large scale monocular SLAM, RSS 2010,
section III.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from recon4d_ros.alignment.pairs import components
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3, sim3

_MAX_STEPS = 20
_FIRST_DAMPING = 1e-6
_MAX_DAMPING = 1e6
# The last step lowered the cost by less than this share.
_CONVERGED = 1e-6
# Below this a cost is rounding.
_NOTHING = 1e-18


@dataclass(frozen=True, eq=False)
class PoseGraph:
    """Relative similarities between M nodes.

    Attributes:
        first, second: (E,) int64 nodes of each edge.
        S_first_second: (E, 4, 4) float64, how `second` lies in `first`.
        information: (E, 7, 7) float64, inverse covariance of the residual: translation in the
            unit of `second`, rotation vector, logarithm of the scale.
        is_loop: (E,) bool; only these edges may be wrong and have a robust kernel.
        width: of the Huber kernel, standard deviations.
    """

    first: Tensor
    second: Tensor
    S_first_second: Tensor
    information: Tensor
    is_loop: Tensor
    width: float = 3.0


@dataclass(frozen=True, eq=False)
class Solution:
    """What the graph says.

    Attributes:
        S_map_node: (M, 4, 4) float64; the first node stays where it was.
        cost: half the sum of the robust squared residuals.
        num_steps: accepted steps.
        weight: (E,) float64 in (0, 1], 1 unless an edge contradicts the others.
    """

    S_map_node: Tensor
    cost: float
    num_steps: int
    weight: Tensor


def residuals(graph: PoseGraph, S_map_node: Tensor) -> Tensor:
    """(E, 7) coordinates of what is left of each edge; zero where it is satisfied."""
    found = sim3.inverse(S_map_node[graph.first]) @ S_map_node[graph.second]
    return sim3.coordinates(sim3.inverse(graph.S_first_second) @ found)


def jacobians(graph: PoseGraph, S_map_node: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (E, 7, 7) of the residuals by the first and by the second node.

    A node S moves to S D(d), D of `sim3.from_coordinates`. With A = S_first^-1 S_second, measured
    as Z, the residual is that of E = Z^-1 A; the second node makes it E D(d), the first one
    Z^-1 D(d)^-1 A.
    """
    found = sim3.inverse(S_map_node[graph.first]) @ S_map_node[graph.second]
    back = sim3.inverse(graph.S_first_second)
    left = back @ found
    _, T_found = sim3.split(found)
    turn = se3.right_jacobian(sim3.coordinates(left)[:, 3:6])
    turn = torch.linalg.inv(turn)
    by_first, by_second = torch.zeros(2, len(found), 7, 7, dtype=found.dtype)
    by_second[:, :3, :3] = left[:, :3, :3]
    by_second[:, 3:6, 3:6] = turn
    by_second[:, 6, 6] = 1.0
    linear, shift = back[:, :3, :3], found[:, :3, 3]
    by_first[:, :3, :3] = -linear
    by_first[:, :3, 3:6] = linear @ se3.skew(shift)
    by_first[:, :3, 6] = -(linear @ shift.unsqueeze(-1)).squeeze(-1)
    by_first[:, 3:6, 3:6] = -turn @ T_found[:, :3, :3].mT
    by_first[:, 6, 6] = -1.0
    return by_first, by_second


def solve(graph: PoseGraph, S_map_node: Tensor) -> Solution:
    """The nodes (M, 4, 4) that fit the edges best, from a first guess, by damped Newton steps.

    Raises:
        AlignmentError: a node is not connected to the first one.
    """
    _check_connected(graph, len(S_map_node))
    residual = residuals(graph, S_map_node)
    cost, weight = _robust(graph, residual)
    damping, num_steps = _FIRST_DAMPING, 0
    while num_steps < _MAX_STEPS and cost > _NOTHING and damping < _MAX_DAMPING:
        step = _newton_step(graph, S_map_node, residual, weight, damping)
        moved = _normalised(S_map_node @ sim3.from_coordinates(step))
        left = residuals(graph, moved)
        lower, new_weight = _robust(graph, left)
        if not lower < cost:
            damping *= 10.0
            continue
        gain = (cost - lower) / cost
        S_map_node, residual, cost, weight = moved, left, lower, new_weight
        damping, num_steps = max(0.1 * damping, 1e-12), num_steps + 1
        if gain < _CONVERGED:
            break
    return Solution(S_map_node, cost, num_steps, weight)


def _robust(graph: PoseGraph, residual: Tensor) -> tuple[float, Tensor]:
    """Cost and Huber weights (E,)."""
    squared = torch.einsum("ei,eij,ej->e", residual, graph.information, residual)
    length = squared.clamp(min=0.0).sqrt()
    far = graph.is_loop & (length > graph.width)
    weight = torch.where(far, graph.width / length.clamp(min=graph.width), 1.0)
    cost = torch.where(far, graph.width * (length - 0.5 * graph.width), 0.5 * squared)
    return float(cost.sum()), weight


def _newton_step(
    graph: PoseGraph, S_map_node: Tensor, residual: Tensor, weight: Tensor, damping: float
) -> Tensor:
    """(M, 7) step of all nodes, zero for the first."""
    count = len(S_map_node)
    information = graph.information * weight[:, None, None]
    ends = tuple(zip((graph.first, graph.second), jacobians(graph, S_map_node), strict=True))
    gradient = torch.zeros(count, 7, dtype=residual.dtype)
    rows, columns, blocks = [], [], []
    for node, J in ends:
        weighted = J.mT @ information
        gradient.index_add_(0, node, (weighted @ residual.unsqueeze(-1)).squeeze(-1))
        for other, K in ends:
            rows.append(node)
            columns.append(other)
            blocks.append(weighted @ K)
    H = _assembled(torch.cat(rows), torch.cat(columns), torch.cat(blocks), count)
    H = H[7:, 7:] + sparse.diags(damping * H.diagonal()[7:])
    step = splu(sparse.csc_matrix(H)).solve(-gradient.numpy().ravel()[7:])
    return torch.from_numpy(np.concatenate([np.zeros(7), step]).reshape(count, 7))


def _assembled(rows: Tensor, columns: Tensor, blocks: Tensor, count: int) -> sparse.csc_matrix:
    """Sparse (7 M, 7 M) sum of blocks (B, 7, 7)."""
    inside = torch.arange(7)
    row = (7 * rows[:, None, None] + inside[:, None]).expand_as(blocks)
    column = (7 * columns[:, None, None] + inside).expand_as(blocks)
    where = (row.reshape(-1).numpy(), column.reshape(-1).numpy())
    return sparse.csc_matrix((blocks.reshape(-1).numpy(), where), shape=(7 * count, 7 * count))


def _normalised(S: Tensor) -> Tensor:
    """Without the rounding that many products leave in the rotations."""
    scale, _ = sim3.split(S)
    R = se3.orthonormalise(S[:, :3, :3])
    return se3.assemble(R * scale[:, None, None], S[:, :3, 3])


def _check_connected(graph: PoseGraph, count: int) -> None:
    parts = components(torch.stack([graph.first, graph.second], dim=1), count)
    apart = sorted(node for part in parts[1:] for node in part)
    if apart:
        raise AlignmentError(
            f"no edge joins the nodes {apart} to node 0; expected one connected graph; give every "
            "node an edge to its neighbour"
        )

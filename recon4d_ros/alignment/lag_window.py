"""Where the frames of a window lie, by the links between them and a steady course."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.alignment import similarity
from recon4d_ros.config import FixedLagConfig

Array = NDArray[np.float64]

# Neighbouring pixels err together: so many of them say no more than one.
_ALIKE = 10.0
_DAMPING = 1e-6


@dataclass(frozen=True, eq=False)
class Link:
    """How frame `second` lies in frame `first`, each in a unit of its own.

    Attributes:
        first, second: frame numbers.
        S_first_second: (4, 4) float64.
        information: (7, 7) float64, see `pose_graph.PoseGraph`.
        agreement: share of the pixels that agree.
    """

    first: int
    second: int
    S_first_second: Tensor
    information: Tensor
    agreement: Tensor


def solve(
    frames: Sequence[int],
    S: Tensor,
    free: Sequence[bool],
    links: Sequence[Link],
    config: FixedLagConfig,
) -> Tensor:
    """Similarities (N, 4, 4) after some damped Gauss-Newton steps.

    Args:
        frames: N ascending frame numbers.
        S: (N, 4, 4) float64 camera and unit of each frame to the map, a first guess.
        free: N, frames that may move.
        links: between those frames.
        config: number of steps and how steady the course is.
    """
    row = {frame: number for number, frame in enumerate(frames)}
    course = _course(frames, free)
    first = np.array([row[link.first] for link in links] + [k - 1 for k in course])
    second = np.array([row[link.second] for link in links] + course)
    measured = torch.stack([link.S_first_second for link in links]).numpy()
    information = np.concatenate(
        [
            np.stack([_information(link) for link in links]),
            np.broadcast_to(_steadiness(config), (len(course), 7, 7)),
        ]
    )
    moved, moving = S.numpy().copy(), np.flatnonzero(free)
    for _ in range(config.steps):
        expected = np.concatenate([measured, _predicted(moved, np.array(course, dtype=int))])
        moved = moved @ similarity.exp(
            _step(moved, (first, second), expected, information, moving)
        )
    return torch.from_numpy(similarity.exact(moved))


def _information(link: Link) -> Array:
    """Inverse covariance (7, 7) of a link: few agreeing pixels may be the wrong ones."""
    return np.asarray(link.information.numpy() * (float(link.agreement) ** 2 / _ALIKE))


def _course(frames: Sequence[int], free: Sequence[bool]) -> list[int]:
    """Rows of the free frames that follow directly on two others."""
    return [
        row
        for row in range(2, len(frames))
        if free[row] and frames[row] - 2 == frames[row - 1] - 1 == frames[row - 2]
    ]


def _predicted(S: Array, course: NDArray[np.int64]) -> Array:
    """How each frame would lie in the one before if the camera went on as it did before.

    CTS of second order: C4D's penalises motion itself, which would hold the newest frame back.
    """
    before = similarity.inverse(S[course - 2]) @ S[course - 1]
    now = similarity.inverse(S[course - 1]) @ S[course]
    expected = before.copy()
    grown = similarity.scale(before)[:, None]
    expected[:, :3, 3] /= grown  # in the unit of the frame it starts from
    expected[:, :3, :3] *= (similarity.scale(now)[:, None] / grown)[..., None]
    return np.asarray(expected)


def _steadiness(config: FixedLagConfig) -> Array:
    """Information (7, 7) of the prediction; nothing is foretold of the scale."""
    deviation = np.array([config.jerk] * 3 + [config.turn_rad] * 3 + [np.inf])
    return np.asarray(np.diag(deviation**-2))


def _step(
    S: Array,
    ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    expected: Array,
    information: Array,
    moving: NDArray[np.int64],
) -> Array:
    """(N, 7) step, zero for the frames that stand still.

    What is left of a link is so small that moving its second end adds to it plainly.
    """
    first, second = ends
    found = similarity.inverse(S[first]) @ S[second]
    residual = similarity.log(similarity.inverse(expected) @ found)
    J = -similarity.adjoint(similarity.inverse(found))
    pulled = (information @ residual[..., None])[..., 0]
    mixed = J.transpose(0, 2, 1) @ information
    H, g = np.zeros((len(S), len(S), 7, 7)), np.zeros((len(S), 7))
    np.add.at(H, (first, first), mixed @ J)
    np.add.at(H, (second, second), information)
    np.add.at(H, (first, second), mixed)
    np.add.at(H, (second, first), mixed.transpose(0, 2, 1))
    np.add.at(g, first, (J.transpose(0, 2, 1) @ pulled[..., None])[..., 0])
    np.add.at(g, second, pulled)
    part = H[np.ix_(moving, moving)].transpose(0, 2, 1, 3).reshape(7 * len(moving), -1)
    part[np.diag_indices_from(part)] *= 1.0 + _DAMPING
    step = np.zeros_like(g)
    step[moving] = np.linalg.solve(part, -g[moving].ravel()).reshape(-1, 7)
    return step

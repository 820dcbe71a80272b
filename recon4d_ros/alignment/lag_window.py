"""Where the frames of a window lie, by the links between them and a steady course."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.alignment import similarity
from recon4d_ros.config import FixedLagConfig

Array = NDArray[np.float64]

# Neighbouring pixels err together: so many of them say no more than one.
_ALIKE = 10.0
_DAMPING = 1e-6
# Of the median depth, or radians; the pairs' own noise is a hundred times as large.
_CONVERGED = 1e-6


@dataclass(frozen=True, eq=False)
class Link:
    """How frame `second` lies in frame `first`, each in a unit of its own.

    Attributes:
        first, second: frame numbers.
        S_first_second: (4, 4).
        information: (7, 7), see `pose_graph.PoseGraph`.
        agreement: share of the pixels that agree.
    """

    first: int
    second: int
    S_first_second: Array
    information: Array
    agreement: float


def solve(
    frames: Sequence[int],
    S: Array,
    free: Sequence[bool],
    links: Sequence[Link],
    config: FixedLagConfig,
) -> Array:
    """Similarities (N, 4, 4) after some damped Gauss-Newton steps.

    Args:
        frames: N ascending frame numbers.
        S: (N, 4, 4) camera and unit of each frame to the map, a first guess.
        free: N, frames that may move.
        links: between those frames.
        config: number of steps and how steady the course is.
    """
    row, moving = {frame: number for number, frame in enumerate(frames)}, np.flatnonzero(free)
    course = _course(frames, free)
    ends = [(row[link.first], row[link.second]) for link in links]
    first, second = np.array([*ends, *((k - 1, k) for k in course)]).T
    measured = np.stack([link.S_first_second for link in links])
    information = np.concatenate(
        [
            np.stack([_information(link) for link in links]),
            np.broadcast_to(_steadiness(config), (len(course), 7, 7)),
        ]
    )
    for _ in range(config.steps):
        expected = np.concatenate([measured, _predicted(S, np.array(course, dtype=int))])
        step = _step(S, (first, second), expected, information, moving)
        S = S @ similarity.exp(step)
        if np.abs(step).max() < _CONVERGED:
            break
    S[moving] = similarity.exact(S[moving])
    return S


def _information(link: Link) -> Array:
    """Inverse covariance (7, 7) of a link: few agreeing pixels may be the wrong ones."""
    return link.information * (link.agreement**2 / _ALIKE)


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
    place = np.full(len(S), len(moving))
    place[moving] = np.arange(len(moving))  # all that stands still shares the last place
    H, g = _assembled(
        (place[first], place[second]),
        len(moving) + 1,
        -similarity.adjoint(similarity.inverse(found)),
        information,
        residual,
    )
    free = 7 * len(moving)
    H, g = H[:free, :free], g[:free]
    H[np.diag_indices_from(H)] *= 1.0 + _DAMPING
    step = np.zeros((len(S), 7))
    step[moving] = np.linalg.solve(H, -g).reshape(-1, 7)
    return step


def _assembled(
    ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    count: int,
    J: Array,
    information: Array,
    residual: Array,
) -> tuple[Array, Array]:
    """Normal equations (7 K, 7 K) and (7 K,) of links between K places.

    A link's residual (L, 7) changes by J (L, 7, 7) with its first end and plainly with its second.
    Block by block: most pairs of places have no link.
    """
    first, second = ends
    H, g = np.zeros((count, count, 7, 7)), np.zeros((count, 7))
    weighted, pull = information @ J, (information @ residual[..., None])[..., 0]
    np.add.at(H, (first, first), J.mT @ weighted)
    np.add.at(H, (first, second), weighted.mT)
    np.add.at(H, (second, first), weighted)
    np.add.at(H, (second, second), information)
    np.add.at(g, first, (J.mT @ pull[..., None])[..., 0])
    np.add.at(g, second, pull)
    return H.transpose(0, 2, 1, 3).reshape(7 * count, 7 * count), g.ravel()

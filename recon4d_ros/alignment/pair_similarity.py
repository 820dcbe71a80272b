"""How one frame lies in another by what a network says of the pair: a similarity, weighed.

A pair (first, second) gives points of the second frame's pixels in the first one's camera, in a
unit of its own. The second frame has a depth of its own, in its own unit. The similarity between
the two is what the pair adds to a stream: thousands of pixels become one measurement of seven
numbers with its information, so that a window of many pairs is solved in no time.

Residuals are those of C4D (ICCV 2025), section 4: GA, the distance of points, in standard
deviations along and across the ray; and CMA, the distance of matched pixels. The derivatives of
each kind are the same few functions of a pixel in different places, so that its normal equations
follow from the moments of those functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.alignment import similarity
from recon4d_ros.alignment.frame_depth import lower_median
from recon4d_ros.geometry import sim3
from recon4d_ros.geometry.robust import HALF_NORMAL_MEDIAN, RAYLEIGH_MEDIAN

Array = NDArray[np.float32]
Matrices = NDArray[np.float64]

# Pixels of a first step, which lets the weights settle; the one after it takes all pixels.
_FEW = 500
_NEAR = 0.05  # over the depth, or radians
# Share of agreeing pixels below which a guess was too far off to start from.
_GOOD_START = 0.5
_KERNEL = 2.5  # Cauchy scale in standard deviations
# Noise that is never undercut, and what is taken for no noise any more but for a wrong pose: over
# the distance, and of a matched pixel in px.
_NOISE, _NOISE_PX = (1e-4, 0.2), (0.02, 20.0)
# Residuals beyond this say that the pixel moves or is wrong, in standard deviations.
_OUTLIER = 4.0


def _places(*rows: str) -> Matrices:
    """Linear map (7, F) from functions of a pixel, named by letters, to a derivative.

    Each row is a letter with its sign in front, or 0; the first argument names the functions.
    """
    names, found = rows[0], np.zeros((7, len(rows[0])))
    for row, name in enumerate(rows[1:]):
        if name != "0":
            found[row, names.index(name[-1])] = -1.0 if name[0] == "-" else 1.0
    return found


# A similarity on the left of S moves y = S q by v + w x y + sigma y; the unknowns are v, w, sigma.
# GA in all directions alike: functions 1, x, y, z and the three misses.
_EACH = "1xyzabc"
_BY_POINT = (
    _places(_EACH, "1", "0", "0", "0", "z", "-y", "x"),
    _places(_EACH, "0", "1", "0", "-z", "0", "x", "y"),
    _places(_EACH, "0", "0", "1", "y", "-x", "0", "z"),
)
# GA along a direction d: d, y x d, y d and the miss.
_BY_RAY = (np.eye(7, 8),)
# CMA with u = x / z, v = y / z: i = 1 / z, ui (j), vi (k), u, v, uv (m), 1 + u^2 (p), 1 + v^2 (q)
# and both misses.
_MATCH = "ijkuvmpqab"
_BY_MATCH = (
    _places(_MATCH, "i", "0", "-j", "-m", "p", "-v", "0"),
    _places(_MATCH, "0", "i", "-k", "-q", "m", "u", "0"),
)


@dataclass(frozen=True, eq=False)
class PairSamples:
    """P pixels of the second frames of E pairs; weight 0 where not to be used.

    Attributes:
        source: (E, 3, P) points in the second camera, in that frame's own unit.
        target: (E, 3, P) where the pair sees them in the first camera, in the pair's unit.
        matched: (E, 2, P) their direction x / z, y / z in the first camera by matching, or None.
        weight: (E, P) >= 0, by the network's confidence.
        focal_px: px per unit of direction.
    """

    source: Array
    target: Array
    matched: Array | None
    weight: Array
    focal_px: float

    def at(self, rows: NDArray[np.int64] | slice, pixels: slice = slice(None)) -> PairSamples:
        """Some of the pairs and of their pixels."""
        matched = None if self.matched is None else self.matched[rows, :, pixels]
        points = self.source[rows, :, pixels], self.target[rows, :, pixels]
        return PairSamples(*points, matched, self.weight[rows, pixels], self.focal_px)

    @cached_property
    def nearness(self) -> Array:
        """(E, P) one over the squared distance of the targets."""
        return np.asarray(1.0 / _dot(self.target, self.target))

    @cached_property
    def few(self) -> slice:
        """Pixels that are enough for a first idea."""
        return slice(None, None, max(1, self.weight.shape[1] // _FEW))

    @cached_property
    def unused(self) -> NDArray[np.bool_]:
        """(E, F) of those few pixels."""
        return np.asarray(self.weight[:, self.few] <= 0)


@dataclass(frozen=True, eq=False)
class PairSimilarity:
    """E measurements.

    Attributes:
        S: (E, 4, 4) second camera and unit to first camera and the pair's unit.
        information: (E, 7, 7) in the coordinates of `pose_graph.PoseGraph`.
        agreement: (E,) share of the weighted pixels that agree with it.
    """

    S: Matrices
    information: Matrices
    agreement: Matrices


def measure(samples: PairSamples, start: Matrices) -> PairSimilarity:
    """Robust similarities by reweighted Gauss-Newton steps.

    Args:
        samples: of E pairs, at least three pixels of weight in each.
        start: (E, 4, 4) first guesses; where few pixels agree with what they lead to, the search
            starts anew from the points alone.

    Raises:
        GeometryError: such points of a pair determine no similarity.
    """
    found = _refined(samples, start)
    bad = np.flatnonzero(~(found.agreement >= _GOOD_START))
    if len(bad) == 0:
        return found
    again = _refined(samples.at(bad), _fitted(samples.at(bad)))
    better = again.agreement > np.nan_to_num(found.agreement[bad])
    for old, new in zip(_parts(found), _parts(again), strict=True):
        old[bad[better]] = new[better]
    return found


def _parts(found: PairSimilarity) -> tuple[Matrices, ...]:
    return found.S, found.information, found.agreement


def _refined(samples: PairSamples, start: Matrices) -> PairSimilarity:
    few = samples.at(slice(None), samples.few)
    found = _stepped(samples, _stepped(few, start).S)
    return replace(found, S=similarity.exact(found.S))


def _fitted(samples: PairSamples) -> Matrices:
    """Similarities (E, 4, 4) of the points alone, some of which may move."""
    points = (samples.source.swapaxes(1, 2), samples.target.swapaxes(1, 2), samples.weight)
    rows = zip(*(torch.from_numpy(each).double() for each in points), strict=True)
    return np.stack([sim3.fit_robust(*row).S.numpy() for row in rows])


def _stepped(samples: PairSamples, S: Matrices) -> PairSimilarity:
    """After one step; information and agreement are those before it, which a long step voids."""
    H, g, agreement = normal_equations(samples, S)
    right = similarity.adjoint(S)
    H, g = right.mT @ H @ right, right.mT @ g[..., None]
    step = np.linalg.solve(H + 1e-9 * np.eye(7), -g)[..., 0]
    agreement = np.where(np.abs(step).max(axis=1) < _NEAR, agreement, 0.0)
    return PairSimilarity(S @ similarity.exp(step), H, agreement)


def normal_equations(samples: PairSamples, S: Matrices) -> tuple[Matrices, Matrices, Matrices]:
    """H (E, 7, 7) and gradient (E, 7) by a similarity on the left of S, and the agreement (E,)."""
    top = S[:, :3].astype(samples.source.dtype)
    point = top[..., :3] @ samples.source + top[..., 3:]
    kinds, squared = _along_and_across(samples, point)
    if samples.matched is not None:
        match = _Kind(*_match_functions(samples.matched, point), _BY_MATCH)
        square = match.functions[:, -2] ** 2 + match.functions[:, -1] ** 2
        limits_px = _NOISE_PX[0] / samples.focal_px, _NOISE_PX[1] / samples.focal_px
        certainty = _certainty(square, samples, RAYLEIGH_MEDIAN, limits_px)
        squared += certainty * square
        kinds.append(replace(match, weight=match.weight * certainty))
    robust = samples.weight / (1.0 + squared / np.float32(_KERNEL**2))
    parts = [_pulled(kind, robust) for kind in kinds]
    total = samples.weight.sum(axis=1)
    share = (samples.weight > 0).sum(axis=1) / total  # a mean weight of one
    agreeing = (samples.weight * (squared < _OUTLIER**2)).sum(axis=1) / total
    H, g = (np.asarray(sum(part)) for part in zip(*parts, strict=True))
    return share[:, None, None] * H, share[:, None] * g, agreeing


@dataclass(frozen=True, eq=False)
class _Kind:
    """One kind of residual.

    Attributes:
        functions: (E, F, P) of every pixel, the misses of its K directions last.
        weight: (E, P) or wider of every direction, one over the variance.
        places: K maps (7, F) from the functions to the derivatives of the misses.
    """

    functions: Array
    weight: Array
    places: tuple[Matrices, ...]


def _along_and_across(samples: PairSamples, point: Array) -> tuple[list[_Kind], Array]:
    """GA, and its squared length (E, P) in standard deviations.

    A network errs more along the ray than across it, both in proportion to the distance.
    """
    near, target, miss = samples.nearness, samples.target, point - samples.target
    along = _dot(miss, target)
    along_square = along * along * near * near
    across_square = np.maximum(_dot(miss, miss) * near - along_square, 0.0)
    along_sure = _certainty(along_square, samples, HALF_NORMAL_MEDIAN, _NOISE)
    across_sure = _certainty(across_square, samples, RAYLEIGH_MEDIAN, _NOISE)
    each = np.concatenate([np.ones_like(point[:, :1]), point, miss], axis=1)
    (x, y, z), (a, b, c) = point.swapaxes(0, 1), target.swapaxes(0, 1)
    turned = y * c - z * b, z * a - x * c, x * b - y * a
    ray = np.stack([a, b, c, *turned, along + 1.0 / near, along], axis=1)
    kinds = [
        _Kind(each, near * across_sure, _BY_POINT),
        # The ray is the target over its length; in all directions it was weighed already.
        _Kind(ray, near * near * (along_sure - across_sure), _BY_RAY),
    ]
    return kinds, along_sure * along_square + across_sure * across_square


def _match_functions(matched: Array, point: Array) -> tuple[Array, Array]:
    """Functions (E, F, P) of `_MATCH`, and 1 where (E, P) the point is in front, else 0."""
    x, y, z = point.swapaxes(0, 1)
    front = (z > 0).astype(z.dtype)
    i = front / np.where(z > 0, z, 1.0)
    u, v = x * i, y * i
    misses = u - matched[:, 0], v - matched[:, 1]
    return np.stack([i, u * i, v * i, u, v, u * v, 1.0 + u * u, 1.0 + v * v, *misses], 1), front


def _pulled(kind: _Kind, robust: Array) -> tuple[Matrices, Matrices]:
    """H (E, 7, 7) and g (E, 7) of one kind."""
    weighted = kind.functions * (robust * kind.weight)[:, None]
    moments = (weighted @ kind.functions.swapaxes(1, 2)).astype(np.float64)
    misses = moments[:, :, -len(kind.places) :].transpose(2, 0, 1)
    H = sum(place @ moments @ place.T for place in kind.places)
    g = sum(miss @ place.T for place, miss in zip(kind.places, misses, strict=True))
    return np.asarray(H), np.asarray(g)


def _dot(one: Array, other: Array) -> Array:
    """(E, P) of two (E, 3, P): sums over an axis of three are slow."""
    products = (one[:, axis] * other[:, axis] for axis in range(3))
    return np.asarray(sum(products))


def _certainty(
    squares: Array, samples: PairSamples, median: float, limits: tuple[float, float]
) -> Array:
    """One over the variance (E, 1) of what has these squares (E, P) and such a median."""
    few = squares[:, samples.few].copy()
    few[samples.unused] = np.nan
    sigma = np.sqrt(lower_median(few)) / np.float32(median)
    return np.asarray(1.0 / sigma.clip(*limits)[:, None] ** 2, dtype=squares.dtype)

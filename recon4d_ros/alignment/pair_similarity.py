"""How one frame lies in another by what a network says of the pair: a similarity, weighed.

A pair (first, second) gives points of the second frame's pixels in the first one's camera, in a
unit of its own. The second frame has a depth of its own, in its own unit. The similarity between
the two is what the pair adds to a stream: thousands of pixels become one measurement of seven
numbers with its information, so that a window of many pairs is solved in no time.

Residuals are those of C4D (ICCV 2025), section 4: GA, the distance of points, in standard
deviations along and across the ray; and CMA, the distance of matched pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.alignment import similarity
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.geometry.robust import HALF_NORMAL_MEDIAN, RAYLEIGH_MEDIAN

# Half of them let the weights settle, the others the solution.
_STEPS = 4
# Share of agreeing pixels below which a guess was too far off to start from.
_GOOD_START = 0.5
_KERNEL = 2.5  # Cauchy scale in standard deviations
# Noise that is never undercut: over the distance, and of a matched pixel in px.
_LEAST_NOISE, _LEAST_NOISE_PX = 1e-4, 0.02
# And what is taken for no noise any more but for a wrong pose, likewise.
_MOST_NOISE, _MOST_NOISE_PX = 0.2, 20.0
# Residuals beyond this say that the pixel moves or is wrong, in standard deviations.
_OUTLIER = 4.0
_MEDIAN_STRIDE = 4  # every so many pixels fix a median well enough


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

    source: Tensor
    target: Tensor
    matched: Tensor | None
    weight: Tensor
    focal_px: float

    def of(self, rows: Tensor) -> PairSamples:
        """Some of the pairs."""
        matched = None if self.matched is None else self.matched[rows]
        return PairSamples(
            self.source[rows], self.target[rows], matched, self.weight[rows], self.focal_px
        )


@dataclass(frozen=True, eq=False)
class PairSimilarity:
    """E measurements.

    Attributes:
        S: (E, 4, 4) float64, second camera and unit to first camera and the pair's unit.
        information: (E, 7, 7) float64 in the coordinates of `pose_graph.PoseGraph`.
        agreement: (E,) share of the weighted pixels that agree with it.
    """

    S: Tensor
    information: Tensor
    agreement: Tensor


def measure(samples: PairSamples, start: Tensor) -> PairSimilarity:
    """Robust similarities by reweighted Gauss-Newton steps.

    Args:
        samples: of E pairs, at least three pixels of weight in each.
        start: (E, 4, 4) float64 first guesses; where few pixels agree with what they lead to, the
            search starts anew from the points alone.

    Raises:
        GeometryError: such points of a pair determine no similarity.
    """
    found = _refined(samples, start)
    bad = torch.nonzero(~(found.agreement >= _GOOD_START)).squeeze(-1)
    if len(bad) == 0:
        return found
    again = _refined(samples.of(bad), _fitted(samples.of(bad)))
    better = again.agreement > found.agreement[bad].nan_to_num(0.0)
    rows = bad[better]
    return PairSimilarity(
        found.S.index_copy(0, rows, again.S[better]),
        found.information.index_copy(0, rows, again.information[better]),
        found.agreement.index_copy(0, rows, again.agreement[better]),
    )


def _refined(samples: PairSamples, start: Tensor) -> PairSimilarity:
    share = (samples.weight > 0).sum(dim=1, keepdim=True) / samples.weight.sum(1, keepdim=True)
    weight, S = samples.weight * share, start.numpy()
    for _ in range(_STEPS):
        at = _compared(samples, torch.from_numpy(S).to(samples.source))
        H, g = _normal_equations(at, weight / (1.0 + at.squared / _KERNEL**2))
        right = similarity.adjoint(S)
        H, g = right.mT @ H.numpy() @ right, right.mT @ g.numpy()
        S = S @ similarity.exp(-np.linalg.solve(H + 1e-9 * np.eye(7), g)[..., 0])
    exact = torch.from_numpy(similarity.exact(S))
    at = _compared(samples, exact.to(samples.source))
    agreement = (weight * (at.squared < _OUTLIER**2)).sum(dim=1) / weight.sum(dim=1)
    return PairSimilarity(exact, torch.from_numpy(H), agreement.double())


def _fitted(samples: PairSamples) -> Tensor:
    """Similarities (E, 4, 4) of the points alone, some of which may move."""
    points = (samples.source.mT.double(), samples.target.mT.double(), samples.weight)
    return torch.stack([sim3.fit_robust(*pair).S for pair in zip(*points, strict=True)])


@dataclass(frozen=True, eq=False)
class _Compared:
    """Where the points fall, and by how much they miss; all that lies before the derivatives.

    Attributes:
        point: (E, 3, P) y = S q.
        miss: (E, 3, P) y - target.
        across: (E, P) weight of every direction of the miss, 1 / variance.
        directions: K directions (E, 3, P) along which y is compared once more.
        lengths: K misses (E, P) along them.
        weights: K weights (E, P).
        squared: (E, P) squared length of all of it, in standard deviations.
    """

    point: Tensor
    miss: Tensor
    across: Tensor
    directions: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    squared: Tensor


def _compared(samples: PairSamples, S: Tensor) -> _Compared:
    point = S[:, :3, :3] @ samples.source + S[:, :3, 3:]
    along = _along_rays(samples, point)
    if samples.matched is None:
        return along
    inverse = torch.where(point[:, 2] > 0, 1.0 / point[:, 2], 0.0)  # behind: no say
    u, v = point[:, 0] * inverse, point[:, 1] * inverse
    du, dv = u - samples.matched[:, 0], v - samples.matched[:, 1]
    square = du * du + dv * dv
    sigma = _noise(square, samples).sqrt() / RAYLEIGH_MEDIAN
    limits = _LEAST_NOISE_PX / samples.focal_px, _MOST_NOISE_PX / samples.focal_px
    weight = 1.0 / sigma.clamp(*limits).square()
    zero = torch.zeros_like(u)
    by_u = torch.stack([inverse, zero, -u * inverse], dim=1)
    by_v = torch.stack([zero, inverse, -v * inverse], dim=1)
    return _Compared(
        point,
        along.miss,
        along.across,
        (*along.directions, by_u, by_v),
        (*along.lengths, du, dv),
        (*along.weights, weight, weight),
        along.squared + weight * square,
    )


def _along_rays(samples: PairSamples, point: Tensor) -> _Compared:
    """A network errs more along the ray than across it, both in proportion to the distance."""
    miss, nearness = point - samples.target, 1.0 / _dot(samples.target, samples.target)
    along = _dot(miss, samples.target)
    along_square = along * along * nearness
    square = _dot(miss, miss)
    off_square = (square - along_square).clamp(min=0.0) * nearness
    along_noise = _noise(along_square * nearness, samples).sqrt() / HALF_NORMAL_MEDIAN
    across_noise = _noise(off_square, samples).sqrt() / RAYLEIGH_MEDIAN
    across = nearness / across_noise.clamp(_LEAST_NOISE, _MOST_NOISE).square()
    more = nearness / along_noise.clamp(_LEAST_NOISE, _MOST_NOISE).square() - across
    squared = across * square + more * along_square
    # The ray is the target over its length, which the weight makes good.
    return _Compared(point, miss, across, (samples.target,), (along,), (more * nearness,), squared)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """(E, P) of two (E, 3, P): sums over an axis of three are slow."""
    return one[:, 0] * other[:, 0] + one[:, 1] * other[:, 1] + one[:, 2] * other[:, 2]


def _normal_equations(at: _Compared, weight: Tensor) -> tuple[Tensor, Tensor]:
    """H (E, 7, 7) and gradient (E, 7, 1), float64, by a similarity on the left of S.

    It moves y by v + w x y + sigma y; seen along a direction d that is (d, y x d, y d).
    """
    H, g = _isotropic(at, weight * at.across)
    for direction, length, own in zip(at.directions, at.lengths, at.weights, strict=True):
        (x, y, z), (a, b, c) = at.point.unbind(1), direction.unbind(1)
        grown = x * a + y * b + z * c
        J = torch.stack([a, b, c, y * c - z * b, z * a - x * c, x * b - y * a, grown], dim=1)
        weighted = J * (weight * own).unsqueeze(1)
        H += (weighted @ J.mT).double()
        g += (weighted @ length.unsqueeze(-1)).double()
    return H, g


def _isotropic(at: _Compared, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The part that weighs all directions alike, from sums over the points only."""
    y = torch.cat([torch.ones_like(weight).unsqueeze(1), at.point], dim=1)
    weighted = y * weight.unsqueeze(1)
    moments = (weighted @ y.mT).double()  # 4 4
    pulls = (weighted @ at.miss.mT).double()  # 4 3
    total, mean, square = moments[:, :1, :1], moments[:, 0, 1:], moments[:, 1:, 1:]
    trace = square.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    identity = torch.eye(3, dtype=torch.float64)
    H = torch.zeros(len(weight), 7, 7, dtype=torch.float64)
    H[:, :3, :3] = total * identity
    H[:, :3, 3:6] = -se3.skew(mean)
    H[:, 3:6, :3] = se3.skew(mean)
    H[:, 3:6, 3:6] = trace * identity - square
    H[:, :3, 6] = H[:, 6, :3] = mean
    H[:, 6:, 6:] = trace
    turn = pulls[:, 1:] - pulls[:, 1:].mT
    turning = torch.stack([turn[:, 1, 2], turn[:, 2, 0], turn[:, 0, 1]], dim=1)
    growing = pulls[:, 1:].diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)
    return H, torch.cat([pulls[:, 0], turning, growing], dim=1).unsqueeze(-1)


def _noise(values: Tensor, samples: PairSamples) -> Tensor:
    """Median (E, 1) of the used values (E, P)."""
    few = slice(None), slice(None, None, _MEDIAN_STRIDE if values.shape[1] > 1000 else 1)
    known = torch.where(samples.weight[few] > 0, values[few], torch.nan)
    return known.nanmedian(dim=1, keepdim=True).values

"""Drawing what is believed of pixels to the edges of the image.

Flow is found for patches: it smears a moving thing over a few pixels of what lies behind, and it
fails where the thing hides or uncovers something. Both are wrong in the belief and seen in the
image. So around each pixel the belief is explained by the colours: a linear function of them,
fitted where pairs could vote, gives an answer to every pixel.

Source: He, Sun and Tang, "Guided image filtering", PAMI 2013, equations 14 to 16, with weights;
He and Sun, "Fast guided filter", 2015 (the fit at half size).
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.motion.fusion import Votes

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]

# Half side of the square in which colours explain the belief, px of the reference size.
RADIUS_PX = 16.0
# Variance of colours, of full scale, that explains nothing.
FLAT = 5e-5
# Belief beyond this is sure enough; louder pixels must not drown the others.
LOUDEST = 3.0
# Weight of pixels where no pair could vote, and of those among them that do not look at rest.
UNDECIDED_WEIGHT = 1e-3
UNREST_WEIGHT = 0.65


def to_edges(votes: Votes, rgb: NDArray[np.uint8], scale: float) -> Floats:
    """Belief that follows the edges of the image.

    Args:
        votes: of the frame.
        rgb: (h, w, 3) image of any size.
        scale: long side of the grid over the reference side, for the lengths.

    Returns:
        (H, W) belief within about `LOUDEST`, also where nothing was decided.
    """
    height, width = votes.belief.shape
    half = max(width // 2, 1), max(height // 2, 1)
    colours = _resized(rgb, half)
    weight = _weight(votes)
    belief = np.where(votes.decided, votes.belief, votes.belief + votes.unrest)
    wanted = _resized(np.clip(belief, -LOUDEST, LOUDEST) * weight, half)
    weight = _resized(weight, half)
    side = 2 * max(1, round(RADIUS_PX * scale / 2)) + 1
    factors = _factors(colours, wanted, weight, side)
    factors = _resized(factors, (width, height), cv2.INTER_LINEAR)
    image = _resized(rgb, (width, height))
    explained = cv2.multiply(factors[..., :3], image)
    return np.asarray(explained[..., 0] + explained[..., 1] + explained[..., 2] + factors[..., 3])


def _weight(votes: Votes) -> Floats:
    """How much each pixel (H, W) has to say of those around it."""
    undecided = np.where(votes.unrest > 0, UNREST_WEIGHT, UNDECIDED_WEIGHT)
    return np.where(votes.decided, 1.0, undecided).astype(np.float32)


def _factors(colours: Floats, wanted: Floats, weight: Floats, side: int) -> Floats:
    """Three factors of the colours and a constant (h, w, 4), the mean over the squares around.

    Args:
        colours: (h, w, 3).
        wanted: (h, w) what to explain, times its weight.
        weight: (h, w).
        side: of the squares, px.
    """

    def around(values: Floats) -> Floats:
        return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT))

    total = around(weight)
    mean = around(colours * weight[..., None]) / total[..., None]
    level = around(wanted) / total
    pairs = np.stack([colours[..., a] * colours[..., b] for a, b in _UPPER], axis=-1)
    products = (
        around(pairs[..., :3] * weight[..., None]),
        around(pairs[..., 3:] * weight[..., None]),
    )
    variance = np.concatenate(products, axis=-1) / total[..., None]
    variance -= np.stack([mean[..., a] * mean[..., b] for a, b in _UPPER], axis=-1)
    shared = around(colours * wanted[..., None]) / total[..., None] - mean * level[..., None]
    slope = _solved(variance, shared)
    constant = level - (slope * mean).sum(axis=-1)
    fitted = np.concatenate([slope, constant[..., None]], axis=-1)
    return around(fitted * total[..., None]) / around(total)[..., None]


_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _solved(variance: Floats, right: Floats) -> Floats:
    """Solutions (h, w, 3) of symmetric systems given by their upper parts (h, w, 6): Cramer's."""
    a, b, c, d, e, f = np.moveaxis(variance, -1, 0)
    a, d, f = a + np.float32(FLAT), d + np.float32(FLAT), f + np.float32(FLAT)
    first, second, third = d * f - e * e, c * e - b * f, b * e - c * d
    fifth, sixth, ninth = a * f - c * c, b * c - a * e, a * d - b * b
    x, y, z = np.moveaxis(right, -1, 0)
    solved = np.stack(
        [
            first * x + second * y + third * z,
            second * x + fifth * y + sixth * z,
            third * x + sixth * y + ninth * z,
        ],
        axis=-1,
    )
    return np.asarray(solved / (a * first + b * second + c * third)[..., None])


def _resized(
    image: NDArray[np.uint8] | Floats, size: tuple[int, int], how: int = cv2.INTER_AREA
) -> Floats:
    """At (width, height), colours in [0, 1]."""
    small = cv2.resize(image, size, interpolation=how)
    full = np.float32(255 if small.dtype == np.uint8 else 1)
    return np.asarray(small / full, dtype=np.float32)

"""Pixels beside a moving thing that show what lies behind it.

Where a thing hides or uncovers something, flow fails its check, and no pair can say which of the
two is seen. But where the pixel would be in the partner frame is known for both: what rests goes
on as what rests around it, what moves goes with the thing. Where the partner shows it in the first
place, and better than in the second, it rests; too far from the thing to know how it moves, the
first suffices. The reverse is not believed: shadows, too, go with the thing.

Flow found for patches also lays the thing's motion over what lies around it, and passes its
check. Such a pixel is called moving, and yet the partner shows it at rest, clearly better than
where the thing would carry it or its own flow leads.

Source: layers of known motion, Wang and Adelson, "Representing moving images with layers", IEEE
Transactions on Image Processing, 1994.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.datatypes import FlowField
from recon4d_ros.geometry.exposure import matched
from recon4d_ros.motion.fusion import SEED_BELIEF, Votes, hysteresis
from recon4d_ros.motion.outline import LOUDEST

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Image: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[slice, slice]

# All is done on every second pixel of the grid.
COARSE = np.s_[::2, ::2]
# Pixels are asked as far as this from a moving one; px of the reference size.
REACH_PX = 32.0
# Half sides of the squares whose mean motion is a pixel's: the least that holds enough of it.
AROUND_PX = (12.0, 40.0, 100.0)
LEAST_SHARE = 0.1
# Side of the patches that are compared. They fit when they differ less than so many times what
# surely rests differs; less than this, summed over three colours, is never told from noise.
PATCH_PX = 3
FIT, LEAST_DIFFERENCE = 2.0, 6.0
# What was called moving rests where it differs so many times less; that takes so much belief.
CLEARLY, DISBELIEF = 1.3, 5.0


def coarse_image(rgb: Image, grid: tuple[int, ...]) -> Image:
    """An image (h, w, 3) of any size at the size of every second pixel of a grid (H, W)."""
    height, width = grid
    size = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def resting_behind(
    votes: Votes, image: Image, partners: Iterable[tuple[FlowField, Image]], scale: float
) -> Votes:
    """Votes that also tell what is seen beside moving things.

    Args:
        votes: of the frame.
        image: of the frame, as `coarse_image` gives it.
        partners: flow to other frames, and their images likewise.
        scale: long side of the grid over the reference side, for the lengths.
    """
    coarse = Votes(*(values[COARSE] for values in vars(votes).values()))
    beside = _grown(hysteresis(coarse), REACH_PX * scale / 2)
    if not beside.any():
        return votes
    box = _box(_grown(beside, AROUND_PX[0] * scale / 2))
    asked, rests, clearly = np.zeros((3, *beside.shape), np.bool_)
    for flow, there in partners:
        images = matched(torch.from_numpy(image), torch.from_numpy(there))
        here, there = (each.numpy() for each in images)
        shown = _shown_behind(coarse, box, here, there, flow, scale / 2)
        for known, so_far in zip(shown, (asked, rests, clearly), strict=True):
            so_far[box] |= known
    height, width = votes.decided.shape
    asked, rests, clearly = (
        (part & beside).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        for part in (asked, rests, clearly)
    )
    rests &= ~votes.decided
    clearly &= votes.decided & (votes.belief > 0)
    belief = np.where(rests, np.float32(-LOUDEST), votes.belief)
    return replace(
        votes,
        belief=np.where(clearly, belief - np.float32(DISBELIEF), belief),
        decided=votes.decided | rests,
        unrest=votes.unrest + (asked & ~rests & ~votes.decided),
    )


def _shown_behind(
    votes: Votes, box: Box, image: Image, there: Image, field: FlowField, scale: float
) -> tuple[Bools, Bools, Bools]:
    """(h, w) of the box: what the partner would show at rest, what it shows so, what clearly."""
    flow: Floats = np.float32(0.5) * field.flow.numpy()[COARSE][box]
    valid, belief = field.valid.numpy()[COARSE][box], votes.belief[box]
    usable = valid & votes.decided[box]
    resting = usable & (belief < 0)
    resting_flow, is_known = mean_around(flow, resting, scale)
    moving_flow, is_moving_known = mean_around(flow, usable & (belief > SEED_BELIEF), scale)
    if_resting, if_moving, as_found = (
        differences(image, there, each, box) for each in (resting_flow, moving_flow, flow)
    )
    usual = if_resting[resting & np.isfinite(if_resting)][::4]
    usual_difference = float(np.median(usual)) if len(usual) else 0.0
    fits = is_known & (if_resting < FIT * max(usual_difference, LEAST_DIFFERENCE))
    shown = fits & ((if_resting < if_moving) | ~is_moving_known)
    better = np.where(valid, np.minimum(if_moving, as_found), if_moving)
    clearly = fits & is_moving_known & (CLEARLY * if_resting < better)
    return is_known & np.isfinite(if_resting), shown, clearly


def mean_around(flow: Floats, counted: Bools, scale: float) -> tuple[Floats, Bools]:
    """Mean flow (h, w, 2) of the counted pixels around each pixel, and where there are some.

    Args:
        flow: (h, w, 2) px.
        counted: (h, w) bool.
        scale: long side of the image over the reference side, for the lengths.
    """
    weight = counted[COARSE].astype(np.float32)
    u, v = np.moveaxis(flow[COARSE], -1, 0)
    sums = cv2.merge([u * weight, v * weight, weight])
    mean = np.zeros_like(sums)
    for radius in AROUND_PX:
        side = 2 * max(1, round(radius * scale / 2)) + 1
        few = (mean[..., 2] < LEAST_SHARE).astype(np.uint8)
        cv2.copyTo(cv2.blur(sums, (side, side)), few, mean)
    share = mean[..., 2]
    size = (counted.shape[1], counted.shape[0])
    around = cv2.resize(mean[..., :2] / np.maximum(share, LEAST_SHARE)[..., None], size)
    return np.asarray(around, np.float32), np.asarray(cv2.resize(share, size) >= LEAST_SHARE)


def differences(image: Image, there: Image, flow: Floats, box: Box) -> Floats:
    """How much patches differ from those where a flow leads; infinite where it leads outside.

    Args:
        image: (H, W, 3).
        there: (H, W, 3) the partner's.
        flow: (h, w, 2) px of the box.
        box: part of the image that is asked.
    """
    height, width = there.shape[:2]
    u = flow[..., 0] + np.arange(width, dtype=np.float32)[box[1]]
    v = flow[..., 1] + np.arange(height, dtype=np.float32)[box[0], None]
    moved = cv2.remap(there, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = cv2.absdiff(image[box], moved).astype(np.float32)
    summed = cv2.transform(cv2.blur(apart, (PATCH_PX, PATCH_PX)), np.ones((1, 3)))
    outside = (u < 0) | (v < 0) | (u > width - 1) | (v > height - 1)
    return np.where(outside, np.float32(np.inf), summed)


def _grown(region: Bools, reach_px: float) -> Bools:
    side = 2 * round(reach_px) + 1
    return np.asarray(cv2.dilate(region.astype(np.uint8), np.ones((side, side), np.uint8)) > 0)


def _box(region: Bools) -> Box:
    """The least rectangle that holds a region that is not empty."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

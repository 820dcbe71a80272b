"""From pixels that move to things that move."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]

# Reach of decided pixels over undecided ones, and how many of them must move. The prior stands
# for resting pixels far from any decided one.
FILL_SIGMA_PX = 6.0
FILL_SHARE = 0.6
REST_PRIOR = 0.1
OPENING_RADIUS_PX = 3.0
MAX_HOLE_SHARE = 0.03


def tidy(moving: Bools, opening_px: float, min_area: float, scale: float) -> Bools:
    """Drop specks, fill holes.

    Args:
        moving: (H, W) bool.
        opening_px: radius of what is too thin to be a thing, px of the reference size.
        min_area: smallest part that is kept, px^2 of the reference size.
        scale: long side of the grid over the reference side, for the lengths.
    """
    opened = cv2.morphologyEx(
        moving.astype(np.uint8), cv2.MORPH_OPEN, _disk(round(opening_px * scale))
    )
    return fill_holes(drop_small(opened > 0, min_area * scale * scale))


def clean_up(moving: Bools, decided: Bools, min_area: float, scale: float) -> Bools:
    """Give undecided pixels the state of their surroundings, drop specks, fill holes.

    Args:
        moving: (H, W) bool.
        decided: (H, W) bool, where `moving` rests on evidence.
        min_area: smallest part that is kept, px^2 of the reference size.
        scale: long side of the grid over the reference side, for the lengths.
    """
    filled = fill_undecided(moving, decided, FILL_SIGMA_PX * scale)
    return tidy(filled, OPENING_RADIUS_PX, min_area, scale)


def fill_undecided(moving: Bools, decided: Bools, sigma_px: float) -> Bools:
    """Undecided pixels move where most of the decided ones around them do."""
    some = cv2.GaussianBlur((moving & decided).astype(np.float32), (0, 0), sigma_px)
    every = cv2.GaussianBlur(decided.astype(np.float32), (0, 0), sigma_px)
    return np.where(decided, moving, some > FILL_SHARE * (every + REST_PRIOR))


def drop_small(mask: Bools, min_area: float) -> Bools:
    """Without the connected parts of fewer than `min_area` px."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area
    keep[0] = False
    return np.asarray(keep[labels])


def fill_holes(mask: Bools) -> Bools:
    """With the small enclosed gaps; one that touches the border may lead outside and stays."""
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (~mask).astype(np.uint8), connectivity=4
    )
    left, top, wide, high, area = stats.T
    enclosed = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
    hole = enclosed & (area < MAX_HOLE_SHARE * mask.size)
    hole[0] = False
    return np.asarray(mask | hole[labels])


def _disk(radius: int) -> NDArray[np.uint8]:
    side = 2 * max(radius, 1) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), dtype=np.uint8)

"""Masks of what moves as one would write them in a day: one flow, one model, one threshold.

DIS flow to the next frame at the size of the images; a fundamental matrix by least median of
squares with the Sampson distance, or a homography by RANSAC with its transfer distance. No noise
estimate, no other partners, no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.evaluation.masks import MaskFrame, evaluate_masks
from recon4d_ros.storage.dataset import SequenceFolder

NUM_FRAMES = 25
SAMPSON_PX2 = 1.0
TRANSFER_PX = 1.5
SAMPLE_STEP = 8  # px between the pixels a model is fitted to

Image = NDArray[Any]


def fundamental_mask(pixels: Image, moved: Image) -> Image:
    """Pixels (H, W, 2) whose Sampson distance to the epipolar geometry is large, (H, W) bool."""
    F, _ = cv2.findFundamentalMat(_sample(pixels), _sample(moved), cv2.FM_LMEDS, 1.0, 0.99)
    if F is None:
        return np.zeros(pixels.shape[:2], bool)
    first, second = _homogeneous(pixels), _homogeneous(moved)
    lines_second, lines_first = first @ F[:3].T, second @ F[:3]
    slope = (lines_second[..., :2] ** 2).sum(-1) + (lines_first[..., :2] ** 2).sum(-1)
    return (second * lines_second).sum(-1) ** 2 / slope > SAMPSON_PX2


def homography_mask(pixels: Image, moved: Image) -> Image:
    """Pixels (H, W, 2) that a homography carries elsewhere than the flow does, (H, W) bool."""
    H, _ = cv2.findHomography(_sample(pixels), _sample(moved), cv2.RANSAC, 1.0)
    if H is None:
        return np.zeros(pixels.shape[:2], bool)
    carried = _homogeneous(pixels) @ H.T
    return np.linalg.norm(carried[..., :2] / carried[..., 2:] - moved, axis=-1) > TRANSFER_PX


def _sample(pixels: Image) -> Image:
    return pixels[::SAMPLE_STEP, ::SAMPLE_STEP].reshape(-1, 2)


def _homogeneous(pixels: Image) -> Image:
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1).astype(np.float64)


BASELINES: dict[str, Callable[[Image, Image], Image]] = {
    "LMedS F": fundamental_mask,
    "RANSAC H": homography_mask,
}


def mean_iou(path: Path) -> dict[str, float]:
    """Mean IoU of each baseline over the first frames of a sequence that has masks."""
    sequence = SequenceFolder(path)
    entries = sequence.entries[:NUM_FRAMES]
    greys = [cv2.imread(str(entry.path), cv2.IMREAD_GRAYSCALE) for entry in entries]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = greys[0].shape
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    frames: dict[str, list[MaskFrame]] = {name: [] for name in BASELINES}
    for index, entry in enumerate(entries):
        # The last frame has no next one: its partner is the one before.
        partner = index + 1 if index + 1 < len(entries) else index - 1
        moved = pixels + flow.calc(greys[index], greys[partner], None)
        truth = sequence.truth.mask(entry.stamp_ns)
        for name, baseline in BASELINES.items():
            if truth is not None:
                frames[name].append(MaskFrame(truth.numpy(), baseline(pixels, moved)))
    return {name: evaluate_masks(rows).iou for name, rows in frames.items()}

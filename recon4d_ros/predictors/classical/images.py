"""Grey images of the sizes that tracking and dense flow work on."""

from __future__ import annotations

import cv2
import numpy as np

from recon4d_ros.datatypes import Frame
from recon4d_ros.predictors.classical.tracks import Grey


def grey_image(frame: Frame) -> Grey:
    """(H, W) of a frame."""
    rgb = np.ascontiguousarray(frame.rgb.numpy())
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def fitted(grey: Grey, size: tuple[int, int]) -> Grey:
    """The image at (height, width), smoothed when shrunk."""
    if grey.shape == size:
        return grey
    resized = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)

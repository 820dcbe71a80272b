"""Choosing the parts once, by configuration."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import torch

from recon4d_ros.config import Config
from recon4d_ros.pipeline.allocation import map_large_blocks
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.predictors.classical.predictor import ClassicalPredictor
from recon4d_ros.predictors.interface import PointmapPredictor
from recon4d_ros.predictors.pomato.loading import load_predictor

_PREDICTORS: dict[str, Callable[[Config], PointmapPredictor]] = {
    "classical": ClassicalPredictor,
    "pomato": load_predictor,
}


def build_predictor(config: Config) -> PointmapPredictor:
    """The predictor that the configuration names.

    Raises:
        Recon4DError: its model, its device or its parameters cannot be used.
    """
    return _PREDICTORS[config.predictor.name](config)


def build_reconstructor(config: Config) -> Reconstructor:
    """A reconstruction of one stream; sets this process's numbers of threads and its memory."""
    map_large_blocks()
    torch.set_num_threads(config.compute.torch_threads)
    cv2.setNumThreads(config.compute.opencv_threads)
    return Reconstructor(config, build_predictor(config))

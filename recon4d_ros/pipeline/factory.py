"""Choosing the parts once, by configuration."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import torch
from threadpoolctl import threadpool_limits

from recon4d_ros.config import Config
from recon4d_ros.errors import ConfigError
from recon4d_ros.pipeline.allocation import keep_imports_for_good, map_large_blocks
from recon4d_ros.pipeline.offline import OfflineReconstructor
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.predictors.classical.predictor import ClassicalPredictor
from recon4d_ros.predictors.dynpt.loading import load_tracker
from recon4d_ros.predictors.interface import PointmapPredictor, PointTracker
from recon4d_ros.predictors.klt import KltTracker
from recon4d_ros.predictors.pomato.loading import load_pairs, load_predictor

# Tracking and mapping fill them; threads within OpenCV would only wait for each other.
_FEW_PROCESSORS = 2

_PREDICTORS: dict[str, Callable[[Config], PointmapPredictor]] = {
    "classical": ClassicalPredictor,
    "pomato": load_predictor,
}


def _klt(config: Config) -> PointTracker:
    return KltTracker(config.tracker.max_points, config.tracker.cell_px)


_TRACKERS: dict[str, Callable[[Config], PointTracker]] = {
    "auto": _klt,
    "klt": _klt,
    "dynpt": load_tracker,
}


def build_predictor(config: Config) -> PointmapPredictor:
    """The predictor that the configuration names.

    Raises:
        Recon4DError: its model, its device or its parameters cannot be used.
    """
    return _PREDICTORS[config.predictor.name](config)


def build_tracker(config: Config) -> PointTracker:
    """The tracker that the configuration names; `auto` is Lucas-Kanade.

    Raises:
        Recon4DError: its model, its device or its parameters cannot be used.
    """
    return _TRACKERS[config.tracker.name](config)


def build_reconstructor(config: Config) -> Reconstructor:
    """A reconstruction of one stream; sets this process's numbers of threads and its memory.

    Raises:
        Recon4DError: a model, a device or a parameter cannot be used.
    """
    _set_up_process(config)
    # The predictor's own tracks cost nothing more.
    tracker = None if config.tracker.name == "auto" else build_tracker(config)
    return Reconstructor(config, build_predictor(config), tracker)


def build_offline_reconstructor(config: Config) -> OfflineReconstructor:
    """A reconstruction of one whole clip; sets up this process as `build_reconstructor` does.

    Raises:
        Recon4DError: the predictor gives no pairs, or its model or device cannot be used.
    """
    if config.predictor.name != "pomato":
        raise ConfigError(
            f"predictor.name={config.predictor.name} gives no pointmaps of pairs, which whole "
            "clips are aligned from; set predictor.name=pomato and pomato.model to a pairwise "
            "checkpoint, or stream instead"
        )
    _set_up_process(config)
    num_kept = max(config.offline.frame_offsets) + 1
    return OfflineReconstructor(config, load_pairs(config, num_kept), build_tracker(config))


def _set_up_process(config: Config) -> None:
    map_large_blocks()
    keep_imports_for_good()
    torch.set_num_threads(config.compute.torch_threads)
    # numpy's own threads spin while they wait: a fifth of all processor time, for nothing.
    threadpool_limits(config.compute.torch_threads, user_api="blas")
    few = cv2.getNumberOfCPUs() <= _FEW_PROCESSORS
    cv2.setNumThreads(config.compute.opencv_threads or (1 if few else 2))

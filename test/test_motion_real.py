"""Masks on real and rendered video: flow and segmentation together, as the pipeline runs them."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from real_sequence import require

from recon4d_ros.config import Config
from recon4d_ros.motion.segmentation import Segmenter
from recon4d_ros.predictors.flow import FlowHistory

CONFIG = Config()
LONG_SIDE = CONFIG.image.dense_max_side
LAG = 3

pytestmark = pytest.mark.data


def _grey(name: str, count: int) -> list[np.ndarray]:
    folder = require(name)
    rows = [line.split() for line in (folder / "rgb.txt").read_text().splitlines()]
    files = [row[1] for row in rows if row and not row[0].startswith("#")][:count]
    return [_small(cv2.imread(str(folder / file), cv2.IMREAD_GRAYSCALE)) for file in files]


def _small(image: np.ndarray) -> np.ndarray:
    scale = LONG_SIDE / max(image.shape)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _truth(name: str, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    files = sorted((require(name) / "masks").glob("*.png"))[:count]
    masks = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    nearest = cv2.INTER_NEAREST
    return [cv2.resize(mask, size[::-1], interpolation=nearest) > 127 for mask in masks]


def _masks(views: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Provisional masks, and final ones that see `LAG` frames ahead."""
    history, segmenter = FlowHistory(CONFIG.flow), Segmenter(CONFIG.motion)
    unposed = {
        "matchings": (),
        "tracks": None,
        "gauge": 0,
        "T_key_cam": None,
        "T_gauge_key": None,
        "intrinsics": SimpleNamespace(size=views[0].shape),
    }
    flows, provisional, final = [], [], []
    for index, view in enumerate(views):
        arrived = history.push(index, view)
        flows = [flow for flow in (*flows, *arrived) if flow.source > index - 12]
        frame = SimpleNamespace(index=index, flows=arrived, **unposed)
        provisional.append(segmenter.segment_frame(frame).mask[0].numpy())
        if index >= LAG:
            window = SimpleNamespace(
                indices=tuple(range(max(0, index - 11), index + 1)),
                flows=flows,
                **unposed,
            )
            wanted = index - LAG
            final.append(segmenter.segment(window, [wanted]).of(wanted).numpy())
    return provisional, final


def _mean_iou(masks: list[np.ndarray], truth: list[np.ndarray]) -> float:
    pairs = list(zip(masks, truth, strict=False))
    return float(
        np.mean([(m & t).sum() / (m | t).sum() if (m | t).any() else 1 for m, t in pairs])
    )


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [
        ("davis16_dev/cows", 16, 0.60),
        ("davis16_dev/car-shadow", 12, 0.55),
        ("rendered/tossed_objects", 16, 0.60),
    ],
)
def test_moving_things_are_found(name: str, count: int, least: float):
    """Measured 0.70 to 0.85; the bands leave room for another OpenCV."""
    views = _grey(name, count)
    truth = _truth(name, count, views[0].shape)
    provisional, final = _masks(views)
    assert _mean_iou(provisional, truth) > least - 0.1
    assert _mean_iou(final, truth) > least


@pytest.mark.parametrize("name", ["rendered/static_scene", "scenes7_redkitchen_clip150"])
def test_camera_moves_and_nothing_else(name: str):
    provisional, final = _masks(_grey(name, 16))
    assert np.mean([mask.mean() for mask in provisional]) < 0.01
    assert np.mean([mask.mean() for mask in final]) < 0.01


def test_neither_camera_nor_things_move():
    (image,) = _grey("icl_livingroom1", 1)
    generator = np.random.default_rng(0)
    views = [
        np.clip(image + generator.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        for _ in range(12)
    ]
    provisional, final = _masks(views)
    assert np.mean([mask.mean() for mask in provisional]) < 0.005
    assert np.mean([mask.mean() for mask in final]) < 0.005


def test_final_masks_ignore_what_comes_after_their_lag():
    views = _grey("davis16_dev/dog", 14)
    noise = np.random.default_rng(0).integers(0, 255, (4, *views[0].shape)).astype(np.uint8)
    _, final = _masks(views)
    _, spoilt = _masks([*views[:10], *noise])
    assert all(np.array_equal(*pair) for pair in zip(final[:7], spoilt[:7], strict=True))
    assert not np.array_equal(final[-1], spoilt[-1])

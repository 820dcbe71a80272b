"""The weights that come with the package do what their page says, on clips nobody has seen."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from recon4d_ros.config import Config, TrackerConfig
from recon4d_ros.datatypes import Frame, Window
from recon4d_ros.evaluation.clips import ALL, LabelledClips, evaluate_clips
from recon4d_ros.evaluation.network_tracker import NetworkTracker
from recon4d_ros.evaluation.trackers import chained_flow
from recon4d_ros.installation import package_file
from recon4d_ros.networks.dynpt.checkpoint import load
from recon4d_ros.pipeline.factory import build_tracker
from recon4d_ros.predictors.dynpt.tracker import DynPTTracker
from recon4d_ros.synthetic.clips.generator import ClipGenerator
from recon4d_ros.synthetic.clips.settings import ClipSettings

CPU = torch.device("cpu")
SEED, CLIPS, FRAMES = 900_003, 8, 12  # neither of training, nor of its validation, nor of a bench


@pytest.fixture(scope="module")
def network():
    return load(package_file("models/dynpt_lean.safetensors"), CPU).requires_grad_(False).eval()


def test_it_tells_what_moves_and_what_is_seen(network):
    tracker = NetworkTracker(network, CPU)

    def methods(rgb, queries):
        return {"network": tracker(rgb, queries), "flow": chained_flow(rgb, queries)}

    generator = ClipGenerator(ClipSettings(num_frames=FRAMES), SEED)
    clips = (LabelledClips(generator.clips(number, 1)) for number in range(CLIPS))
    reports = evaluate_clips(clips, methods)
    mobility = {name: report.mobility[ALL] for name, report in reports.items()}
    positions = {name: report.positions[ALL] for name, report in reports.items()}
    assert mobility["network"].balanced_accuracy > mobility["flow"].balanced_accuracy + 0.10
    assert mobility["network"].auroc > 0.70
    assert positions["network"].occlusion_accuracy > 0.85
    assert positions["network"].share_within > positions["flow"].share_within - 0.02


def test_the_node_finds_it_and_follows_a_picture(network):
    settings = TrackerConfig(name="dynpt", long_side=128, max_points=80, device="cpu")
    tracker = build_tracker(dataclasses.replace(Config(), tracker=settings))
    assert isinstance(tracker, DynPTTracker)
    noise = np.random.default_rng(3).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 1.5)
    step = np.array([1.5, -0.5])

    def at(index: int) -> Frame:
        x, y = 60 - step * index
        shift = np.array([[1, 0, x], [0, 1, y]])
        rgb = cv2.warpAffine(
            picture, shift, (128, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        return Frame(index, index, torch.from_numpy(rgb))

    for first in (0, 4):
        tracks = tracker.track(Window(tuple(at(first + i) for i in range(8)), 8))
    moved = (tracks.uv[1:] - tracks.uv[:-1]).reshape(-1, 2)
    seen = ((tracks.visibility[1:] > 0.6) & (tracks.visibility[:-1] > 0.6)).flatten()
    off = (moved[seen] - torch.from_numpy(step)).norm(dim=-1)
    assert seen.sum() > 100 and off.median() < 0.3

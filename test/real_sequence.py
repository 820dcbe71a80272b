"""A folder sequence with ground truth, turned into exact predictions at the dense size."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from analytic_scene import ExactPredictor, stamp
from torch import Tensor

from recon4d_ros.datatypes import Frame, Intrinsics
from recon4d_ros.geometry import image_grid, se3

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DENSE_MAX_SIDE = 320


def require(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there: put the real sequences into ../shared/data")
    return folder


def exposed(image: Tensor, gain: float) -> Tensor:
    """An image as a camera takes it that gathers `gain` times the light."""
    return (image * gain).round().clamp(0, 255).to(torch.uint8)


def _rows(path: Path) -> list[list[str]]:
    lines = path.read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


class RealSequence:
    """Images, true depth and true poses of some frames of a folder."""

    def __init__(self, name: str, numbers: list[int]) -> None:
        folder = require(name)
        fields = json.loads((folder / "intrinsics.json").read_text())
        camera_keys = ("fx", "fy", "cx", "cy", "width", "height")
        self.intrinsics = Intrinsics(**{key: fields[key] for key in camera_keys})
        self.view = image_grid.fit_long_side(self.intrinsics, DENSE_MAX_SIDE)
        images, depths = _rows(folder / "rgb.txt"), _rows(folder / "depth.txt")
        poses = np.array([row[1:] for row in _rows(folder / "groundtruth.txt")], dtype=float)
        self.rgb = [self._image(folder / images[number][1]) for number in numbers]
        scale = float(fields["depth_scale"])
        self.depths = tuple(self._depth(folder / depths[number][1], scale) for number in numbers)
        R = se3.quat_xyzw_to_matrix(torch.from_numpy(poses[numbers, 3:]))
        self.poses = tuple(se3.make(R, torch.from_numpy(poses[numbers, :3])))

    def _image(self, path: Path) -> Tensor:
        return torch.from_numpy(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))

    def _depth(self, path: Path, scale: float) -> Tensor:
        raw = torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float64))
        metres = torch.where(raw > 0, raw / scale, torch.nan)
        return image_grid.resize_depth(metres, self.view.size)

    def frame(self, index: int) -> Frame:
        return Frame(index, stamp(index), self.rgb[index], self.intrinsics)

    def unrelated_frame(self, index: int) -> Frame:
        """An image of nothing that was ever seen: smooth noise."""
        generator = torch.Generator().manual_seed(index)
        size = self.view.size
        coarse = torch.randint(0, 255, (size[0] // 4, size[1] // 4, 3), generator=generator)
        rgb = image_grid.resize_image(coarse.to(torch.uint8), self.intrinsics.size)
        return Frame(index, stamp(index), rgb, self.intrinsics)

    def predictor(self, **changes: object) -> ExactPredictor:
        return ExactPredictor(
            view=self.view,
            trajectory=self.poses,
            depths=self.depths,
            num_landmarks=0,
            **changes,
        )

"""The summary picture: it is drawn whatever is missing, and shows things where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from recordings import picture

from recon4d_ros.cli.summary import Summary, draw_summary
from recon4d_ros.datatypes import PointCloud
from recon4d_ros.errors import OutputError


def cloud(points: torch.Tensor, colour: tuple[int, int, int]) -> PointCloud:
    number = len(points)
    rgb = torch.tensor(colour, dtype=torch.uint8).expand(number, 3)
    ones = torch.ones(number)
    return PointCloud(points.float(), rgb, ones, ones.to(torch.int32))


def a_summary() -> Summary:
    """Red points left of the camera's straight path, none to its right; y points down."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 3, generator=generator) * torch.tensor([1.0, 0.5, 4.0])
    poses = torch.eye(4, dtype=torch.float64).repeat(20, 1, 1)
    poses[:, 2, 3] = torch.linspace(0.0, 4.0, 20)
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[8:16, 10:20] = True
    return Summary(
        title="a test",
        subtitle="figures",
        rgb=picture(0, 96, 128),
        depth=torch.linspace(1.0, 3.0, 24 * 32).reshape(24, 32),
        mask=mask,
        cloud=cloud(points - torch.tensor([1.5, 0.0, 0.0]), (250, 20, 20)),
        T_map_cam=poses,
        unit="m",
    )


def draw(path: Path, summary: Summary) -> np.ndarray:
    draw_summary(path / "summary.png", summary)
    image = cv2.imread(str(path / "summary.png"))
    assert image is not None
    return image[..., ::-1].astype(int)


def test_the_map_lies_left_of_the_path(tmp_path: Path) -> None:
    image = draw(tmp_path, a_summary())
    height, width = image.shape[:2]
    above = image[int(0.55 * height) :, : width // 2]
    red = (above[..., 0] > 200) & (above[..., 1] < 60) & (above[..., 2] < 60)
    start = np.abs(above - np.array([126, 3, 168])).sum(axis=-1) < 60
    assert red.any() and start.any()
    assert np.nonzero(red)[1].max() < np.median(np.nonzero(start)[1])


def test_the_mask_is_tinted(tmp_path: Path) -> None:
    with_mask = draw(tmp_path, a_summary())
    without = draw(tmp_path, replace(a_summary(), mask=torch.zeros(24, 32, dtype=torch.bool)))
    changed = np.abs(with_mask - without).sum(axis=-1) > 30
    columns = np.nonzero(changed[: changed.shape[0] // 2])[1]
    # Only the third panel (and its title) differs.
    assert columns.min() > 0.65 * changed.shape[1]


MISSING = {
    "no points": {"cloud": cloud(torch.empty(0, 3), (0, 0, 0))},
    "no poses": {"T_map_cam": torch.empty(0, 4, 4, dtype=torch.float64)},
    "neither": {
        "cloud": cloud(torch.empty(0, 3), (0, 0, 0)),
        "T_map_cam": torch.empty(0, 4, 4, dtype=torch.float64),
    },
    "one pose": {"T_map_cam": torch.eye(4, dtype=torch.float64)[None]},
    "no depth": {"depth": torch.full((24, 32), torch.nan)},
    "everything moves": {"mask": torch.ones(24, 32, dtype=torch.bool)},
    "one point": {"cloud": cloud(torch.zeros(1, 3), (9, 9, 9))},
}


@pytest.mark.parametrize("case", MISSING)
def test_whatever_is_missing_it_is_drawn(tmp_path: Path, case: str) -> None:
    assert draw(tmp_path, replace(a_summary(), **MISSING[case])).std() > 10


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        draw_summary(tmp_path / "no" / "summary.png", a_summary())

"""Exposure: ratios against known gains."""

import numpy as np
import pytest
import torch
from real_sequence import exposed

from recon4d_ros.geometry.exposure import brightness_ratio, matched


def view(*channels: int) -> torch.Tensor:
    noise = np.random.default_rng(0).uniform(60, 200, (60, 80)).repeat(8, 0).repeat(8, 1)
    grey = torch.from_numpy(noise).round().to(torch.uint8)
    return grey[..., None].expand(*grey.shape, *channels).contiguous() if channels else grey


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("gain", [0.7, 0.95, 1.04, 1.2])
def test_the_ratio_is_the_gain_though_the_view_moves(gain, channels):
    image = view(*channels)
    moved = torch.roll(exposed(image, gain), (1, 2), (0, 1))
    assert brightness_ratio(image, moved) == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize("gain", [0.7, 1.2])
def test_the_brighter_image_is_dimmed_and_nothing_saturates(gain):
    image, other = view(), exposed(view(), gain)
    one, two = matched(image, other)
    assert (one is image, two is other) == (gain > 1, gain < 1)
    assert (one.int() - two.int()).abs().max() <= 2
    assert max(int(one.max()), int(two.max())) <= min(int(image.max()), int(other.max()))


def test_equal_exposure_leaves_the_images_themselves():
    image, other = view(), torch.roll(view(), 2, 1)
    assert matched(image, other) == (image, other)


def test_a_thing_that_comes_near_is_no_exposure():
    image = view()
    other = image.clone()
    other[:, :240] = 20
    assert brightness_ratio(image, other) == 1.0


@pytest.mark.parametrize("level", [3, 252])
def test_darkness_and_glare_tell_nothing(level):
    blind = torch.full((480, 640), level, dtype=torch.uint8)
    assert brightness_ratio(blind, view()) == 1.0

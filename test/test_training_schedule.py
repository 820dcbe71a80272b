"""The length of a run and its learning rate, with a clock that the test winds."""

import math
from itertools import pairwise

import pytest

from recon4d_ros.training.schedule import Extent, one_cycle


def test_whichever_bound_is_nearer_decides() -> None:
    both = Extent(100, 60.0)
    assert both.share(50, 6.0) == 0.5
    assert both.share(50, 45.0) == 0.75
    assert Extent(0, 60.0).share(10_000, 30.0) == 0.5
    assert Extent(100, 0.0).share(100, 1e9) == 1.0


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    assert one_cycle(0.0, 1.0, 0.1) == pytest.approx(1 / 25)
    assert one_cycle(0.1, 1.0, 0.1) == pytest.approx(1.0)
    assert one_cycle(1.0, 1.0, 0.1) == pytest.approx(1e-4)
    assert one_cycle(1.7, 1.0, 0.1) == pytest.approx(1e-4)
    # Half way down a cosine.
    assert one_cycle(0.55, 2.0, 0.1) == pytest.approx(1.0 + 1e-4)
    # No warm-up: the peak comes first.
    assert one_cycle(0.0, 1.0, 0.0) == pytest.approx(1.0)
    rates = [one_cycle(n / 200, 1.0, 0.05) for n in range(201)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.16
    assert not any(math.isnan(rate) for rate in rates)

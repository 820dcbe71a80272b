"""Robust statistics against numpy, scipy and their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import robust

values = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(values)
def test_median_and_mad_equal_scipy(numbers: list[float]) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float64)
    assert float(robust.median(tensor)) == pytest.approx(np.median(numbers))
    oracle = stats.median_abs_deviation(numbers) * robust.MAD_TO_SIGMA
    assert float(robust.mad_sigma(tensor)) == pytest.approx(oracle, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(values, st.integers(0, 100))
def test_weighted_median_equals_the_median_of_repeated_values(numbers, seed) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, size=len(numbers))
    counts[0] += 1
    repeated = np.sort(np.repeat(numbers, counts))
    found = robust.weighted_median(
        torch.tensor(numbers, dtype=torch.float64), torch.from_numpy(counts).double()
    )
    assert float(found) == repeated[(len(repeated) - 1) // 2]


def test_mad_sigma_estimates_a_normal_deviation_in_spite_of_outliers() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 3.0
    noise[:2000] = 1e4
    assert float(robust.mad_sigma(noise)) == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize(
    ("weight", "loss"),
    [
        (robust.huber_weight, lambda r: torch.where(r.abs() < 2, r**2 / 2, 2 * (r.abs() - 1))),
        (robust.cauchy_weight, lambda r: 2.0 * torch.log1p((r / 2) ** 2)),
        (
            robust.tukey_weight,
            lambda r: (4.0 / 6.0) * (1 - (1 - (r / 2) ** 2).clamp(min=0) ** 3),
        ),
    ],
)
def test_weights_are_the_influence_of_their_loss_over_the_residual(weight, loss) -> None:
    r = torch.linspace(-7, 7, 113, dtype=torch.float64)[1::2].requires_grad_()
    r = r + 1e-3
    (influence,) = torch.autograd.grad(loss(r).sum(), r)
    torch.testing.assert_close(weight(r, 2.0), influence / r, atol=1e-9, rtol=1e-9)
    assert float(weight(torch.zeros(1), 2.0)) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: robust.median(torch.zeros(0)), "at least one"),
        (lambda: robust.mad_sigma(torch.tensor([1.0, torch.nan])), "not finite"),
        (lambda: robust.weighted_median(torch.ones(2), torch.zeros(2)), "all zero"),
        (lambda: robust.huber_weight(torch.ones(2), 0.0), "positive"),
        (lambda: robust.lmeds_sigma(torch.ones(4), 4), "more residuals"),
    ],
)
def test_bad_input_is_an_error(call, message) -> None:
    with pytest.raises(GeometryError, match=message):
        call()

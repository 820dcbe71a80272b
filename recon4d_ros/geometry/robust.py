"""Robust statistics: influence weights, scales and medians."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry.checks import check_finite, check_shape, check_weights

# A normal distribution's standard deviation over its median absolute deviation.
MAD_TO_SIGMA = 1.4826
# Median over standard deviation: of a half normal distribution, and of a Rayleigh distribution.
HALF_NORMAL_MEDIAN = 0.6745
RAYLEIGH_MEDIAN = 1.1774


def huber_weight(residual: Tensor, delta: float) -> Tensor:
    """Weight in (0, 1] of residuals (...): 1 up to `delta`, then delta / |r|.

    Source: Huber, Robust Estimation of a Location Parameter, 1964.
    """
    _check_width(delta)
    return delta / residual.abs().clamp(min=delta)


def cauchy_weight(residual: Tensor, width: float) -> Tensor:
    """Weight in (0, 1] of residuals (...): 1 / (1 + (r / width)^2)."""
    _check_width(width)
    return 1.0 / (1.0 + (residual / width) ** 2)


def tukey_weight(residual: Tensor, width: float) -> Tensor:
    """Weight in [0, 1] of residuals (...): (1 - (r / width)^2)^2, zero beyond `width`.

    Source: Beaton and Tukey, Technometrics 1974; 4.685 sigma has 95 % efficiency.
    """
    _check_width(width)
    return (1.0 - (residual / width) ** 2).clamp(min=0.0) ** 2


def mad_sigma(residual: Tensor) -> Tensor:
    """Standard deviation from the median absolute deviation over the last axis, (..., P) to (...).

    Raises:
        GeometryError: no residual, or one that is not finite.
    """
    centre = median(residual).unsqueeze(-1)
    return MAD_TO_SIGMA * median((residual - centre).abs())


def median(values: Tensor) -> Tensor:
    """Median over the last axis, the mean of the middle two for an even count.

    Raises:
        GeometryError: no value, or one that is not finite.
    """
    _check_values(values)
    ordered = values.sort(dim=-1).values
    count = values.shape[-1]
    return 0.5 * (ordered[..., (count - 1) // 2] + ordered[..., count // 2])


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Smallest value (...) at which half of the weight is reached, over the last axis.

    Raises:
        GeometryError: shapes differ, a value is not finite, or no weight is above zero.
    """
    _check_values(values)
    check_weights(weights, "weights", values.shape)
    ordered, order = values.sort(dim=-1)
    reached = weights.gather(-1, order).cumsum(dim=-1)
    total = reached[..., -1:]
    if not bool((total > 0).all()):
        raise GeometryError("the weights of a median are all zero; select other values")
    first = (reached < 0.5 * total).sum(dim=-1, keepdim=True)
    return ordered.gather(-1, first).squeeze(-1)


def _check_values(values: Tensor) -> None:
    check_shape(values, "values", -1)
    if values.shape[-1] == 0:
        raise GeometryError("no value to take a median of; expected at least one")
    check_finite(values, "values")


def _check_width(width: float) -> None:
    if not 0.0 < width < float("inf"):
        raise GeometryError(f"the width of a robust weight is {width}; expected a positive number")


def lmeds_sigma(squared_residual: Tensor, num_unknowns: int) -> Tensor:
    """Standard deviation (...) of the inliers from squared residuals (..., P), P > num_unknowns.

    Source: Rousseeuw and Leroy, Robust Regression and Outlier Detection, 1987, chapter 5.

    Raises:
        GeometryError: too few residuals, or one that is not finite.
    """
    spare = squared_residual.shape[-1] - num_unknowns
    if spare < 1:
        raise GeometryError(
            f"{squared_residual.shape[-1]} residuals cannot give a scale for {num_unknowns} "
            "unknowns; expected more residuals than unknowns"
        )
    return MAD_TO_SIGMA * (1.0 + 5.0 / spare) * torch.sqrt(median(squared_residual))

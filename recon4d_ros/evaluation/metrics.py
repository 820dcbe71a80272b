"""Figures of merit shared by the trajectory, depth and mask comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import EvaluationError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorStatistics:
    """Summary of a set of non-negative errors, in the unit of the errors.

    Attributes:
        rmse, mean, median, max: as their names say.
        count: number of errors.
    """

    rmse: float
    mean: float
    median: float
    max: float
    count: int


def summarise(errors: FloatArray) -> ErrorStatistics:
    """Statistics of (N,) errors.

    Raises:
        EvaluationError: there is none, or one is not finite.
    """
    if errors.size == 0:
        raise EvaluationError("no error to summarise; expected at least one matched pair")
    if not np.isfinite(errors).all():
        bad = int((~np.isfinite(errors)).sum())
        raise EvaluationError(f"{bad} of {errors.size} errors are not finite; check the poses")
    return ErrorStatistics(
        rmse=float(np.sqrt(np.mean(errors**2))),
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        max=float(errors.max()),
        count=int(errors.size),
    )


def mean_of_finite(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else float("nan")

"""Loud checks of tensors at the doors of the geometry functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError

_LAST_ROW = [0.0, 0.0, 0.0, 1.0]


def check_shape(tensor: Tensor, name: str, *last: int) -> None:
    """Require floating point and the given last axes; -1 stands for any length.

    Raises:
        GeometryError: the tensor is not of floating type or its last axes differ.
    """
    shape = tuple(tensor.shape)
    fits = len(shape) >= len(last) and all(
        want in (-1, have)
        for want, have in zip(last, shape[len(shape) - len(last) :], strict=True)
    )
    if not fits:
        want = ", ".join("any" if length == -1 else str(length) for length in last)
        raise GeometryError(f"{name} has shape {shape}; expected (..., {want})")
    if not tensor.is_floating_point():
        raise GeometryError(f"{name} is {tensor.dtype}; convert it to float32 or float64")


def check_finite(tensor: Tensor, name: str) -> None:
    """Require finite values.

    Raises:
        GeometryError: a value is NaN or infinite.
    """
    # One pass and no mask. Only if large values overflow the sum must each be looked at.
    if math.isfinite(float(tensor.detach().sum())):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise GeometryError(
            f"{name} has {bad} of {tensor.numel()} values that are not finite; "
            "select the valid entries first"
        )


def check_transform(matrix: Tensor, name: str) -> None:
    """Require finite (..., 4, 4) matrices whose last row is 0 0 0 1.

    Raises:
        GeometryError: shape, type, values or last row are wrong.
    """
    check_shape(matrix, name, 4, 4)
    check_finite(matrix, name)
    if matrix.ndim == 2:
        fits = matrix[3].tolist() == _LAST_ROW
    else:
        fits = bool((matrix[..., 3, :] == matrix.new_tensor(_LAST_ROW)).all())
    if not fits:
        raise GeometryError(f"the last row of {name} is not 0 0 0 1; expected a 4x4 transform")


def check_rotation(rotation: Tensor, name: str) -> None:
    """Require finite (..., 3, 3) orthonormal matrices of determinant +1.

    Raises:
        GeometryError: shape, type or values are wrong, or the matrix is no rotation.
    """
    check_shape(rotation, name, 3, 3)
    check_finite(rotation, name)
    tolerance = 1e-3 if rotation.dtype in (torch.float16, torch.bfloat16, torch.float32) else 1e-6
    error, is_mirrored = (_of_one if rotation.ndim == 2 else _of_many)(rotation.detach())
    if error > tolerance or is_mirrored:
        raise GeometryError(
            f"{name} is no rotation: R R^T differs from I by {error:.2g} or det R < 0; "
            "split the scale off or orthonormalise it first"
        )


def _of_one(rotation: Tensor) -> tuple[float, bool]:
    """As `_of_many`; most come alone, and of nine numbers Python takes a tenth of the time."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    lengths = a * a + b * b + c * c - 1, d * d + e * e + f * f - 1, g * g + h * h + i * i - 1
    angles = a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return max(map(abs, (*lengths, *angles))), determinant < 0


def _of_many(rotation: Tensor) -> tuple[float, bool]:
    """Largest difference of R R^T from I, and whether a determinant is negative."""
    identity = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    error = (rotation @ rotation.mT - identity).abs().amax() if rotation.numel() else 0.0
    return float(error), bool((torch.linalg.det(rotation) < 0).any())


def check_positive(tensor: Tensor, name: str) -> None:
    """Require finite values above zero.

    Raises:
        GeometryError: a value is zero, negative or not finite.
    """
    check_finite(tensor, name)
    if not bool((tensor > 0).all()):
        raise GeometryError(
            f"{name} must be above zero; its smallest value is {float(tensor.min())}"
        )


def check_weights(weights: Tensor, name: str, shape: torch.Size) -> None:
    """Require finite weights of a given shape, none negative and not all zero.

    Raises:
        GeometryError: shape or values are wrong.
    """
    if weights.shape != shape:
        raise GeometryError(f"{name} has shape {tuple(weights.shape)}; expected {tuple(shape)}")
    check_finite(weights, name)
    if bool((weights < 0).any()):
        raise GeometryError(f"{name} holds negative values; weights lie in [0, 1]")

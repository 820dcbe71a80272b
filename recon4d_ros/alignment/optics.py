"""The camera all frames of a clip share: given, or one focal length to be estimated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.alignment.pairs import Array
from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import AlignmentError


@dataclass(frozen=True)
class Optics:
    """What is known of the camera before alignment.

    Attributes:
        size: (height, width).
        centre_px: principal point.
        aspect: fx / fy.
        focal_px: fx if given; None when it is to be estimated.
    """

    size: tuple[int, int]
    centre_px: tuple[float, float]
    aspect: float = 1.0
    focal_px: float | None = None

    @property
    def free(self) -> bool:
        """Whether the focal length is to be estimated."""
        return self.focal_px is None

    def squared(self, uv: Tensor) -> Tensor:
        """Pixels (..., 2) of the camera with square pixels, of fx and the same centre."""
        if self.aspect == 1.0:
            return uv
        centre = uv.new_tensor(self.centre_px)
        return centre + (uv - centre) * uv.new_tensor([1.0, self.aspect])

    def intrinsics(self, focal_px: Tensor | float) -> Intrinsics:
        """The camera with a focal length."""
        fx, (height, width) = float(focal_px), self.size
        return Intrinsics(fx, fx / self.aspect, *self.centre_px, width, height)

    def matrix(self, focal_px: Tensor | float) -> Tensor:
        """Camera matrix (3, 3) float32."""
        return self.intrinsics(focal_px).K.float()


def estimated(size: tuple[int, int], principal_point: str) -> Optics:
    """A camera of unknown focal length, its principal point by convention.

    Args:
        size: (height, width).
        principal_point: "half_size" for W/2, H/2, "centre" for (W - 1)/2, (H - 1)/2; the first
            pixel's centre is (0, 0) in both.
    """
    less = {"half_size": 0.0, "centre": 1.0}[principal_point]
    return Optics(size, ((size[1] - less) / 2, (size[0] - less) / 2))


def given(intrinsics: Intrinsics | Array, size: tuple[int, int]) -> Optics:
    """A known camera.

    Raises:
        AlignmentError: it is of another size, no (3, 3) matrix, skewed or without focal length.
    """
    if isinstance(intrinsics, Intrinsics):
        if intrinsics.size != size:
            raise AlignmentError(
                f"intrinsics are of images of (height, width) = {intrinsics.size}, the points of "
                f"{size}; resize the intrinsics with the images"
            )
        K = intrinsics.K
    else:
        K = torch.as_tensor(intrinsics).detach().cpu().double()
    if K.shape != (3, 3) or not bool(K.isfinite().all()) or not bool(K.diagonal().min() > 0):
        raise AlignmentError(
            f"intrinsics are {K.tolist()}; expected a finite (3, 3) camera matrix in px with "
            "focal lengths above zero, shared by all frames"
        )
    if abs(float(K[0, 1])) > 1e-6 * float(K[0, 0]):
        raise AlignmentError(
            f"intrinsics have a skew of {float(K[0, 1]):g} px; rectify the images"
        )
    fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
    return Optics(size, (cx, cy), fx / fy, fx)

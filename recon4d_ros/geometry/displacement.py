"""How far surface points moved between two times, in units of their own noise.

A network's points err far more along the ray than across it, so both parts are compared with
noise of their own, estimated from the points themselves: at least half of them stand still.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.geometry.checks import check_shape
from recon4d_ros.geometry.robust import HALF_NORMAL_MEDIAN, RAYLEIGH_MEDIAN

# The mean over 3 x 3 pixels reaches beyond the outline of what moves; a pixel's own displacement,
# with three times the noise, limits it.
_OWN_SHARE = 2.0
# Median length of a standard normal vector of three dimensions.
_MEDIAN_LENGTH = 1.5382
# Noise along the ray over that across it, at the floor; networks know directions far better.
_ALONG_OVER_ACROSS = 4.0


@dataclass(frozen=True, eq=False)
class Displacement:
    """Displacements over their noise.

    Attributes:
        squared: (..., H, W) squared Mahalanobis length, three degrees of freedom where nothing
            moves; NaN where unknown.
        sigma_along: (...) noise along the ray, over the distance; NaN when no pixel is known.
        sigma_across: (...) noise across the ray, over the distance.
    """

    squared: Tensor
    sigma_along: Tensor
    sigma_across: Tensor

    def excess(self, factor: float) -> Tensor:
        """Squared length (..., H, W) over that of `factor` medians; above 1 speaks for motion.

        Source: POMATO, arXiv 2504.05692, section 3.3, with the noise of each direction for unit.
        """
        return self.squared / (factor * _MEDIAN_LENGTH) ** 2


def displacement(points: Tensor, moved: Tensor, floor: float = 0.0) -> Displacement:
    """Compare pointmaps of the same pixels in one camera; each has noise of its own.

    Args:
        points: (..., H, W, 3), NaN where unknown.
        moved: (..., H, W, 3), the same surface points at another time.
        floor: noise across the ray, over the distance, that is always granted; four times as
            much along it.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points, "points", -1, -1, 3)
    check_shape(moved, "moved", *points.shape)
    # Planes (..., 3, H, W): sums over the three components are then sums of planes.
    points, moved = points.movedim(-1, -3).contiguous(), moved.movedim(-1, -3)
    distance = _length(points)
    ray, relative = points / distance, (moved - points) / distance
    mean = _standardised(_smoothed(relative), ray, floor)
    single = _standardised(relative, ray, 0.0)
    squared = torch.minimum(mean.squared, _OWN_SHARE**2 * single.squared)
    return Displacement(squared, mean.sigma_along, mean.sigma_across)


def _standardised(relative: Tensor, ray: Tensor, floor: float) -> Displacement:
    """Displacements (..., 3, H, W), over the distance, by their noise along and across the ray."""
    along = (relative * ray).sum(dim=-3, keepdim=True)
    across = _length(relative - along * ray).squeeze(-3)
    along = along.squeeze(-3)
    tiny = torch.finfo(relative.dtype).tiny ** 0.5
    sigma_along = _median(along.abs()) / HALF_NORMAL_MEDIAN
    sigma_along = sigma_along.clamp(min=max(_ALONG_OVER_ACROSS * floor, tiny))
    sigma_across = (_median(across) / RAYLEIGH_MEDIAN).clamp(min=max(floor, tiny))
    squared = (along / sigma_along[..., None, None]) ** 2
    squared = squared + (across / sigma_across[..., None, None]) ** 2
    return Displacement(squared, sigma_along, sigma_across)


def _smoothed(field: Tensor) -> Tensor:
    """Mean (..., 3, H, W) over 3 x 3 pixels: surfaces are larger than that, noise is not.

    NaN spreads to the neighbours.
    """
    planes = field.flatten(0, -4) if field.ndim > 4 else field
    mean = functional.avg_pool2d(planes, 3, stride=1, padding=1, count_include_pad=False)
    return mean.reshape(field.shape)


def _length(planes: Tensor) -> Tensor:
    """Lengths (..., 1, H, W) of vectors (..., 3, H, W)."""
    return planes.square().sum(dim=-3, keepdim=True).sqrt()


def _median(values: Tensor) -> Tensor:
    """Medians (...) of the finite values of maps (..., H, W); NaN where there is none."""
    flat = values.flatten(-2)
    return torch.where(flat.isfinite(), flat, torch.nan).nanmedian(dim=-1).values

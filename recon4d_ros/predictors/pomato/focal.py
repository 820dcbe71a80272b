"""The focal length that a pointmap in its own camera implies."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.geometry.camera import pixel_grid

_STEPS = 10
_TINY = 1e-8
# Fewer points than this, or a focal length outside this range over the long side (11 to 143
# degrees of view), are no estimate.
_MIN_POINTS = 100
_RANGE = (0.17, 5.0)


def weiszfeld_focal(points: Tensor, use: Tensor, source: tuple[int, int]) -> float | None:
    """Focal length in px of an image (height, width) = `source` with square pixels.

    Minimises the sum of the distances |p - f (x, y) / z| of the pixels p from the image's centre,
    by reweighted least squares. Source: Weiszfeld, 1937; as used in DUSt3R, arXiv 2312.14132, 3.3.

    Args:
        points: (H, W, 3) in the camera that sees them; the grid is the image resized.
        use: (H, W) bool, points to be trusted.
        source: size of the image before it was resized.

    Returns:
        None when too few points are usable or no camera looks like this.
    """
    size = (points.shape[0], points.shape[1])
    use = use & (points[..., 2] > 0) & points.isfinite().all(dim=-1)
    if int(use.sum()) < _MIN_POINTS:
        return None
    uv = pixel_grid(size, torch.float64) + 0.5
    stretch = uv.new_tensor([source[1] / size[1], source[0] / size[0]])
    offset = (uv * stretch - uv.new_tensor([source[1] / 2, source[0] / 2]))[use]
    chosen = points[use].double()
    slope = chosen[:, :2] / chosen[:, 2:]
    weight = torch.ones_like(slope[:, :1])
    focal = torch.zeros((), dtype=torch.float64)
    for _ in range(_STEPS + 1):
        focal = (weight * offset * slope).sum() / (weight * slope * slope).sum()
        distance = torch.linalg.vector_norm(offset - focal * slope, dim=-1, keepdim=True)
        weight = 1.0 / distance.clamp(min=_TINY)
    relative = float(focal) / max(source)
    return float(focal) if _RANGE[0] < relative < _RANGE[1] else None

"""The focal length that a pointmap in its own camera implies."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.geometry import camera
from recon4d_ros.geometry.camera import pixel_grid

# Fewer points than this, or a focal length outside this range over the long side (11 to 143
# degrees of view), are no estimate.
_MIN_POINTS = 100
_RANGE = (0.17, 5.0)


def weiszfeld_focal(points: Tensor, use: Tensor, source: tuple[int, int]) -> float | None:
    """Focal length in px of an image (height, width) = `source` with square pixels.

    Minimises the sum of the distances |p - f (x, y) / z| of the pixels p from the image's centre,
    see `camera.weiszfeld_focal`.

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
    focal = camera.weiszfeld_focal(offset, slope, torch.ones_like(slope[:, 0]))
    relative = float(focal) / max(source)
    return float(focal) if _RANGE[0] < relative < _RANGE[1] else None

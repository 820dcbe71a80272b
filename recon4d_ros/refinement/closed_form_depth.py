"""The depth at which a pixel comes nearest to where smoothing wants its point.

With pose and intrinsics fixed, a pixel's point moves along its ray alone, so C4D's second stage
(depth against smoothed points) has a solution in closed form for its least-squares version.
"""

from __future__ import annotations

from torch import Tensor

from recon4d_ros.geometry.checks import check_shape


def closed_form_depth(points_cam: Tensor, displacement_cam: Tensor, max_change: float) -> Tensor:
    """Depth (H, W) whose points are nearest to the displaced ones; NaN where either is unknown.

    A point X = d r on its ray r is wanted at X + D. The squared distance is least at the depth
    r . (X + D) / (r . r), which is d (1 + X . D / (X . X)). What D does sideways, depth cannot
    follow.

    Args:
        points_cam: (H, W, 3) in the camera's frame.
        displacement_cam: (H, W, 3) in the same.
        max_change: depth stays within the factors 1 / (1 + max_change) and 1 + max_change.

    Raises:
        GeometryError: wrong shapes.
    """
    check_shape(points_cam, "points_cam", -1, -1, 3)
    check_shape(displacement_cam, "displacement_cam", *points_cam.shape)
    x, y, z = points_cam.unbind(dim=-1)
    dx, dy, dz = displacement_cam.unbind(dim=-1)
    factor = 1.0 + (x * dx + y * dy + z * dz) / (x * x + y * y + z * z)
    return z * factor.clamp(1.0 / (1.0 + max_change), 1.0 + max_change)

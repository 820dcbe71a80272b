"""From the camera's image to the network's: the whole image, sides in whole patches."""

from __future__ import annotations

from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.geometry.image_grid import Size, resize_image, resize_intrinsics
from recon4d_ros.networks.pomato.sizes import PATCH


def network_size(size: Size, long_side: int) -> Size:
    """(height, width) at which the network sees images of `size`.

    The image is resized, not cropped, so that depth and masks cover all of it; rounding to whole
    patches changes its proportions by a few per cent at most, and K with them.
    """
    factor = long_side / max(size)
    height, width = (max(PATCH, PATCH * round(side * factor / PATCH)) for side in size)
    return height, width


def network_image(rgb: Tensor, size: Size) -> Tensor:
    """Image (h, w, 3) uint8 of a frame (H, W, 3) uint8."""
    return resize_image(rgb, size)


def camera_of_focal(focal: float, source: Size, size: Size) -> Intrinsics:
    """Intrinsics on the network's grid of a camera with square pixels and its axis centred.

    Args:
        focal: of the image before it was resized, px.
        source: (height, width) of that image.
        size: (height, width) of the grid.
    """
    height, width = source
    camera = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)
    return resize_intrinsics(camera, size)

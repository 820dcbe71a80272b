"""The only place that resizes or crops: maps, intrinsics and coordinates by one rule.

Convention: the centre of the first pixel is (0, 0), so resizing by s maps u to (u + 0.5) s - 0.5
and cx likewise, fx to s fx. Maps have their channels last: (..., H, W) or (..., H, W, C).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry.checks import check_shape

Size = tuple[int, int]


@overload
def fit_long_side(grid: Intrinsics, max_side: int) -> Intrinsics: ...
@overload
def fit_long_side(grid: Size, max_side: int) -> Size: ...
def fit_long_side(grid: Intrinsics | Size, max_side: int) -> Intrinsics | Size:
    """Shrink a size (height, width), or intrinsics, so that the long side is at most `max_side`.

    The aspect ratio is kept up to rounding; a grid that fits already is returned unchanged.

    Raises:
        GeometryError: a side or `max_side` is below 1.
    """
    height, width = grid.size if isinstance(grid, Intrinsics) else grid
    _check_size((height, width))
    if max_side < 1:
        raise GeometryError(f"max_side is {max_side}; expected at least 1 px")
    factor = min(1.0, max_side / max(height, width))
    # Integer rounding to the nearest, so that equal inputs give equal sizes everywhere.
    size = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    return resize_intrinsics(grid, size) if isinstance(grid, Intrinsics) else size


def resize_intrinsics(intrinsics: Intrinsics, size: Size) -> Intrinsics:
    """Intrinsics of the same camera after its image was resized to `size` = (height, width)."""
    _check_size(size)
    height, width = size
    sx, sy = width / intrinsics.width, height / intrinsics.height
    return Intrinsics(
        fx=intrinsics.fx * sx,
        fy=intrinsics.fy * sy,
        cx=(intrinsics.cx + 0.5) * sx - 0.5,
        cy=(intrinsics.cy + 0.5) * sy - 0.5,
        width=width,
        height=height,
    )


def resize_uv(uv: Tensor, source: Size, target: Size) -> Tensor:
    """Pixel coordinates (..., 2) of a `source`-sized map in its `target`-sized copy.

    Raises:
        GeometryError: wrong shape or an empty size.
    """
    check_shape(uv, "uv", 2)
    return (uv + 0.5) * _factors(source, target, uv) - 0.5


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Image (..., H, W, C), uint8 or float, smoothed when shrunk and bilinear when enlarged.

    Raises:
        GeometryError: wrong shape, type or an empty size.
    """
    if image.dtype != torch.uint8:
        check_shape(image, "image", -1, -1, -1)
    elif image.ndim < 3:
        raise GeometryError(f"image has shape {tuple(image.shape)}; expected (..., H, W, C)")
    if _same(image.shape[-3:-1], size):
        return image
    planes = image.reshape(-1, *image.shape[-3:]).movedim(-1, 1)
    resized = functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return resized.movedim(1, -1).reshape(*image.shape[:-3], *size, image.shape[-1])


def resize_depth(depth: Tensor, size: Size) -> Tensor:
    """Map (..., H, W) of any type by the nearest pixel, so that depths and labels never mix.

    Raises:
        GeometryError: fewer than two axes or an empty size.
    """
    if depth.ndim < 2:
        raise GeometryError(f"depth has shape {tuple(depth.shape)}; expected (..., H, W)")
    if _same(depth.shape[-2:], size):
        return depth
    rows = _nearest(depth.shape[-2], size[0], depth.device)
    columns = _nearest(depth.shape[-1], size[1], depth.device)
    return depth[..., rows, :][..., columns]


def resize_mask(mask: Tensor, size: Size, threshold: float = 0.5) -> Tensor:
    """Mask (..., H, W) bool: True where the covered share exceeds `threshold`.

    Raises:
        GeometryError: the mask is not bool or the size is empty.
    """
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise GeometryError(f"mask is {mask.dtype} {tuple(mask.shape)}; expected bool (..., H, W)")
    if _same(mask.shape[-2:], size):
        return mask
    return resize_image(mask.float().unsqueeze(-1), size).squeeze(-1) > threshold


def resize_flow(flow: Tensor, size: Size) -> Tensor:
    """Flow (..., H, W, 2) on the resized grid, in pixels of the resized grid.

    Both images are taken to be resized alike. NaN spreads to the pixels that use it.

    Raises:
        GeometryError: wrong shape or an empty size.
    """
    check_shape(flow, "flow", -1, -1, 2)
    source = (flow.shape[-3], flow.shape[-2])
    return resize_image(flow, size) * _factors(source, size, flow)


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels of an image."""

    top: int
    left: int
    height: int
    width: int

    def check_inside(self, size: Size) -> None:
        """Require that the box lies in an image of `size`.

        Raises:
            GeometryError: it does not, or it is empty.
        """
        fits_rows = self.top >= 0 and self.top + self.height <= size[0]
        fits_columns = self.left >= 0 and self.left + self.width <= size[1]
        if min(self.height, self.width) < 1 or not (fits_rows and fits_columns):
            raise GeometryError(f"{self} does not lie in an image of (height, width) = {size}")


def crop_map(dense: Tensor, box: Box) -> Tensor:
    """View (..., h, w) of a map (..., H, W).

    Raises:
        GeometryError: the box leaves the map.
    """
    box.check_inside((dense.shape[-2], dense.shape[-1]))
    rows = slice(box.top, box.top + box.height)
    return dense[..., rows, box.left : box.left + box.width]


def crop_image(image: Tensor, box: Box) -> Tensor:
    """View (..., h, w, C) of an image (..., H, W, C).

    Raises:
        GeometryError: the box leaves the image.
    """
    return crop_map(image.movedim(-1, 0), box).movedim(0, -1)


def crop_intrinsics(intrinsics: Intrinsics, box: Box) -> Intrinsics:
    """Intrinsics of the same camera after its image was cropped.

    Raises:
        GeometryError: the box leaves the image.
    """
    box.check_inside(intrinsics.size)
    return dataclasses.replace(
        intrinsics,
        cx=intrinsics.cx - box.left,
        cy=intrinsics.cy - box.top,
        width=box.width,
        height=box.height,
    )


def crop_uv(uv: Tensor, box: Box) -> Tensor:
    """Pixel coordinates (..., 2) of the uncropped image in the cropped one."""
    check_shape(uv, "uv", 2)
    return uv - uv.new_tensor([box.left, box.top])


def _factors(source: Size, target: Size, like: Tensor) -> Tensor:
    _check_size(source)
    _check_size(target)
    return like.new_tensor([target[1] / source[1], target[0] / source[0]])


def _same(shape: torch.Size, size: Size) -> bool:
    _check_size(size)
    return tuple(shape) == tuple(size)


def _check_size(size: Size) -> None:
    if min(size) < 1:
        raise GeometryError(f"size (height, width) = {size} is empty; expected at least 1 x 1")


def _nearest(source: int, target: int, device: torch.device) -> Tensor:
    """Source index whose centre is nearest to each target centre."""
    centres = (torch.arange(target, dtype=torch.float64, device=device) + 0.5) * (source / target)
    return centres.floor().long().clamp(max=source - 1)

"""Brightness of one image over another's: a camera with automatic exposure changes it any time.

Lucas-Kanade, the refinement of dense flow and comparisons of patches all take grey levels for
constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 4  # of the pixels looked at; small motion does not show
_DARKEST, _BRIGHTEST = 16.0, 240.0  # noise and saturation beyond
_LEAST_SHARE = 0.1  # of the pixels
_LEAST_CHANGE = 0.01  # constant exposure measures less


def matched(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two images as if equally exposed: the brighter one is dimmed, so that nothing saturates.

    Args:
        one: (H, W) or (H, W, C) uint8.
        other: of the same size and about the same view.

    Returns:
        The images themselves where their exposure is equal.
    """
    ratio = brightness_ratio(one, other)
    if abs(ratio - 1) < _LEAST_CHANGE:
        return one, other
    if ratio > 1:
        return one, _dimmed(other, 1 / ratio)
    return _dimmed(one, ratio), other


def brightness_ratio(one: Tensor, other: Tensor) -> float:
    """Brightness of the other image over the one's: median over the view.

    1 where too little is neither dark nor saturated to tell.
    """
    a, b = _reduced(one), _reduced(other)
    usable = (torch.minimum(a, b) > _DARKEST) & (torch.maximum(a, b) < _BRIGHTEST)
    if usable.float().mean() < _LEAST_SHARE:
        return 1.0
    return float(torch.where(usable, b / a, torch.nan).nanmedian())


def _reduced(image: Tensor) -> Tensor:
    """Mean grey levels (h, w) of two by two pixels far apart; pooling takes ten times as long."""
    values = image[::_STEP, ::_STEP].float()
    values = values if image.ndim == 2 else values.mean(dim=-1)
    height, width = (side - side % 2 for side in values.shape)
    pairs = values[:height:2] + values[1:height:2]
    return 0.25 * (pairs[:, :width:2] + pairs[:, 1:width:2])


def _dimmed(image: Tensor, factor: float) -> Tensor:
    return (image * factor).round_().to(torch.uint8)

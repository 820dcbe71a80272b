"""Images as our networks take them."""

from __future__ import annotations

import torch
from torch import Tensor


def network_images(rgb: Tensor) -> Tensor:
    """Images (..., 3, H, W) float32 in [-1, 1] of (..., H, W, 3) uint8."""
    return rgb.movedim(-1, -3).to(torch.float32) / 127.5 - 1.0

"""Means over a part of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean () of the values (...) where the mask (...) is True, 0 where it nowhere is.

    Values elsewhere may be NaN and get no gradient; where they came from, they must be finite.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)

"""Depth for what triangulation cannot see: moving surfaces."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.datatypes import Reconstruction

# Confidence of borrowed depth: below anything measured (classical: at least 1 / 0.2).
BORROWED_CONFIDENCE = 0.1


def borrow_depth(depth: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Give the wanted pixels the mean inverse depth of the known pixels around them.

    The mean is taken over the smallest square neighbourhood (sides doubling from level to level)
    that holds a known pixel.

    Args:
        depth: (H, W) float32, NaN where unknown.
        wanted: (H, W) bool; their own depth is not used.

    Returns:
        (H, W) depth and (H, W) bool, which pixels were filled. Nothing is filled when no pixel
        outside `wanted` is known.
    """
    known = depth.isfinite() & ~wanted
    if not bool(known.any()) or not bool(wanted.any()):
        return torch.where(wanted, torch.nan, depth), torch.zeros_like(wanted)
    rho = torch.where(known, 1.0 / torch.where(known, depth, 1.0), 0.0)
    mean = _pyramid_mean(rho[None, None], known[None, None].to(rho))[0, 0]
    return torch.where(wanted, 1.0 / mean, depth), wanted.clone()


def _pyramid_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Weighted means from the finest level of a pyramid that has any weight; (1, 1, H, W)."""
    if min(value.shape[-2:]) > 1:
        half = [functional.avg_pool2d(x, 2, ceil_mode=True) for x in (value, weight)]
        coarse = _pyramid_mean(*half)
        coarse = functional.interpolate(coarse, value.shape[-2:], mode="bilinear")
    else:
        coarse = (value.sum() / weight.sum()).expand_as(value)
    return torch.where(weight > 0, value / weight.clamp_min(1e-12), coarse)


def complete(reconstruction: Reconstruction) -> Reconstruction:
    """Moving pixels get a low-confidence depth from their surroundings, flagged as filled."""
    if not reconstruction.is_dense:
        return reconstruction
    depth, filled = borrow_depth(reconstruction.depth, reconstruction.dynamic_mask)
    confidence = torch.where(filled, BORROWED_CONFIDENCE, reconstruction.confidence)
    confidence = torch.where(depth.isfinite(), confidence, 0.0)
    return replace(
        reconstruction,
        depth=depth,
        confidence=confidence,
        filled=reconstruction.filled | filled,
    )

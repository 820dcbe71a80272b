"""Losses of the point tracker.

Source: C4D (ICCV 2025), supplement (confidence within 12 px, mobility labels by the motion
of objects); CoTracker3, arXiv 2410.11831, section 3.3 (position, visibility and confidence over
the refinements).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.training.config import TrackLossConfig
from recon4d_ros.training.masked import masked_mean


def track_losses(
    estimates: Sequence[TrackState], clips: Clips, weights: TrackLossConfig
) -> dict[str, Tensor]:
    """Weighted terms () of the loss, each averaged over the refinements; their sum is the loss.

    Frames before a point's query count nowhere.
    """
    asked = asked_frames(clips)
    last = len(estimates) - 1
    rows = [
        _losses(estimate, clips, asked, weights, weights.gamma ** (last - number))
        for number, estimate in enumerate(estimates)
    ]
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


def _losses(
    estimate: TrackState, clips: Clips, asked: Tensor, weights: TrackLossConfig, decay: float
) -> dict[str, Tensor]:
    radius_px = weights.radius_share * max(clips.rgb.shape[2:4])
    seen, hidden = position_losses(estimate.uv, clips, asked, weights.huber_px)
    return {
        "visible": decay * weights.visible * seen,
        "hidden": decay * weights.hidden * hidden,
        "visibility": weights.visibility
        * visibility_loss(estimate.visibility_logit, clips, asked),
        "confidence": weights.confidence
        * confidence_loss(estimate.confidence_logit, estimate.uv, clips, asked, radius_px),
        "mobility_frame": weights.mobility_frame
        * balanced_loss(
            estimate.mobility_logit, clips.moves_in_frame, asked & clips.is_judged[:, None]
        ),
        "mobility_clip": weights.mobility_clip
        * balanced_loss(
            estimate.clip_mobility(), clips.moves_in_clip, asked.any(dim=1) & clips.is_judged
        ),
    }


def asked_frames(clips: Clips) -> Tensor:
    """(B, T, N) bool, the frame is a point's query frame or a later one."""
    frames = torch.arange(clips.tracks.shape[1], device=clips.queries.device)
    return frames[None, :, None] >= clips.queries[:, None, :, 0]


def position_losses(
    uv: Tensor, clips: Clips, asked: Tensor, huber_px: float
) -> tuple[Tensor, Tensor]:
    """Huber loss, px squared, where points are seen, and absolute error, px, where hidden.

    Both are means over coordinates; a position that the truth does not know counts nowhere.
    """
    known = clips.tracks.isfinite().all(dim=-1)
    error = uv - torch.where(known[..., None], clips.tracks, uv.detach())
    huber = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=huber_px)
    seen = clips.visibility & asked & known
    hidden = ~clips.visibility & asked & known
    return masked_mean(huber.mean(dim=-1), seen), masked_mean(error.abs().mean(dim=-1), hidden)


def visibility_loss(logit: Tensor, clips: Clips, asked: Tensor) -> Tensor:
    """Cross entropy of the visibility."""
    target = clips.visibility.to(logit.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return masked_mean(entropy, asked)


def confidence_loss(
    logit: Tensor, uv: Tensor, clips: Clips, asked: Tensor, radius_px: float
) -> Tensor:
    """Cross entropy, where points are seen, of the error's being within `radius_px`.

    No gradient reaches the positions.
    """
    error_px = torch.linalg.vector_norm(uv.detach() - clips.tracks, dim=-1)
    target = (error_px <= radius_px).to(logit.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return masked_mean(entropy, clips.visibility & asked & error_px.isfinite())


def balanced_loss(logit: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Cross entropy with equal weight to True and to False, however few there are of one.

    Where only one of them occurs, it decides alone.
    """
    entropy = functional.binary_cross_entropy_with_logits(
        logit, target.to(logit.dtype), reduction="none"
    )
    sides = [counted & target, counted & ~target]
    num_sides = sum(side.any().to(logit.dtype) for side in sides)
    total = sum(masked_mean(entropy, side) for side in sides)
    return torch.as_tensor(total / torch.as_tensor(num_sides).clamp(min=1))

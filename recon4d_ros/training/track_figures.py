"""A few figures of a tracker on held-out clips, to be watched while it trains.

Source: Doersch et al., TAP-Vid, arXiv 2211.03726, section 3 (< delta_avg and occlusion accuracy,
after the query); C4D (ICCV 2025), supplement (mobility).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.networks.dynpt import TrackState
from recon4d_ros.training.track_losses import asked_frames

# Errors below which a position counts as right, in px of an image of 256 x 256.
_THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)
_THRESHOLD_SIZE = 256.0


@dataclass
class TrackFigures:
    """Counts over batches of clips, and the figures they make."""

    _errors_px: list[Tensor] = field(default_factory=list)
    _within: list[Tensor] = field(default_factory=list)
    _occlusion: list[Tensor] = field(default_factory=list)
    _clip_scores: list[Tensor] = field(default_factory=list)
    _clip_moves: list[Tensor] = field(default_factory=list)
    _frame_scores: list[Tensor] = field(default_factory=list)
    _frame_moves: list[Tensor] = field(default_factory=list)

    def add(self, estimate: TrackState, clips: Clips) -> None:
        """Count the frames after each point's query."""
        asked = asked_frames(clips)
        frames = torch.arange(asked.shape[1], device=asked.device)
        later = frames[None, :, None] > clips.queries[:, None, :, 0]
        seen = later & clips.visibility & clips.tracks.isfinite().all(dim=-1)
        height, width = clips.rgb.shape[2:4]
        scale = torch.tensor([width, height], device=asked.device) / _THRESHOLD_SIZE
        error = estimate.uv - clips.tracks
        self._errors_px.append(torch.linalg.vector_norm(error, dim=-1)[seen].cpu())
        self._within.append(torch.linalg.vector_norm(error / scale, dim=-1)[seen].cpu())
        says_seen = estimate.visibility_logit > 0.0
        self._occlusion.append((says_seen == clips.visibility)[later].cpu())
        judged = clips.is_judged
        self._clip_scores.append(estimate.clip_mobility()[judged].cpu())
        self._clip_moves.append(clips.moves_in_clip[judged].cpu())
        counted = judged[:, None] & asked
        self._frame_scores.append(estimate.mobility_logit[counted].cpu())
        self._frame_moves.append(clips.moves_in_frame[counted].cpu())

    def figures(self) -> dict[str, float]:
        """Position error, px; the rest as shares in [0, 1], NaN where nothing was counted."""
        errors_px, within = torch.cat(self._errors_px), torch.cat(self._within)
        shares = [(within < threshold).float().mean() for threshold in _THRESHOLDS_PX]
        clip = _recalls(torch.cat(self._clip_scores), torch.cat(self._clip_moves))
        frame = _recalls(torch.cat(self._frame_scores), torch.cat(self._frame_moves))
        return {
            "median_error_px": float(errors_px.quantile(0.5)) if len(errors_px) else torch.nan,
            "mean_error_px": float(errors_px.mean()),
            "delta_avg": float(torch.stack(shares).mean()),
            "occlusion_accuracy": float(torch.cat(self._occlusion).float().mean()),
            "mobility_accuracy": sum(clip) / 2.0,
            "mobility_recall": clip[0],
            "mobility_frame_accuracy": sum(frame) / 2.0,
        }


def _recalls(scores: Tensor, moves: Tensor) -> tuple[float, float]:
    """Shares of the moving and of the standing that a score above 0, or below, tells right."""
    says = scores > 0.0
    return float(says[moves].float().mean()), float((~says)[~moves].float().mean())

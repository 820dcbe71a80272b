"""Smoothing of 3D point tracks over time, the first half of C4D's point trajectory smoothness.

A smoothed point is a weighted mean, or for moving tracks of the robust form a weighted straight
line, of its neighbours in time. Weights fall with the step that a track makes: outliers step far.
Everything that decides about frame t lies in the frames t - PAST to t + radius, so a stream that
lags by `radius` frames gives the very values that a whole clip gives.

Source: C4D, supplementary section 3.2.1, equations 1 to 5 (`literal`). The `robust` form divides
steps by the track's usual step, so that the unit of the world does not matter; takes the least of
the steps to and from the frames around, so that an outlier does not count against its neighbours;
and fits lines to moving tracks, which a mean would flatten at the ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.config import RefinementConfig
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import robust
from recon4d_ros.geometry.checks import check_positive, check_shape

# Frames before t whose steps tell the usual step of a track.
PAST = 5
# Mobility from which a track counts as moving; 0.5 says unknown, and lines suit static ones too.
MOVING = 0.5
# Steps below this share of the scene's depth are all the same: nothing moves by less.
_FLOOR = 1e-3
# Variance of the weighted times, frames squared, under which there is no slope to fit.
_LEAST_SPREAD = 1e-6
# Frames smoothed together in a clip; C4D's windows.
_CLIP = 20


def smooth(
    points: Tensor, mobility: Tensor, scene_depth: Tensor, config: RefinementConfig
) -> Tensor:
    """Smoothed tracks (T, N, 3), NaN where the track is not seen.

    Args:
        points: (T, N, 3) in one world frame, NaN where not seen.
        mobility: (T, N) or (N,) in [0, 1].
        scene_depth: (T,) usual depth of what each frame shows, units of the points, NaN for a
            frame that shows nothing.
        config: form, sharpness and radius.

    Raises:
        GeometryError: shapes do not fit together, or a depth is not above zero.
    """
    check_shape(points, "points", -1, -1, 3)
    moving = (mobility >= MOVING).expand(points.shape[:2])
    if scene_depth.shape != points.shape[:1]:
        raise GeometryError(
            f"scene_depth has shape {tuple(scene_depth.shape)} for {len(points)} frames; "
            "expected one depth for each frame"
        )
    check_positive(scene_depth[~scene_depth.isnan()], "scene_depth")
    unseen = torch.full_like(points[:1], torch.nan)
    padded = torch.cat([*[unseen] * PAST, points, *[unseen] * config.radius])
    views = padded.unfold(0, PAST + 1 + config.radius, 1).movedim(-1, -2)
    return smooth_views(views, moving, scene_depth[:, None], config)


def smooth_clip(
    points: Tensor, mobility: Tensor, scene_depth: Tensor, config: RefinementConfig
) -> Tensor:
    """The same as `smooth` for a clip of any length, window by window in bounded memory.

    Windows of 20 frames are smoothed together with the 5 frames on either side (C4D, section
    3.2), of which nothing is kept.
    """
    mobility = mobility.expand(points.shape[:2])
    parts = []
    for first in range(0, len(points), _CLIP):
        start = max(0, first - PAST)
        window = slice(start, first + _CLIP + PAST)
        done = smooth(points[window], mobility[window], scene_depth[window], config)
        parts.append(done[first - start : first - start + _CLIP])
    return torch.cat(parts) if parts else points.clone()


def smooth_views(
    views: Tensor, moving: Tensor, scene_depth: Tensor, config: RefinementConfig
) -> Tensor:
    """Smoothed points (..., 3) of views (..., L, 3): L = PAST + 1 + radius frames each.

    Args:
        views: the point of interest stands at position PAST; NaN where the track is not seen.
        moving: (...) bool.
        scene_depth: as in `smooth`, broadcast against (...).
        config: form, sharpness and radius.
    """
    taps = slice(PAST - config.radius, PAST + 1 + config.radius)
    # Subtracting the largest exponent, as softmax does, keeps exp from underflowing to 0 / 0.
    weight = torch.softmax(_log_weights(views, scene_depth, config)[..., taps], dim=-1)
    own = views[..., PAST, :]
    around = (views[..., taps, :] - own.unsqueeze(-2)).nan_to_num(0.0)
    shift = _mean(around, weight)
    if config.mode == "robust":
        shift = torch.where(moving.unsqueeze(-1), _line(around, weight, shift), shift)
    return torch.where(own.isfinite().all(dim=-1, keepdim=True), own + shift, torch.nan)


def _log_weights(views: Tensor, scene_depth: Tensor, config: RefinementConfig) -> Tensor:
    """Logarithms of the weights (..., L), minus infinity where the track is not seen."""
    step_in, step_out = _steps(views, 1)
    if config.mode == "robust":
        step = torch.fmin(step_in, step_out)
        for gap in range(2, config.radius + 1):
            step = torch.fmin(step, torch.fmin(*_steps(views, gap)))
        usual = step_in.nanmedian(dim=-1, keepdim=True).values
        step = step / torch.maximum(usual, (_FLOOR * scene_depth.unsqueeze(-1)).to(usual))
    else:
        # Equation 4: the first frame, which has no step in, copies the weight of the second.
        step = torch.where(step_in.isnan(), step_out, step_in)
    # A frame seen alone between two gaps makes no step; nothing speaks against it.
    weight = -config.sharpness * step.nan_to_num(0.0)
    return torch.where(views.isfinite().all(dim=-1), weight, -torch.inf)


def _steps(views: Tensor, gap: int) -> tuple[Tensor, Tensor]:
    """Distance for each frame (..., L) from `gap` frames before and to `gap` after, over `gap`.

    NaN where one of the two is not seen.
    """
    steps = torch.linalg.vector_norm(views[..., gap:, :] - views[..., :-gap, :], dim=-1) / gap
    unknown = torch.full_like(steps[..., :gap], torch.nan)
    return torch.cat([unknown, steps], dim=-1), torch.cat([steps, unknown], dim=-1)


def snap_static(
    points: Tensor, confidence: Tensor, mobility: Tensor, below: float = 0.1
) -> Tensor:
    """Tracks (T, N, 3) of which those that stand still have one place in all their frames.

    It is the weighted median, for each coordinate, of all places; only a whole clip knows it.

    Args:
        points: (T, N, 3) in one world frame, NaN where not seen.
        confidence: (T, N) weight of each point, in [0, 1].
        mobility: (T, N) or (N,) in [0, 1]; a track whose mean is under `below` stands still.
        below: that bound.

    Raises:
        GeometryError: shapes do not fit together, or a weight is negative or not finite.
    """
    check_shape(points, "points", -1, -1, 3)
    seen = points.isfinite().all(dim=-1)
    weight = torch.where(seen, confidence, 0.0)
    still = (mobility.expand(seen.shape).mean(dim=0) < below) & (weight.sum(dim=0) > 0)
    places = points[:, still].nan_to_num(0.0).permute(1, 2, 0)
    weights = weight[:, still].T.unsqueeze(1).expand_as(places)
    result = points.clone()
    result[:, still] = robust.weighted_median(places, weights)
    return torch.where(seen.unsqueeze(-1), result, torch.nan)


def _mean(points: Tensor, weight: Tensor) -> Tensor:
    return (weight.unsqueeze(-1) * points).sum(dim=-2)


def _line(points: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Weighted least-squares line through points (..., K, 3) over time, in the middle frame.

    Where one frame has all the weight there is no line, and the middle point stays at 0.
    """
    radius = points.shape[-2] // 2
    time = torch.arange(-radius, radius + 1, dtype=points.dtype, device=points.device)
    centre = (weight * time).sum(dim=-1, keepdim=True)
    spread = (weight * (time - centre) ** 2).sum(dim=-1, keepdim=True)
    slope = _mean(points - mean.unsqueeze(-2), weight * (time - centre)) / spread
    return torch.where(spread > _LEAST_SPREAD, mean - centre * slope, 0.0)

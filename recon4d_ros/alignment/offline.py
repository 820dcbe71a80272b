"""Alignment of all pairs of a clip at once: poses, focal length, depth and masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from recon4d_ros.alignment import (
    adam,
    dense_depth,
    fast,
    objectives,
    optics,
    pair_masks,
    spanning_tree,
)
from recon4d_ros.alignment.fast import Noise
from recon4d_ros.alignment.observations import observe
from recon4d_ros.alignment.offline_result import (
    AlignmentReport,
    PairAlignment,
    check_finite,
    notes,
)
from recon4d_ros.alignment.optics import Optics
from recon4d_ros.alignment.pair_flow import confirmed_matches, matched_flow
from recon4d_ros.alignment.pairs import Array, Pairs, checked_pairs
from recon4d_ros.alignment.samples import Samples, static_samples
from recon4d_ros.alignment.spanning_tree import Chain
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import camera, pointmap, se3

Method = Literal["fast", "adam"]
# Smoothed points (N, H, W, 3) of world points (N, H, W, 3) and masks (N, H, W).
Smoother = Callable[[Tensor, Tensor], Tensor]

# Pixels that speak for the focal length before anything else is known.
_FOCAL_SAMPLES = 512


@dataclass(frozen=True, eq=False)
class _Stage1:
    """What either method hands to the second stage."""

    chain: Chain
    depth: Tensor
    losses: Mapping[str, float]
    iterations: int
    stop_reason: str
    noise: Noise
    crowded_out: tuple[int, ...]


def align_pairs(
    edges: Array,
    points_1: Array,
    conf_1: Array,
    points_2_in_1: Array,
    conf_2: Array,
    matching_2_in_1: Array | None = None,
    conf_matching: Array | None = None,
    intrinsics: Intrinsics | Array | None = None,
    config: Config | None = None,
    method: Method = "fast",
    *,
    smooth_points: Smoother | None = None,
) -> PairAlignment:
    """Align the predictions of directed pairs (i, j) of a clip's frames.

    Arrays are torch or numpy, points in the camera of i and in a unit of each pair's own, optical
    axes, pixel (0, 0) at the centre of the first pixel. Pixels with points that are not finite, or
    confidences that are not finite or at most 1, are left out. Estimated intrinsics have square
    pixels, one focal length for all frames, and by default the principal point W/2, H/2 of
    DUSt3R's family (`offline.principal_point`).

    Source: C4D (ICCV 2025), section 4; POMATO, arXiv 2504.05692, section 3.3 (masks).

    Args:
        edges: (E, 2) integers, frames i and j from 0 on.
        points_1: (E, H, W, 3) points of the pixels of i.
        conf_1: (E, H, W) their confidence, above 1 as in DUSt3R's family.
        points_2_in_1: (E, H, W, 3) points of the pixels of j, at the time of j.
        conf_2: (E, H, W) their confidence.
        matching_2_in_1: (E, H, W, 3) where the surface points of the pixels of j were at the time
            of i. Without it only points that contradict the alignment are seen to move.
        conf_matching: (E, H, W) confidence of the matching; None takes conf_2.
        intrinsics: of all frames, or a camera matrix (3, 3); None estimates the focal length.
        config: sections `offline`, `motion` and `depth`; None takes the defaults.
        method: "fast", second-order steps on sampled static pixels with all other depth in closed
            form; "adam", the literal schedule of the paper over all pixels.
        smooth_points: second stage: gives smoothed world points (N, H, W, 3), NaN for none, of
            the world points and masks of the first stage; depth alone is then drawn to them.

    Raises:
        AlignmentError: shapes do not fit, the pairs fall into components, or their points do not
            fix a pose, a scale or a focal length.
    """
    begin = time.perf_counter()
    settings = config or Config()
    if method not in ("fast", "adam"):
        raise AlignmentError(f"method is {method!r}; expected 'fast' or 'adam'")
    pairs = checked_pairs(
        edges, points_1, conf_1, points_2_in_1, conf_2, matching_2_in_1, conf_matching
    )
    lens = (
        optics.estimated(pairs.size, settings.offline.principal_point)
        if intrinsics is None
        else optics.given(intrinsics, pairs.size)
    )
    masks = pair_masks.matched_masks(pairs, settings.motion)
    first = (_fast if method == "fast" else _adam)(pairs, masks, lens, settings)
    check_finite(first.chain)
    if pairs.matching is None:
        masks = _contradicted(pairs, first, lens, settings)
    depth, second = _smoothed(first, masks, lens, settings, method, smooth_points)
    report = AlignmentReport(
        method=method,
        losses={**first.losses, **second},
        iterations=first.iterations
        + (settings.offline.iterations if smooth_points and method == "adam" else 0),
        stop_reason=first.stop_reason,
        seconds=time.perf_counter() - begin,
        notes=notes(
            pairs, first.chain, first.noise, first.crowded_out, settings.depth.min_baseline
        ),
    )
    found = lens.intrinsics(first.chain.focal_px)
    return PairAlignment(first.chain.T_world_cam, found, depth, masks, report)


def _start(pairs: Pairs, samples: Samples, lens: Optics) -> Chain:
    if lens.focal_px is None:
        step = 1 + pairs.size[0] * pairs.size[1] // _FOCAL_SAMPLES
        chosen = torch.arange(0, pairs.size[0] * pairs.size[1], step)
        focal = spanning_tree.focal_length(pairs, chosen, lens.centre_px)
    else:
        focal = torch.tensor(lens.focal_px, dtype=torch.float64)
    return spanning_tree.chained(pairs, samples, focal, lens.centre_px)


def _fast(pairs: Pairs, masks: Tensor, lens: Optics, settings: Config) -> _Stage1:
    config = settings.offline
    samples = static_samples(pairs, masks, config.samples, config.min_static_px)
    samples = replace(samples, uv=lens.squared(samples.uv))
    start = _start(pairs, samples, lens)
    confirmed = _confirmed(pairs, lens, start)
    seen = observe(pairs, samples, confirmed)
    found = fast.refine(pairs, samples, start, seen, lens, config.max_steps)
    chain = found.chain
    depth = dense_depth.fused_depth(pairs, chain, lens.matrix(chain.focal_px), found.noise)
    losses = adam.evaluate(pairs, masks, confirmed, chain, _filled(depth), lens, config)
    return _Stage1(
        chain=chain,
        depth=depth,
        losses=losses,
        iterations=len(found.costs) - 1,
        stop_reason=found.stop_reason,
        noise=found.noise,
        crowded_out=samples.crowded_out,
    )


def _adam(pairs: Pairs, masks: Tensor, lens: Optics, settings: Config) -> _Stage1:
    config = settings.offline
    num_pixels = pairs.size[0] * pairs.size[1]
    samples = static_samples(pairs, masks, num_pixels, config.min_static_px)
    samples = replace(samples, uv=lens.squared(samples.uv))
    start = _start(pairs, samples, lens)
    # No step is made: only the noise of the first guess is asked for.
    confirmed = _confirmed(pairs, lens, start)
    seen = observe(pairs, samples, confirmed)
    noise = fast.refine(pairs, samples, start, seen, lens, max_steps=0).noise
    depth = dense_depth.fused_depth(pairs, start, lens.matrix(start.focal_px), noise)
    found = adam.descend(pairs, masks, confirmed, start, _filled(depth), lens, config)
    known = depth.isfinite()
    depth = found.chain.log_depth.exp().float().reshape(depth.shape)
    return _Stage1(
        chain=found.chain,
        depth=torch.where(known, depth, torch.nan),
        losses=found.losses,
        iterations=len(found.totals),
        stop_reason=f"{len(found.totals)} iterations were made",
        noise=noise,
        crowded_out=samples.crowded_out,
    )


def _confirmed(pairs: Pairs, lens: Optics, start: Chain) -> Tensor | None:
    """True (E, H, W) where matches lead forth and back; None without matching."""
    if pairs.matching is None:
        return None
    return confirmed_matches(pairs, matched_flow(pairs, lens.matrix(start.focal_px)))


def _contradicted(pairs: Pairs, first: _Stage1, lens: Optics, settings: Config) -> Tensor:
    """Masks (N, H, W) of points that do not lie where the alignment has their frame's."""
    i, j = pairs.edges.T
    K = lens.matrix(first.chain.focal_px)
    T = se3.inverse(first.chain.T_world_cam[i]) @ first.chain.T_world_cam[j]
    expected = pointmap.transform(T.float(), pointmap.from_depth(first.depth[j], K))
    scale = first.chain.log_scale.exp().float()[:, None, None, None]
    evidence = pair_masks.pair_evidence(
        expected / scale, pairs.second.points, pairs.second.weight, settings.motion
    )
    return pair_masks.joined_masks(evidence, pairs)


def _smoothed(
    first: _Stage1,
    masks: Tensor,
    lens: Optics,
    settings: Config,
    method: Method,
    smooth_points: Smoother | None,
) -> tuple[Tensor, dict[str, float]]:
    """Depth of the second stage and its loss; the first stage's without a smoother."""
    if smooth_points is None:
        return first.depth, {}
    T, K = first.chain.T_world_cam.float(), lens.matrix(first.chain.focal_px)
    rays = camera.directions(camera.pixel_grid(lens.size), K)
    world = pointmap.transform(T, rays * first.depth.unsqueeze(-1))
    wanted = smooth_points(world, masks)
    if wanted.shape != world.shape:
        raise AlignmentError(
            f"smooth_points gave {tuple(wanted.shape)}; expected points of {tuple(world.shape)}"
        )
    targets = pointmap.transform(se3.inverse(T), wanted.float())
    if method == "adam":
        depth, loss = adam.fit_depth(first.depth, rays, targets, settings.offline)
        return depth, {"pts": loss}
    depth = dense_depth.smoothed_depth(first.depth, rays, targets)
    return depth, {"pts": float(objectives.point_smoothness(rays * depth[..., None], targets))}


def _filled(depth: Tensor) -> Tensor:
    """Depth without gaps, the median where it is unknown: such pixels have no weight anywhere."""
    return torch.where(depth.isfinite(), depth, depth.nanmedian())

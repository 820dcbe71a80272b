"""Smoothing over time: flicker, moving tracks and depth before and after, and the time of LBD."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.noisy_stream import Noise, NoisyStream, abs_rel, noisy_stream, refined_points
from benchmarks.table import Row, Target
from benchmarks.workbench import Workbench
from recon4d_ros.config import Config
from recon4d_ros.evaluation.temporal import acceleration
from recon4d_ros.geometry import pointmap
from recon4d_ros.refinement.blend_displacement import BlendedDisplacement, Controls
from recon4d_ros.refinement.closed_form_depth import closed_form_depth
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import render

NUM_FRAMES, WIDTH = 30, 320
SEEDS = range(4)
SCENES = ("demo", "standing_camera")
HALF = Target(0.5)
NOT_WORSE = Target(1.0)
LBD_MS = Target(40.0)
MIN_SIGHTS = 5  # the error of a track seen in fewer frames is one draw of the noise
NUM_CONTROLS, LBD_ROWS, LBD_WIDTH, REPEATS = 1000, 288, 512, 25


def benchmark(_: Workbench) -> Iterator[Row]:
    """Ratios after / before for frame-wise noise, for information also for other noise."""
    torch.set_num_threads(Config().compute.torch_threads)
    for name in SCENES:
        yield from _noise_rows(name, "frame-wise noise 3 %", Noise(), HALF, NOT_WORSE)
    yield from _noise_rows("demo", "frame-wise noise 0.5 %", Noise(0.005, 0.002), None, NOT_WORSE)
    yield from _noise_rows("demo", "with 1 % per pixel", Noise(pixel=0.01), None, None)
    yield _lbd_row()


def _noise_rows(
    name: str, case: str, noise: Noise, half: Target | None, not_worse: Target | None
) -> Iterator[Row]:
    streams = [noisy_stream(name, NUM_FRAMES, WIDTH, noise, seed) for seed in SEEDS]
    ours, literal = ([Outcome(each, mode) for each in streams] for mode in ("robust", "literal"))
    targets = dict.fromkeys(Outcome.FIGURES, not_worse) | {"flicker": half}
    for figure in Outcome.FIGURES:
        before, after, published = (
            float(torch.tensor([getattr(each, figure)[side] for each in outcomes]).mean())
            for side, outcomes in ((0, ours), (1, ours), (1, literal))
        )
        yield Row(
            "refinement",
            f"{name}, {case}",
            f"{figure.replace('_', ' ')}, after / before",
            after / before,
            targets[figure],
            {"literal": published / before},
            f"{before:.4g} before, mean of {len(streams)} draws",
        )
    yield _worst_track_row(f"{name}, {case}", ours, literal, not_worse)


class Outcome:
    """Figures of one stream before and after refinement."""

    FIGURES = (
        "flicker",
        "abs_rel",
        "abs_rel_moving",
        "acceleration",
        "moving_tracks",
        "moving_first_frame",
        "moving_last_frame",
    )

    def __init__(self, stream: NoisyStream, mode: str) -> None:
        refined = stream.refined(mode)
        depths = stream.depth, torch.stack([one.depth for one in refined])
        tracks = stream.raw_points(), refined_points(stream, refined)
        everywhere = torch.ones_like(stream.masks)
        self.flicker = [stream.flicker(each).flicker for each in depths]
        self.abs_rel = [abs_rel(each, stream.truth, everywhere) for each in depths]
        self.abs_rel_moving = [abs_rel(each, stream.truth, stream.masks) for each in depths]
        usual = float(stream.truth.median())
        self.acceleration = [acceleration(each, usual) for each in tracks]
        movers = stream.moving.any(dim=0)
        errors = [_errors(each - stream.points)[:, movers] for each in tracks]
        self.moving_tracks = [_rms(each) for each in errors]
        self.moving_first_frame = [_rms(each[0]) for each in errors]
        self.moving_last_frame = [_rms(each[-1]) for each in errors]
        before, after = errors
        seen = (before.isfinite().sum(dim=0) >= MIN_SIGHTS).nonzero().flatten()
        self.by_track = torch.tensor([_rms(after[:, n]) / _rms(before[:, n]) for n in seen])


def _worst_track_row(
    case: str, ours: list[Outcome], literal: list[Outcome], target: Target | None
) -> Row:
    ratios, published = (torch.cat([each.by_track for each in all_]) for all_ in (ours, literal))
    worse = int((ratios > 1).sum())
    return Row(
        "refinement",
        case,
        "worst moving track, after / before",
        float(ratios.max()),
        target,
        {"literal": float(published.max())},
        f"RMS over its frames, {worse} of {len(ratios)} tracks are worse",
    )


def _errors(difference: Tensor) -> Tensor:
    return torch.linalg.vector_norm(difference, dim=-1)


def _rms(errors: Tensor) -> float:
    return float((errors[errors.isfinite()] ** 2).mean().sqrt())


def _lbd_row() -> Row:
    """Building the field, blending every pixel, and the depth that follows."""
    points, controls, moving = lbd_problem()

    def once() -> float:
        begin = time.perf_counter()
        field = BlendedDisplacement(controls, reach=3.0)
        closed_form_depth(points, field.over(points, moving), 0.25)
        return (time.perf_counter() - begin) * 1e3

    times = sorted(once() for _ in range(REPEATS))
    note = f"median {times[len(times) // 2]:.1f}, with the depth in closed form"
    case = f"{points.shape[0] * points.shape[1]} pixels, {len(controls.points)} controls"
    return Row("refinement", case, "LBD ms, best of 25", times[0], LBD_MS, note=note)


def lbd_problem() -> tuple[Tensor, Controls, Tensor]:
    """Points (H, W, 3) of a rendered room, controls in them, and what moves."""
    frame = render(scenes.named("demo", 60, LBD_WIDTH), 10)
    first = (frame.depth.shape[0] - LBD_ROWS) // 2
    rows = slice(first, first + LBD_ROWS)
    points = pointmap.from_depth(frame.depth, frame.intrinsics)[rows].contiguous()
    moving = frame.dynamic_mask[rows]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(moving.numel(), generator=generator)[:NUM_CONTROLS]
    at = points.reshape(-1, 3)[chosen]
    controls = Controls(at, 0.02 * torch.sin(3.0 * at), moving.reshape(-1)[chosen])
    return points, controls, moving

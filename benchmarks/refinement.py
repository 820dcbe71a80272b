"""Smoothing over time: flicker, moving tracks and depth before and after, and the time of LBD."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.noisy_stream import Noise, NoisyStream, abs_rel, noisy_stream, refined_points
from benchmarks.table import Row, Target
from benchmarks.workbench import Workbench
from recon4d_ros.config import Config
from recon4d_ros.evaluation.temporal import acceleration
from recon4d_ros.geometry import pointmap
from recon4d_ros.refinement.blend_displacement import BlendedDisplacement, Controls
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import render

NUM_FRAMES, WIDTH, NUM_DRAWS = 20, 192, 8
SCENES = ("demo", "standing_camera")
HALF, NOT_WORSE, LBD_MS = Target(0.5), Target(1.0), Target(40.0)
MIN_SIGHTS = 5  # of a track, over all draws; fewer tell the noise and not the method
NUM_CONTROLS, LBD_ROWS, LBD_WIDTH, REPEATS = 1000, 288, 512, 25


def benchmark(_: Workbench) -> Iterator[Row]:
    """Ratios after / before for frame-wise noise, for information also for other noise."""
    torch.set_num_threads(Config().compute.torch_threads)
    for name in SCENES:
        yield from _noise_rows(name, "frame-wise noise 3 %", Noise(), HALF, NOT_WORSE)
    low = Noise(0.005, 0.002)
    yield from _noise_rows("demo", "frame-wise noise 0.5 %", low, HALF, NOT_WORSE)
    yield from _noise_rows("demo", "and 1 % per pixel", Noise(pixel=0.01), None, None)
    yield _lbd_row()


def _noise_rows(
    name: str, case: str, noise: Noise, flicker: Target | None, others: Target | None
) -> Iterator[Row]:
    draws = [noisy_stream(name, NUM_FRAMES, WIDTH, noise, seed) for seed in range(NUM_DRAWS)]
    before = figures(draws, [draw.depth for draw in draws], [draw.raw_points() for draw in draws])
    ours, literal = (_refined(draws, mode) for mode in ("robust", "literal"))
    for figure, value in before.items():
        yield Row(
            "refinement",
            f"{name}, {case}",
            f"{figure}, after / before",
            # A track that nothing smooths is the same but for the rounding of float32.
            round(float((ours[figure] / value).max()), 6),
            flicker if figure == "flicker" else others,
            {"literal": float((literal[figure] / value).max())},
            f"{float(value.mean()):.4g} before",
        )


def _refined(draws: list[NoisyStream], mode: str) -> dict[str, Tensor]:
    refined = [draw.refined(mode) for draw in draws]
    depths = [torch.stack([one.depth for one in frames]) for frames in refined]
    points = [refined_points(draw, one) for draw, one in zip(draws, refined, strict=True)]
    return figures(draws, depths, points)


def figures(
    draws: list[NoisyStream], depths: list[Tensor], points: list[Tensor]
) -> dict[str, Tensor]:
    """Figures of depths (T, H, W) and tracks (T, N, 3) over all draws of the noise.

    All have one value but that of the worst track, which has one for each moving track.
    """
    truth, masks, moving = draws[0].truth, draws[0].masks, draws[0].moving.any(dim=0)
    usual = float(truth.median())

    def mean(figure: Callable[[Tensor], float], of: list[Tensor]) -> Tensor:
        return torch.tensor(fmean(figure(each) for each in of))

    errors = torch.stack([each - draws[0].points for each in points])[:, :, moving]
    squared = (errors**2).sum(dim=-1)  # (draws, T, N)
    by_track = squared.flatten(0, 1)
    return {
        "flicker": mean(lambda depth: draws[0].flicker(depth).flicker, depths),
        "AbsRel": mean(lambda depth: abs_rel(depth, truth, masks | ~masks), depths),
        "AbsRel of what moves": mean(lambda depth: abs_rel(depth, truth, masks), depths),
        "acceleration of tracks": mean(lambda track: acceleration(track, usual), points),
        "error of moving tracks": squared.nanmean().sqrt(),
        "the same, first frame": squared[:, 0].nanmean().sqrt(),
        "the same, last frame": squared[:, -1].nanmean().sqrt(),
        "the same, worst track": by_track.nanmean(dim=0)[
            by_track.isfinite().sum(dim=0) >= MIN_SIGHTS
        ].sqrt(),
    }


def _lbd_row() -> Row:
    """Building the field, blending every pixel, and the depth that follows."""
    points, controls, moving = lbd_problem()

    def once() -> float:
        begin = time.perf_counter()
        field = BlendedDisplacement(controls, reach=3.0)
        pointmap.depth_towards(points, field.over(points, moving), 0.25)
        return (time.perf_counter() - begin) * 1e3

    times = sorted(once() for _ in range(REPEATS))
    note = f"median {times[len(times) // 2]:.1f}, with the depth in closed form"
    case = f"{moving.numel()} pixels, {len(controls.points)} controls"
    return Row("refinement", case, f"LBD ms, best of {REPEATS}", times[0], LBD_MS, note=note)


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

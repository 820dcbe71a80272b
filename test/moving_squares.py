"""Clips of a drifting background and a square that drifts otherwise, every track known exactly."""

import torch
from torch.nn import functional


def texture(generator: torch.Generator, side: int) -> torch.Tensor:
    """(3, side, side) in [0, 1], of structures some pixels wide."""
    fine = torch.rand(1, 3, side // 2, side // 2, generator=generator)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
    grown = [
        functional.interpolate(part, (side, side), mode="bilinear") for part in (fine, coarse)
    ]
    return (0.6 * grown[0] + 0.4 * grown[1])[0]


def shown(picture: torch.Tensor, origin: torch.Tensor, side: int) -> torch.Tensor:
    """(3, side, side): the picture seen from `origin` (2,) px on, bilinear."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="xy"), dim=-1) + origin
    grid = (grid + 0.5) * 2 / picture.shape[-1] - 1
    return functional.grid_sample(picture[None], grid[None], align_corners=False)[0]


def clip(
    seed: int, num_frames: int, side: int, num_tracks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """rgb (T, 3, s, s) in [-1, 1], queries (N, 3), tracks (T, N, 2), seen and moving (T|., N)."""
    generator = torch.Generator().manual_seed(seed)
    back, front = (texture(generator, 4 * side) for _ in range(2))
    drift, own = 2 * torch.rand(2, 2, generator=generator) - 1
    own = 2.0 * own / own.norm()
    half, start = side // 5, torch.full((2,), 0.5 * side)
    frames, places = [], []
    for frame in range(num_frames):
        centre = start + own * frame
        image = shown(back, 1.5 * side - drift * frame, side)
        square = shown(front, 2.0 * side - centre, side)
        pixels = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="xy"), dim=-1)
        inside = ((pixels - centre).abs() <= half).all(dim=-1)
        frames.append(torch.where(inside, square, image))
        places.append(centre)
    half_tracks = num_tracks // 2
    on_square = start + (2 * torch.rand(half_tracks, 2, generator=generator) - 1) * (half - 2)
    angle = torch.arange(half_tracks) * (6.2831853 / half_tracks)
    around = torch.stack([angle.cos(), angle.sin()], dim=-1)
    on_back = start + around * (1.5 * half + 3 * torch.rand(half_tracks, 1, generator=generator))
    time = torch.arange(num_frames)[:, None, None]
    tracks = torch.cat([on_square + own * time, on_back + drift * time], dim=1)
    moving = torch.arange(num_tracks) < half_tracks
    covered = (((tracks - torch.stack(places)[:, None]).abs() <= half).all(dim=-1)) & ~moving
    inside = ((tracks >= 0) & (tracks <= side - 1)).all(dim=-1)
    queries = torch.cat([torch.zeros(num_tracks, 1), tracks[0]], dim=-1)
    return 2 * torch.stack(frames) - 1, queries, tracks, inside & ~covered, moving

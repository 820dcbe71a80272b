"""Clips that tests train on: a noise picture that slides, with one half that slides otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recon4d_ros.datatypes.clips import CameraMotion, Clips
from recon4d_ros.training.sources import Sources


@dataclass(frozen=True)
class SlidingClips:
    """Equal numbers give equal clips, whatever the batch."""

    num_frames: int = 4
    size: tuple[int, int] = (32, 32)
    num_tracks: int = 6
    seed: int = 0

    def clips(self, first: int, count: int) -> Clips:
        made = [self._one(number) for number in range(first, first + count)]
        names = ("rgb", "queries", "tracks", "visibility", "moves_in_clip", "moves_in_frame")
        parts = [torch.stack([clip[name] for clip in made]) for name in names]
        moves_in_clip = parts[4]
        return Clips(
            *parts,
            is_judged=torch.ones_like(moves_in_clip),
            object_ids=moves_in_clip.long(),
            camera_motion=(CameraMotion.LATERAL,) * count,
        )

    def _one(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        (height, width), frames = self.size, torch.arange(self.num_frames)
        picture = torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)
        step = int(torch.randint(-1, 2, (), generator=draw))
        rgb = torch.stack([torch.roll(picture, step * int(t), dims=1) for t in frames])
        start = torch.rand(self.num_tracks, 2, generator=draw) * torch.tensor([width, height])
        moves = torch.rand(self.num_tracks, generator=draw) < 0.5
        per_frame = torch.tensor([float(step), 0.0]) + moves[:, None] * torch.tensor([0.0, 1.0])
        tracks = start + frames[:, None, None] * per_frame
        inside = ((tracks >= 0) & (tracks <= torch.tensor([width - 1.0, height - 1.0]))).all(-1)
        queries = torch.cat([torch.zeros(self.num_tracks, 1), start], dim=-1)
        return {
            "rgb": rgb,
            "queries": queries,
            "tracks": tracks,
            "visibility": inside,
            "moves_in_clip": moves,
            "moves_in_frame": moves.expand(self.num_frames, -1),
        }


def sliding_sources(num_frames: int = 4, early_frames: int = 3) -> Sources:
    usual = SlidingClips(num_frames)
    return Sources(SlidingClips(early_frames), usual, SlidingClips(num_frames, seed=77))

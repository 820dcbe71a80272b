"""Clips by number: endless, seeded, the same in whatever batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import ConfigError
from recon4d_ros.synthetic.clips import dense, effects, tracks
from recon4d_ros.synthetic.clips.casting import Hits, cast
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.effects import Effects
from recon4d_ros.synthetic.clips.labels import SolidLabels, solid_labels
from recon4d_ros.synthetic.clips.library import library
from recon4d_ros.synthetic.clips.looks import looks
from recon4d_ros.synthetic.clips.motion import Views, views
from recon4d_ros.synthetic.clips.pictures import Pictures, pictures
from recon4d_ros.synthetic.clips.sampling import CAMERA_KINDS, draw_world
from recon4d_ros.synthetic.clips.settings import ClipSettings
from recon4d_ros.synthetic.clips.shading import shade
from recon4d_ros.synthetic.clips.tracks import Material, Path, Queries
from recon4d_ros.synthetic.clips.world import World

# Moments of an open shutter that a blurred picture is the mean of, beside the middle one, whose
# surfaces are known; share of the exposure.
_MOMENTS = (-1 / 3, 1 / 3)

_PICTURES_IN_CACHE = 4


@dataclass(frozen=True, eq=False)
class ClipTruth:
    """Everything about B clips but their pictures.

    Attributes:
        world, view: the scenes, and where everything is in each frame.
        hits: what the pixels see.
        labels: of the solids.
        queries, material, path: of the tracks.
        effects: still to be applied to the pictures.
    """

    world: World
    view: Views
    hits: Hits
    labels: SolidLabels
    queries: Queries
    material: Material
    path: Path
    effects: Effects


class ClipGenerator:
    """Makes clips; equal settings, seeds and numbers give equal clips.

    Pictures are equal on one device; between devices noise and rounding differ.
    """

    def __init__(
        self,
        settings: ClipSettings | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings or ClipSettings()
        self.seed = seed
        self.device = torch.device(device)
        self._library = library(
            self.settings.num_textures, self.settings.texture_size, seed, self.device
        )

    def clips(self, first: int, count: int, *, dense_motion: bool = False) -> Clips:
        """Clips number `first` to `first + count - 1`.

        Args:
            first: number of the first clip, from 0.
            count: how many.
            dense_motion: give `flow` and `scene_flow` of every pixel too.

        Raises:
            ConfigError: a number below 0, or no clip.
        """
        if first < 0 or count < 1:
            raise ConfigError(
                f"clips {first} to {first + count - 1}: expected 0 <= first, one clip"
            )
        numbers = range(first, first + count)
        if self.device.type != "cpu":
            return self._make(numbers, dense_motion)

        def make(number: int) -> Clips:
            return self._make(range(number, number + 1), dense_motion)

        parts = _side_by_side(make, numbers)
        return parts[0] if len(parts) == 1 else Clips.joined(parts)

    def truth(self, numbers: range) -> ClipTruth:
        """What happens in the clips of these numbers."""
        settings = self.settings
        dice = Dice(self.seed, numbers, self.device)
        world = draw_world(settings, dice)
        spoilt = effects.draw_effects(settings, dice)
        times = torch.arange(settings.num_frames, dtype=torch.float64, device=self.device)
        view = views(world, times.expand(len(numbers), -1))
        hits = self._cast(pictures(world, view, torch.float32))
        labels = solid_labels(world, view, settings.label_rule)
        queries = tracks.draw_queries(settings, dice, hits, labels.moves_in_clip)
        material = tracks.material_points(world, view, queries)
        path = tracks.track(world, view, settings.size, material)
        return ClipTruth(world, view, hits, labels, queries, material, path, spoilt)

    @torch.no_grad()
    def _make(self, numbers: range, dense_motion: bool) -> Clips:
        truth = self.truth(numbers)
        colours = self._colours(truth)
        rgb = effects.expose(colours, truth.effects, Dice(self.seed, numbers, self.device))
        labels, solid = truth.labels, truth.material.solid
        frames = (len(numbers), self.settings.num_frames)
        in_frame = solid[:, None].expand(-1, frames[1], -1)
        motion = dense.dense_motion(truth.world, truth.view, truth.hits) if dense_motion else None
        return Clips(
            rgb=rgb,
            queries=torch.cat([truth.queries.frame[..., None], truth.queries.uv], -1).float(),
            tracks=truth.path.uv.float(),
            visibility=truth.path.is_seen,
            moves_in_clip=labels.moves_in_clip.gather(1, solid),
            moves_in_frame=labels.moves_in_frame.gather(2, in_frame),
            is_judged=labels.is_judged.gather(1, solid),
            object_ids=solid,
            camera_motion=tuple(CAMERA_KINDS[k] for k in truth.world.camera_kind.tolist()),
            T_world_cam=truth.view.T_world_cam,
            K=truth.world.K,
            depth=truth.hits.depth.view(*frames, *self.settings.size),
            dynamic_mask=_dynamic_mask(truth),
            flow=None if motion is None else motion.flow,
            scene_flow=None if motion is None else motion.scene_flow,
        )

    def _colours(self, truth: ClipTruth) -> Tensor:
        """(B, T, 3, H, W) float32, blurred by motion where the shutter is open for long."""
        colours = self._shaded(truth.world, truth.view, truth.hits)
        shutter = truth.effects.shutter
        blurred = (shutter > 0).nonzero().squeeze(-1)
        if len(blurred):
            world, count = truth.world.of(blurred), self.settings.num_frames
            times = torch.arange(count, dtype=torch.float64, device=self.device)
            moments = [times + moment * shutter[blurred, None] for moment in _MOMENTS]
            shots = [self._shaded(world, views(world, at)) for at in moments]
            colours[blurred] = torch.stack([colours[blurred], *shots]).mean(dim=0)
        return colours

    def _shaded(self, world: World, view: Views, hits: Hits | None = None) -> Tensor:
        """(B, T, 3, H, W), of hits that are known or else cast here."""
        seen = pictures(world, view, torch.float32)
        painted = looks(world, view, seen)
        parts = []
        for rows in self._portions(len(seen.K)):
            part = seen.of(rows)
            found = cast(part, self.settings.size) if hits is None else hits.of(rows)
            parts.append(shade(part, painted.of(rows), found, self._library))
        colours = torch.cat(parts, dim=1).view(3, len(world.K), -1, *self.settings.size)
        return colours.permute(1, 2, 0, 3, 4)

    def _cast(self, seen: Pictures) -> Hits:
        parts = [cast(seen.of(rows), self.settings.size) for rows in self._portions(len(seen.K))]
        return Hits(
            torch.cat([part.depth for part in parts]), torch.cat([part.solid for part in parts])
        )

    def _portions(self, count: int) -> list[slice]:
        """Pictures to work on at a time: few on a CPU, so that they stay in its cache."""
        step = _PICTURES_IN_CACHE if self.device.type == "cpu" else count
        return [slice(start, start + step) for start in range(0, count, step)]


def _side_by_side(make: Callable[[int], Clips], numbers: range) -> list[Clips]:
    """One clip after the other on every core.

    A clip is some ten thousand small operations, which gain little from threads within them.
    """
    num_threads = torch.get_num_threads()
    if min(num_threads, len(numbers)) == 1:
        return [make(number) for number in numbers]
    try:
        with ThreadPoolExecutor(num_threads, "clips", torch.set_num_threads, (1,)) as threads:
            return list(threads.map(make, numbers))
    finally:
        # What a thread asks for itself is what later threads begin with, too.
        torch.set_num_threads(num_threads)


def _dynamic_mask(truth: ClipTruth) -> Tensor:
    """(B, T, H, W) bool."""
    moves = truth.labels.moves_in_frame
    solid = truth.hits.solid.view(*moves.shape[:2], -1).long()
    mask = moves.gather(2, solid)
    return mask.view(*moves.shape[:2], *truth.hits.depth.shape[1:])

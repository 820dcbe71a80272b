"""Training of the point tracker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt import DynPT, DynPTConfig, TrackState
from recon4d_ros.networks.dynpt.checkpoint import load, save
from recon4d_ros.networks.images import network_images
from recon4d_ros.networks.pomato import PomatoNet
from recon4d_ros.predictors.chained_flow import followed_tracks, guessed_tracks
from recon4d_ros.training.config import DynPTTraining
from recon4d_ros.training.task import autocast
from recon4d_ros.training.track_figures import TrackFigures
from recon4d_ros.training.track_losses import track_losses


class DynPTTask:
    """Tracks whole clips; in some steps two overlapping windows.

    The second one is warm-started, unless chained flow is what the network starts from.
    """

    kind: ClassVar[str] = "dynpt"
    LIMITS: ClassVar[str] = (
        "Trained on rendered scenes alone, at the size and length above: real images, other "
        "sizes and longer windows are another domain. Motion along epipolar lines and slow motion "
        "look static. Half of the points that it learned from move: where nothing moves, parallax "
        "looks like motion."
    )

    def __init__(self, config: DynPTTraining, device: torch.device) -> None:
        """A network with the seed's weights.

        Raises:
            ModelError: the weights of the frozen encoder, or those to start from, cannot be used.
        """
        self._config, self._device = config, device
        sizes = dataclasses.replace(
            DynPTConfig.named(config.tracker.size),
            frames=config.clips.num_frames,
            iterations=config.tracker.iterations,
        )
        self._encoder: PomatoNet | None = None
        if config.tracker.encoder:
            self._encoder = PomatoNet.from_file(config.tracker.encoder).to(device)
            self._encoder.requires_grad_(False)
            width = self._encoder.sizes.encoder_width
            sizes = dataclasses.replace(sizes, context="tokens", token_width=width)
        torch.manual_seed(config.run.seed)
        network = DynPT(sizes)
        if config.tracker.start:
            _start_from(network, config.tracker.start)
        self.network: nn.Module = network.to(device)

    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        """See `Task.losses`."""
        window, num_frames = self._config.tracker.window, clips.rgb.shape[1]
        is_drawn = float(torch.rand(())) < self._config.tracker.unrolled_share
        starts = (0, num_frames - window) if is_drawn and window < num_frames else (0,)
        length = window if len(starts) > 1 else num_frames
        with autocast(self._device, self._config.run.precision):
            tracked = self._windows(_tracker(self.network), clips, starts, length)
        rows = [
            track_losses(states, cut(clips, start, length), self._config.loss)
            for start, states in zip(starts, tracked, strict=True)
        ]
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def figures(self, network: nn.Module, batches: Iterable[Clips]) -> dict[str, float]:
        """See `Task.figures`."""
        held = TrackFigures()
        for clips in batches:
            with torch.no_grad(), autocast(self._device, self._config.run.precision):
                (states,) = self._windows(_tracker(network), clips, (0,), clips.rgb.shape[1])
            held.add(states[-1], clips)
        return held.figures()

    def export(self, network: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
        """See `Task.export`."""
        save(path, _tracker(network), facts, torch.float16)

    def _windows(
        self, network: DynPT, clips: Clips, starts: tuple[int, ...], length: int
    ) -> list[tuple[TrackState, ...]]:
        """States of windows of a clip, each begun where the one before ended, or by flow."""
        images = network_images(clips.rgb)
        maps = network.encode(images, self._tokens(images))
        support = network.support(maps, clips.queries)
        guess = None
        if network.config.needs_flow:
            guess = _by_flow(clips)
        tracked: list[tuple[TrackState, ...]] = []
        for number, start in enumerate(starts):
            frames = torch.arange(start, start + length, device=images.device)
            initial = None if guess is None else guess.frames(frames)
            if tracked and guess is None:
                initial = shifted(tracked[-1][-1].detached(), start - starts[number - 1])
            queries = later_queries(clips.queries, start)
            window = maps.frames(slice(start, start + length))
            tracked.append(network.refine(window, support, queries, initial=initial))
        return tracked

    def _tokens(self, images: Tensor) -> Tensor | None:
        """Tokens (B, T, P, E) of the frozen encoder, where there is one."""
        if self._encoder is None:
            return None
        with torch.no_grad():
            tokens = self._encoder.encode(images.flatten(0, 1)).tokens
        return torch.unflatten(tokens, 0, images.shape[:2])


def _by_flow(clips: Clips) -> TrackState:
    if clips.searched_flow is None:
        return guessed_tracks(clips.rgb, clips.queries)
    return followed_tracks(clips.searched_flow, clips.queries)


def _tracker(network: nn.Module) -> DynPT:
    assert isinstance(network, DynPT)
    return network


def _start_from(network: DynPT, path: str) -> None:
    """Take the weights of a network that differs in frames and iterations at most.

    Raises:
        ModelError: they cannot be read, or are those of another size.
    """
    held = load(path)
    own = network.config
    if dataclasses.replace(held.config, frames=own.frames, iterations=own.iterations) != own:
        raise ModelError(
            f"{path} holds a network of {held.config}, not of {own}; set tracker.size "
            "to its size or tracker.start to weights of this one"
        )
    network.load_state_dict(held.state_dict())


def cut(clips: Clips, start: int, length: int) -> Clips:
    """What a window of `length` frames from `start` on is judged by.

    Its points move if they move in this window; queries of other frames are out of [0, length).
    """
    frames = slice(start, start + length)
    moves_in_frame = clips.moves_in_frame[:, frames]
    return dataclasses.replace(
        clips,
        rgb=clips.rgb[:, frames],
        queries=later_queries(clips.queries, start),
        tracks=clips.tracks[:, frames],
        visibility=clips.visibility[:, frames],
        moves_in_frame=moves_in_frame,
        moves_in_clip=moves_in_frame.any(dim=1),
        searched_flow=None,
    )


def later_queries(queries: Tensor, start: int) -> Tensor:
    """Queries (B, N, 3) with frames counted from `start`."""
    return queries - queries.new_tensor([start, 0.0, 0.0])


def shifted(state: TrackState, frames: int) -> TrackState:
    """The state some frames on; the new frames hold what the last one did."""

    def on(values: Tensor) -> Tensor:
        return torch.cat([values[:, frames:], values[:, -1:].expand_as(values[:, :frames])], 1)

    return TrackState(*(on(getattr(state, part.name)) for part in dataclasses.fields(state)))

"""The parts of DynPT's work that hold for every runtime: around an encoder and an updater."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.motion import SharedMotion, shared_motion
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.networks.dynpt.state import TrackState
from recon4d_ros.networks.dynpt.support import QuerySupport, sample_support

Encoder = Callable[[Tensor, Tensor | None], tuple[Sequence[Tensor], Tensor | None]]


class Refinement:
    """Encodes frames and refines tracks by iterations of an updater.

    Attributes:
        config: sizes of the network.
        encoder: images (F, 3, H, W) and tokens, or None, to levels and context of `FeatureMaps`.
        updater: one iteration, called as `TrackUpdater`.
    """

    config: DynPTConfig
    encoder: Encoder
    updater: Callable[..., Any]

    @property
    def device(self) -> torch.device:
        """Where it wants its inputs."""
        raise NotImplementedError

    def encode(self, rgb: Tensor, tokens: Tensor | None = None) -> FeatureMaps:
        """Feature maps of frames (B, T, 3, H, W), each frame by itself."""
        flat = None if tokens is None else tokens.flatten(0, 1)
        levels, context = self.encoder(rgb.flatten(0, 1), flat)
        shape = (rgb.shape[0], rgb.shape[1])
        context = None if context is None else torch.unflatten(context, 0, shape)
        return FeatureMaps(tuple(torch.unflatten(level, 0, shape) for level in levels), context)

    def support(self, maps: FeatureMaps, queries: Tensor) -> QuerySupport:
        """The features around queries (B, N, 3) of frames that the maps hold."""
        return sample_support(maps, queries, self.config.query_radius)

    def refine(
        self,
        maps: FeatureMaps,
        support: QuerySupport,
        queries: Tensor,
        *,
        iterations: int | None = None,
        initial: TrackState | None = None,
        valid: Tensor | None = None,
    ) -> tuple[TrackState, ...]:
        """As `DynPT.forward`, on maps and support that are known.

        Args:
            maps: of the T frames of the window.
            support: of the queries; their frames may have left the window.
            queries: (B, N, 3) float32; frames count from the window's first and may be negative.
                Queries of frames after the window's last are masked.
            iterations: see `DynPT.forward`.
            initial: see `DynPT.forward`.
            valid: see `DynPT.forward`.

        Raises:
            ModelError: the network needs `initial` and gets none.
        """
        if initial is None and self.config.needs_flow:
            raise ModelError(
                "this DynPT network starts from tracks by chained flow; give them as `initial` "
                "(predictors.chained_flow.guessed_tracks)"
            )
        num_frames = maps.num_frames
        given = torch.ones_like(queries[..., 0], dtype=torch.bool) if valid is None else valid
        valid = given & (queries[..., 0] < num_frames)
        state = initial or TrackState.standing(queries[..., 1:], num_frames)
        state = _pinned(state, queries)
        states = []
        for _ in range(iterations or self.config.iterations):
            # Each iteration learns from its own outcome alone.
            state = state.detached()
            shared = self.shared_motion(state, valid, maps)
            step, logit_steps = self.updater(maps, support, queries, state, shared, valid)
            state = state.moved(step, logit_steps)
            states.append(state)
        return tuple(states)

    def shared_motion(
        self, state: TrackState, valid: Tensor, maps: FeatureMaps
    ) -> SharedMotion | None:
        """What the updater is told of the motion of all tracks; None where it is told nothing."""
        if not (self.config.has_global_motion or self.config.has_motion_residual):
            return None
        weight = torch.sigmoid(state.visibility_logit) * valid[:, None]
        return shared_motion(state.uv, weight, maps.size)


def is_query_frame(queries: Tensor, num_frames: int) -> Tensor:
    """(B, T, N, 1) bool."""
    frames = torch.arange(num_frames, device=queries.device)[:, None]
    return (queries[:, None, :, 0] == frames)[..., None]


def _pinned(state: TrackState, queries: Tensor) -> TrackState:
    """Tracks put where their queries are in the queries' frames."""
    at_query = is_query_frame(queries, state.uv.shape[1])
    uv = torch.where(at_query, queries[:, None, :, 1:], state.uv.float())
    logits = (state.visibility_logit, state.confidence_logit, state.mobility_logit)
    return TrackState(uv, *logits)

"""DynPT: tracks of queried points over a window of frames, refined in a few iterations.

Source: C4D's description of DynPT: position, visibility, confidence and mobility are refined
together; the token of a track in a frame is that of CoTracker3 (arXiv 2410.11831) with what the
3D-aware encoder and the common motion of all tracks say added.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt.correlation import CorrelationReader
from recon4d_ros.networks.dynpt.features import FeatureEncoder, FeatureMaps
from recon4d_ros.networks.dynpt.motion import (
    RESIDUAL_WIDTH,
    SUMMARY_WIDTH,
    SharedMotion,
)
from recon4d_ros.networks.dynpt.refinement import Refinement, is_query_frame
from recon4d_ros.networks.dynpt.sizes import STRIDE, DynPTConfig
from recon4d_ros.networks.dynpt.state import TrackState
from recon4d_ros.networks.dynpt.support import QuerySupport, sample_context
from recon4d_ros.networks.dynpt.transformer import SpaceTimeTransformer

# Octaves of the sines that code where in the image a track is.
_PLACE_OCTAVES = 4
_NUM_LOGITS = 3


class DynPT(Refinement, nn.Module):
    """The network; `forward` does everything, its parts serve streams."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FeatureEncoder(config)
        self.updater = TrackUpdater(config)

    def forward(
        self,
        rgb: Tensor,
        queries: Tensor,
        *,
        iterations: int | None = None,
        initial: TrackState | None = None,
        tokens: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[TrackState, ...]:
        """Track queried points over all frames, those before the query's included.

        A track is where its query says in the query's frame. Masked tracks stay at their queries,
        and whatever they hold changes no other track. Tracks that are not masked see each other:
        adding one changes the others a little, as one more witness of the common motion.

        Args:
            rgb: (B, T, 3, H, W) in [-1, 1]; H and W are multiples of 16.
            queries: (B, N, 3) float32: frame in [0, T), x and y px inside the image.
            iterations: instead of the configured number.
            initial: to start from; else tracks stand still at their queries. Networks whose
                `config.needs_flow` need it.
            tokens: (B, T, H W / 256, E) of the 3D-aware encoder, where the network needs them.
            valid: (B, N) bool, False for masked tracks; all are valid by default.

        Returns:
            The state after each iteration; the last one is the answer.

        Raises:
            ModelError: shapes, sizes or a valid query do not fit.
        """
        valid = _checked(rgb, queries, valid)
        queries = torch.where(valid[..., None], queries, 0.0).float()
        maps = self.encode(rgb, tokens)
        support = self.support(maps, queries)
        return self.refine(
            maps, support, queries, iterations=iterations, initial=initial, valid=valid
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device


class TrackUpdater(nn.Module):
    """One iteration: steps of position and logits from what is seen at the present state."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        self.config = config
        self.correlation = CorrelationReader(config)
        self.context = (
            nn.Linear(config.context_width, config.context_feature_width)
            if config.has_context
            else None
        )
        self.embed = nn.Linear(_token_width(config), config.hidden)
        self.shared = nn.Linear(SUMMARY_WIDTH, config.hidden) if config.has_global_motion else None
        self.transformer = SpaceTimeTransformer(config)
        self.to_step = _zero_linear(config.hidden, 2)
        self.to_logits = _zero_linear(config.hidden, _NUM_LOGITS)

    def forward(
        self,
        maps: FeatureMaps,
        support: QuerySupport,
        queries: Tensor,
        state: TrackState,
        shared: SharedMotion | None,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Steps (B, T, N, 2) px, and (B, T, N, 3) of the logits; masked tracks make none."""
        uv = state.uv.transpose(1, 2)
        parts = [
            self.correlation(maps, support, uv),
            state.logits.transpose(1, 2),
            displacement_code(uv, self.config.displacement_octaves),
            place_code(uv, queries, maps.size),
        ]
        if self.context is not None:
            parts.append(self.context(_context_change(maps, support, uv)))
        if self.config.has_motion_residual and shared is not None:
            parts.append(shared.residual)
        tokens = self.embed(torch.cat(parts, dim=-1))
        hub = self.shared(shared.summary) if self.shared is not None and shared else None
        tokens = self.transformer(tokens, hub, valid).transpose(1, 2)
        is_known = valid[:, None, :, None]
        # Coordinates stay float32 whatever the arithmetic of the layers is.
        step = STRIDE * self.to_step(tokens).float()
        is_free = is_known & ~is_query_frame(queries, uv.shape[2])
        return step * is_free, self.to_logits(tokens).float() * is_known


def displacement_code(uv: Tensor, octaves: int) -> Tensor:
    """(B, N, T, 4 + 8 octaves) of the steps to the next and from the last frame, px.

    Wavelengths are 2 px, 4 px and so on, whatever the size of the image.
    """
    step = uv[:, :, 1:] - uv[:, :, :-1]
    none = torch.zeros_like(uv[:, :, :1])
    ahead, behind = torch.cat([step, none], dim=2), torch.cat([none, step], dim=2)
    steps = torch.cat([ahead, behind], dim=-1)
    return torch.cat([steps / STRIDE, _sines(steps, octaves)], dim=-1)


def place_code(uv: Tensor, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, T, 22) of where a track is, how far from its query in the image, and in time."""
    half_px = max(size) / 2
    centre = uv.new_tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
    place = (uv - centre) / half_px
    from_query = torch.asinh((uv - queries[:, :, None, 1:]) / STRIDE)
    frames = torch.arange(uv.shape[2], device=uv.device)
    since = frames - queries[..., :1]
    time = torch.stack([torch.tanh(since / 8), (since == 0).to(uv)], dim=-1)
    return torch.cat([place, _sines(2 * place, _PLACE_OCTAVES), from_query, time], dim=-1)


def _sines(values: Tensor, octaves: int) -> Tensor:
    """(..., 2 octaves D) sines and cosines of pi v / 2^k of values (..., D)."""
    rates = math.pi * 0.5 ** torch.arange(octaves, dtype=values.dtype, device=values.device)
    angles = (values[..., None] * rates).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _context_change(maps: FeatureMaps, support: QuerySupport, uv: Tensor) -> Tensor:
    """(B, N, T, E): the context at present less that at the query."""
    num_frames = uv.shape[2]
    frame = torch.arange(num_frames, device=uv.device).expand(uv.shape[:3]).flatten(1)
    now = sample_context(maps, frame, uv.flatten(1, 2))
    if now is None or support.context is None:
        raise ModelError("the maps hold no context; encode the frames with this network")
    return torch.unflatten(now, 1, (-1, num_frames)) - support.context[:, :, None]


def _token_width(config: DynPTConfig) -> int:
    width = config.levels * config.correlation_width + _NUM_LOGITS
    width += 4 + 8 * config.displacement_octaves
    width += 2 + 4 * _PLACE_OCTAVES + 2 + 2
    width += config.context_feature_width if config.has_context else 0
    return width + (RESIDUAL_WIDTH if config.has_motion_residual else 0)


def _zero_linear(source: int, target: int) -> nn.Linear:
    """Untrained, it changes nothing: tracks begin by standing still."""
    linear = nn.Linear(source, target)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _checked(rgb: Tensor, queries: Tensor, valid: Tensor | None) -> Tensor:
    """The mask of valid queries (B, N), after checks of everything that was given."""
    if rgb.ndim != 5 or rgb.shape[2] != 3:
        raise ModelError(f"rgb has shape {tuple(rgb.shape)}; expected (B, T, 3, H, W)")
    if queries.ndim != 3 or queries.shape[::2] != (len(rgb), 3) or queries.shape[1] == 0:
        raise ModelError(
            f"queries have shape {tuple(queries.shape)}; expected ({len(rgb)}, N, 3) with at "
            "least one query"
        )
    if valid is None:
        valid = torch.ones_like(queries[..., 0], dtype=torch.bool)
    elif valid.shape != queries.shape[:2] or valid.dtype != torch.bool:
        raise ModelError(
            f"valid is {valid.dtype} {tuple(valid.shape)}; expected bool "
            f"{tuple(queries.shape[:2])}, one for each query"
        )
    _check_queries(queries[valid], rgb.shape[1], (rgb.shape[-2], rgb.shape[-1]))
    return valid


def _check_queries(queries: Tensor, num_frames: int, size: tuple[int, int]) -> None:
    frame, x, y = queries.unbind(dim=-1)
    good = (frame >= 0) & (frame < num_frames) & (frame == frame.round())
    good &= (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)
    if not bool(good.all()):
        raise ModelError(
            f"{int((~good).sum())} of {len(good)} queries lie outside the clip, first "
            f"{[round(value, 2) for value in queries[~good][0].tolist()]}; expected a whole frame "
            f"number below {num_frames} and a pixel of an image of (height, width) = {size}"
        )

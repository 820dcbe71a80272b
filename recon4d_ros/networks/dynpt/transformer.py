"""Attention over the frames of each track and, through virtual tracks, over the tracks.

Source: Karaev et al., CoTracker, arXiv 2307.07635, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon4d_ros.networks.dynpt.portions import portion
from recon4d_ros.networks.dynpt.sizes import DynPTConfig

# Finite, so that a clip without one known track gives numbers and not NaN.
_MASKED = -1e9


class AttentionBlock(nn.Module):
    """Attention and MLP, each on normalised tokens and added to its input."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_seen = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, mlp_ratio * width)
        self.mlp_out = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (F, M, D) look at tokens (F, K, D); mask (F, 1, 1, K) is added to the scores."""
        tokens = max(x.shape[1], seen.shape[1])
        rows = portion(x, len(x), tokens * self.mlp_in.out_features)
        parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
        masks = [None if mask is None else mask[part] for part in parts]
        done = [self._changed(x[p], seen[p], m) for p, m in zip(parts, masks, strict=True)]
        return torch.cat(done)

    def _changed(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        q = self._split(self.query(self.norm_query(x)))
        key, value = self.key_value(self.norm_seen(seen)).chunk(2, dim=-1)
        found = _attention(q, self._split(key), self._split(value), mask)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp_out(functional.relu(self.mlp_in(self.norm_mlp(x))))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        return torch.unflatten(tokens, -1, (self.num_heads, -1)).transpose(1, 2)


def _attention(q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(F, heads, M, d); of so few tokens plain products are faster on a CPU."""
    if q.is_cuda or torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(q, key, value, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ key.mT
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    found: Tensor = weights @ value
    return found


class SpaceTimeLayer(nn.Module):
    """One layer over time, then one over space through the virtual tracks."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        sizes = (config.hidden, config.heads, config.mlp_ratio)
        self.over_time = AttentionBlock(*sizes)
        self.gather = AttentionBlock(*sizes)
        self.among_virtual = AttentionBlock(*sizes)
        self.spread = AttentionBlock(*sizes)

    def forward(self, tracks: Tensor, virtual: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tracks (B, N, T, D), virtual ones (B, V, T, D), mask (B * T, 1, 1, N) of the former."""
        num_frames = tracks.shape[2]
        points, hubs = (self._by_frame(rows) for rows in (tracks, virtual))
        hubs = self.gather(hubs, points, mask)
        hubs = self.among_virtual(hubs, hubs)
        points = self.spread(points, hubs)
        return self._by_track(points, num_frames), self._by_track(hubs, num_frames)

    def _by_frame(self, tracks: Tensor) -> Tensor:
        """Tokens (B * T, N, D) of tracks (B, N, T, D), after each has looked at its frames."""
        rows = tracks.flatten(0, 1)
        seen = torch.unflatten(self.over_time(rows, rows), 0, (-1, tracks.shape[1]))
        return seen.transpose(1, 2).flatten(0, 1)

    @staticmethod
    def _by_track(frames: Tensor, num_frames: int) -> Tensor:
        return torch.unflatten(frames, 0, (-1, num_frames)).transpose(1, 2)


class SpaceTimeTransformer(nn.Module):
    """Tokens (B, N, T, D) to tokens of the same shape."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        width = config.hidden
        self.virtual = nn.Parameter(0.02 * torch.randn(config.virtual_tracks, width))
        layers = [SpaceTimeLayer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, tracks: Tensor, shared: Tensor | None, valid: Tensor) -> Tensor:
        """Refine tokens.

        Args:
            tracks: (B, N, T, D).
            shared: (B, T, D), one more virtual track, or None.
            valid: (B, N) bool; the other tracks are seen by none.
        """
        num_clips, _, num_frames, width = tracks.shape
        code = time_code(num_frames, width).to(tracks)
        tracks = tracks + code
        virtual = (self.virtual[:, None] + code).expand(num_clips, -1, -1, -1)
        if shared is not None:
            virtual = torch.cat([virtual, (shared + code)[:, None]], dim=1)
        mask = torch.where(valid, 0.0, _MASKED).to(tracks)
        mask = mask.repeat_interleave(num_frames, dim=0)[:, None, None]
        for layer in self.layers:
            tracks, virtual = layer(tracks, virtual, mask)
        out: Tensor = self.norm(tracks)
        return out


def time_code(num_frames: int, width: int) -> Tensor:
    """(T, width) sines and cosines of the frame's number, of wavelengths from 6 frames up.

    Source: Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.5. The code of a
    frame does not depend on the window's length.
    """
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(num_frames, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

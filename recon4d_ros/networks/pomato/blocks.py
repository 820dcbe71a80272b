"""Transformer blocks of the encoder and the decoder.

Attributes carry the names of the published checkpoints, so that their tensors load as they are.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929 (pre-norm blocks);
Weinzaepfel et al., CroCo v2, arXiv 2211.10408 (decoder with cross-attention, rotary positions).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from recon4d_ros.networks.pomato.rope import RopeTable, rotate

LAYER_NORM_EPS = 1e-6


def layer_norm(width: int) -> nn.LayerNorm:
    """Norm of encoder and decoder; its epsilon differs from torch's default."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class SelfAttention(nn.Module):
    """Attention among the tokens of one image: (B, N, C) to (B, N, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: RopeTable) -> Tensor:
        """Attend; queries and keys are turned by their positions, values are not."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rope).unbind(0)
        out = functional.scaled_dot_product_attention(q, k, qkv[2])
        return _joined(self.proj, out)


class CrossAttention(nn.Module):
    """Attention of one image's tokens (B, N, C) to another's (B, M, C): (B, N, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, rope_x: RopeTable, rope_y: RopeTable) -> Tensor:
        """Attend from x to y; each side is turned by its own grid."""
        q, k, v = (
            projection(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.projq, x), (self.projk, y), (self.projv, y))
        )
        out = functional.scaled_dot_product_attention(rotate(q, rope_x), rotate(k, rope_y), v)
        return _joined(self.proj, out)


def _joined(projection: nn.Linear, heads: Tensor) -> Tensor:
    joined: Tensor = projection(heads.transpose(1, 2).flatten(-2))
    return joined


class Mlp(nn.Module):
    """Two linear layers with a GELU between, per token: (..., C) to (..., C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) to one token (B, N, C) per patch, row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Project each patch."""
        maps: Tensor = self.proj(images)
        return maps.flatten(2).mT


class EncoderBlock(nn.Module):
    """Self-attention and MLP on tokens (B, N, E)."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, rope: RopeTable) -> Tensor:
        """One layer; the shape is kept."""
        x = x + self.attn(self.norm1(x), rope)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the other image and MLP on tokens (B, N, D)."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = layer_norm(width)
        self.norm_y = layer_norm(width)
        self.cross_attn = CrossAttention(width, num_heads)
        self.norm3 = layer_norm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, y: Tensor, rope_x: RopeTable, rope_y: RopeTable) -> Tensor:
        """One layer for x; y (B, M, D) is what the other branch held before this layer."""
        x = x + self.attn(self.norm1(x), rope_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rope_x, rope_y)
        out: Tensor = x + self.mlp(self.norm3(x))
        return out

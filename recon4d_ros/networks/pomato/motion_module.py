"""Motion module: attention over the frames of a window, separately at every pixel.

It alone mixes frames; each of the three heads of a temporal model holds four.

Source: Guo et al., AnimateDiff, arXiv 2307.04725, section 4.3; Vaswani et al., Attention Is All
You Need, arXiv 1706.03762, section 3.5 (table of positions); Shazeer, GLU Variants Improve
Transformer, arXiv 2002.05202 (gated MLP).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_GROUPS = 32
GROUP_NORM_EPS = 1e-6
NUM_HEADS = 8
HIDDEN_RATIO = 4
# Pixels at a time on a CPU, where the hidden layer of all of them would be the largest tensor of
# the whole network; a GPU gains nothing from it.
CPU_PIXELS = 256


class MotionModule(nn.Module):
    """Residual on maps (B*T, C, h, w) of windows of T frames, the frame running fastest."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(width, num_frames)

    def forward(self, maps: Tensor) -> Tensor:
        """Let every pixel see itself in the other frames; the shape is kept."""
        out: Tensor = maps + self.temporal_transformer(maps)
        return out


class TemporalTransformer(nn.Module):
    """What a motion module adds to its input."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.norm = nn.GroupNorm(NORM_GROUPS, width, eps=GROUP_NORM_EPS)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.Sequential(TemporalBlock(width, num_frames))
        self.proj_out = nn.Linear(width, width)
        # An untrained module changes nothing, so that training starts at the pairwise network.
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B*T, C, h, w) to what is added to them."""
        height, width = maps.shape[-2:]
        # Of channels-last maps torch takes the variance as a difference of two sums, which leaves
        # few digits where a group is nearly constant.
        clips = torch.unflatten(self.norm(maps.contiguous()), 0, (-1, self.num_frames))
        pixels = clips.permute(0, 3, 4, 1, 2).flatten(0, 2)
        is_split = pixels.device.type == "cpu" and not torch.compiler.is_exporting()
        parts = torch.split(pixels, CPU_PIXELS) if is_split else (pixels,)
        out = torch.cat(
            [self.proj_out(self.transformer_blocks(self.proj_in(part))) for part in parts]
        )
        clips = torch.unflatten(out, 0, (-1, height, width))
        return clips.permute(0, 3, 4, 1, 2).flatten(0, 1)


class TemporalBlock(nn.Module):
    """Two attentions over frames and a gated MLP on pixels (P, T, C)."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        attentions = [TemporalAttention(width, num_frames) for _ in range(2)]
        self.attention_blocks = nn.ModuleList(attentions)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """One layer; the shape is kept."""
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attention(norm(x))
        out: Tensor = x + self.ff(self.ff_norm(x))
        return out


class TemporalAttention(nn.Module):
    """Attention over the T frames of each pixel: (P, T, C) to (P, T, C)."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.pos_encoder = FramePosition(width, num_frames)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend among all frames, later ones included; values carry the frame's place too."""
        x = self.pos_encoder(x)
        q, k, v = (
            projection(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        heads = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(heads.transpose(1, 2).flatten(-2))
        return out


class FramePosition(nn.Module):
    """Adds the place of each frame in its window to (P, T, C)."""

    pe: Tensor

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoids(num_frames, width)[None])

    def forward(self, x: Tensor) -> Tensor:
        """Add the table."""
        return x + self.pe


def sinusoids(length: int, width: int) -> Tensor:
    """Table (length, width): sine in even channels, cosine in odd ones.

    Source: arXiv 1706.03762, section 3.5.
    """
    # On the CPU, since torch imports its compiler, for seconds, to calculate on the meta device.
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * rates
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).float()
    return table.to(torch.get_default_device())


class FeedForward(nn.Module):
    """Gated MLP: (..., C) to (..., C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = HIDDEN_RATIO * width
        # The middle is where the published modules keep a dropout of zero.
        self.net = nn.Sequential(Geglu(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate and project back."""
        out: Tensor = self.net(x)
        return out


class Geglu(nn.Module):
    """Linear layer whose second half gates the first: (..., C) to (..., hidden)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Project and gate."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * functional.gelu(gate)
        return out

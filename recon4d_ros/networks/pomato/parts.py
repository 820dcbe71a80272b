"""The parts of POMATO: encode an image, decode pairs of encoded images, run one head.

    image 1 - encode - features 1 -+- decode -+- tokens 1 - head 1: points of image 1
    image 2 - encode - features 2 -+          +- tokens 2 +- head 2: points of image 2
                                                          +- head 3: matching of image 2

All points are in the camera of image 1, x right, y down, z forward, at an unknown scale per call.
Head 2 gives them at the time of image 2, head 3 where the same physical points were at the time
of image 1.

Source: POMATO, arXiv 2504.05692; DUSt3R, arXiv 2312.14132.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato.blocks import DecoderBlock, EncoderBlock, PatchEmbed, layer_norm
from recon4d_ros.networks.pomato.dpt_head import DEFAULT_CHUNK, Pointmap, PointmapHead
from recon4d_ros.networks.pomato.rope import Grid, RopeTable, rope_table
from recon4d_ros.networks.pomato.sizes import PATCH, PomatoSizes
from recon4d_ros.networks.pomato.tokens import Features, HookTokens

HEADS = (1, 2, 3)


class PomatoParts(nn.Module):
    """Encoder, decoder and heads, for use one by one.

    The names of parameters are those of the published checkpoints. Gradients flow through every
    part; wrap calls in `torch.no_grad` where they are not wanted. Works in float32, in float64
    and under autocast.
    """

    def __init__(self, sizes: PomatoSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or PomatoSizes()
        sizes.check()
        encoder = sizes.encoder_width, sizes.encoder_heads, sizes.encoder_hidden
        decoder = sizes.decoder_width, sizes.decoder_heads, sizes.decoder_hidden
        encoder_layers, decoder_layers = range(sizes.encoder_depth), range(sizes.decoder_depth)
        # Left over from pre-training and never read; kept so that checkpoints stay whole.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.decoder_width))
        self.patch_embed = PatchEmbed(sizes.encoder_width, PATCH)
        self.enc_blocks = nn.ModuleList(EncoderBlock(*encoder) for _ in encoder_layers)
        self.enc_norm = layer_norm(sizes.encoder_width)
        self.decoder_embed = nn.Linear(sizes.encoder_width, sizes.decoder_width)
        self.dec_blocks = nn.ModuleList(DecoderBlock(*decoder) for _ in decoder_layers)
        self.dec_blocks2 = nn.ModuleList(DecoderBlock(*decoder) for _ in decoder_layers)
        self.dec_norm = layer_norm(sizes.decoder_width)
        self.downstream_head1 = PointmapHead(sizes)
        self.downstream_head2 = PointmapHead(sizes)
        self.downstream_head3 = PointmapHead(sizes)

    @property
    def temporal_length(self) -> int | None:
        """Frames of a window; None for the pairwise model."""
        return self.sizes.temporal_length

    def encode(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1], sides multiples of 16.

        Raises:
            ModelError: the images have another shape or are not of floating type.
        """
        check_images(images, 4, "(B, 3, H, W)")
        grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))
        rope = rope_table(grid, self.sizes.encoder_width // self.sizes.encoder_heads, x)
        for block in self.enc_blocks:
            x = block(x, rope)
        return Features(self.enc_norm(x), grid)

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        """Tokens of both branches for B pairs; head 1 reads the first, heads 2 and 3 the second.

        Raises:
            ModelError: the numbers of images differ.
        """
        num1, num2 = features1.tokens.shape[0], features2.tokens.shape[0]
        if num1 != num2:
            raise ModelError(f"got {num1} first and {num2} second images; expected pairs")
        f1, f2 = self.decoder_embed(features1.tokens), self.decoder_embed(features2.tokens)
        rope1, rope2 = self._decoder_rope(features1, f1), self._decoder_rope(features2, f2)
        # Only what the heads read is kept: of many pairs, all outputs would be a lot of memory.
        read1, read2 = {0: features1.tokens}, {0: features2.tokens}
        blocks = zip(self.dec_blocks, self.dec_blocks2, strict=True)
        for number, (block1, block2) in enumerate(blocks, start=1):
            f1, f2 = block1(f1, f2, rope1, rope2), block2(f2, f1, rope2, rope1)
            if number in self.sizes.hooks:
                read1[number], read2[number] = f1, f2
        read1[number], read2[number] = self.dec_norm(f1), self.dec_norm(f2)
        return self._hooked(read1, features1.grid), self._hooked(read2, features2.grid)

    def _decoder_rope(self, features: Features, like: Tensor) -> RopeTable:
        width = self.sizes.decoder_width // self.sizes.decoder_heads
        return rope_table(features.grid, width, like)

    def _hooked(self, outputs: Mapping[int, Tensor], grid: Grid) -> HookTokens:
        first, second, third, fourth = (outputs[hook] for hook in self.sizes.hooks)
        return HookTokens((first, second, third, fourth), grid)

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> Pointmap:
        """Points (B, H, W, 3) and confidence (B, H, W) of one head.

        Args:
            number: 1, 2 or 3.
            tokens: of the head's branch; for a temporal model whole windows of
                `temporal_length` pairs, the frame running fastest.
            frames: places in the window whose maps are wanted, all if None. The others still
                lend their coarse part, but not the costly fine one.
            chunk: frames in the fine part at a time; bounds memory and changes no result.

        Raises:
            ModelError: there is no such head or the tokens are no whole number of windows.
        """
        check_heads((number,))
        head = (self.downstream_head1, self.downstream_head2, self.downstream_head3)[number - 1]
        pointmap: Pointmap = head(tokens, frames, chunk)
        return pointmap


def check_heads(heads: Sequence[int]) -> None:
    """Require numbers of heads.

    Raises:
        ModelError: there is no such head.
    """
    if not set(heads) <= set(HEADS):
        raise ModelError(f"heads are {tuple(heads)}; expected some of {HEADS}")


def check_images(images: Tensor, num_axes: int, expected: str) -> None:
    """Require images of a network: floating type, 3 channels, sides in whole patches.

    Raises:
        ModelError: they are not; the message names the expected shape.
    """
    shape = tuple(images.shape)
    if len(shape) != num_axes or shape[-3] != 3 or 0 in shape:
        raise ModelError(f"images have shape {shape}; expected {expected}, none empty")
    if shape[-2] % PATCH or shape[-1] % PATCH:
        raise ModelError(
            f"images are {shape[-2]} x {shape[-1]}; crop or resize them to multiples of {PATCH}"
        )
    if not images.is_floating_point():
        raise ModelError(f"images are {images.dtype}; expected floats in [-1, 1]: x / 127.5 - 1")

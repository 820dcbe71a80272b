"""The sizes of a POMATO network: of the published models, or as read from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato import motion_module

# Pixels along a side of a patch; the heads return 2^4 values for each token.
PATCH = 16
# Channels of one attention head, where a checkpoint does not say otherwise.
HEAD_WIDTH = 64

_HEAD = "downstream_head1.dpt."
_PE = f"{_HEAD}motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0."

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PomatoSizes:
    """Widths in channels, depths in blocks; the defaults are the published pairwise model.

    Attributes:
        level_widths: channels of the four levels of a head, the finest first.
        feature_width: channels in which a head joins its levels.
        head_widths: channels after the first and the second of a head's last convolutions.
        temporal_length: frames of a window, or None for the pairwise model.
    """

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    encoder_hidden: int = 4096
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    decoder_hidden: int = 3072
    level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    feature_width: int = 256
    head_widths: tuple[int, int] = (128, 128)
    temporal_length: int | None = None

    @property
    def hooks(self) -> tuple[int, int, int, int]:
        """Numbers of the decoder outputs that heads read; number 0 is the encoder's output."""
        depth = self.decoder_depth
        return 0, 2 * depth // 4, 3 * depth // 4, depth

    @property
    def description(self) -> str:
        """What the model is, for messages."""
        if self.temporal_length is None:
            return "a pairwise model"
        return f"a temporal model of {self.temporal_length} frames"

    def check(self) -> None:
        """Require sizes that a network can have.

        Raises:
            ModelError: a size is not positive, or widths do not divide as they must.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            if any(part is not None and part < 1 for part in parts):
                raise ModelError(f"{field.name} is {value}; expected at least 1")
        if self.decoder_depth < 2:
            raise ModelError("the decoder has 1 block; a head reads the outputs of at least 2")
        _check_heads("encoder", self.encoder_width, self.encoder_heads)
        _check_heads("decoder", self.decoder_width, self.decoder_heads)
        if self.temporal_length is not None:
            _check_motion_width("decoder_width", self.decoder_width)
            _check_motion_width("feature_width", self.feature_width)


def _check_heads(part: str, width: int, num_heads: int) -> None:
    if width % num_heads or (width // num_heads) % 4:
        raise ModelError(
            f"{part}_heads is {num_heads} for {width} channels; expected a number that divides "
            f"them into multiples of 4; pass the {part}_heads that the network was trained with"
        )


def _check_motion_width(name: str, width: int) -> None:
    if width % motion_module.NORM_GROUPS:
        raise ModelError(
            f"{name} is {width}; the motion modules of a temporal model need a multiple of "
            f"{motion_module.NORM_GROUPS}"
        )


def read_sizes(
    shapes: Shapes, encoder_heads: int | None, decoder_heads: int | None
) -> PomatoSizes:
    """Sizes of the network that a checkpoint's tensors belong to.

    Shapes do not tell the numbers of attention heads: give them, or heads have 64 channels.

    Raises:
        ModelError: a tensor that tells a size is missing or no network has these sizes.
    """
    decoder_width, encoder_width = (_size(shapes, "decoder_embed.weight", axis) for axis in (0, 1))
    levels = [_size(shapes, f"{_HEAD}act_postprocess.{level}.0.weight") for level in range(4)]
    is_temporal = any(".motion_modules." in name for name in shapes)
    sizes = PomatoSizes(
        encoder_width=encoder_width,
        encoder_depth=_depth(shapes, "enc_blocks"),
        encoder_heads=_num_heads("encoder", encoder_width, encoder_heads),
        encoder_hidden=_size(shapes, "enc_blocks.0.mlp.fc1.weight"),
        decoder_width=decoder_width,
        decoder_depth=_depth(shapes, "dec_blocks"),
        decoder_heads=_num_heads("decoder", decoder_width, decoder_heads),
        decoder_hidden=_size(shapes, "dec_blocks.0.mlp.fc1.weight"),
        level_widths=(levels[0], levels[1], levels[2], levels[3]),
        feature_width=_size(shapes, f"{_HEAD}scratch.layer_rn.0.weight"),
        head_widths=(
            _size(shapes, f"{_HEAD}head.0.weight"),
            _size(shapes, f"{_HEAD}head.2.weight"),
        ),
        temporal_length=_size(shapes, f"{_PE}pos_encoder.pe", 1) if is_temporal else None,
    )
    sizes.check()
    return sizes


def _size(shapes: Shapes, name: str, axis: int = 0) -> int:
    if name not in shapes:
        held = ", ".join(list(shapes)[:3]) or "nothing"
        raise ModelError(
            f"no tensor {name} among {len(shapes)} ({held}, ...); expected the weights of POMATO "
            "with DPT heads: give the file of such a network"
        )
    if axis >= len(shapes[name]):
        raise ModelError(
            f"{name} has shape {tuple(shapes[name])}; expected more axes: the file is damaged"
        )
    return shapes[name][axis]


def _depth(shapes: Shapes, stack: str) -> int:
    found = (re.match(rf"{stack}\.(\d+)\.", name) for name in shapes)
    return len({match[1] for match in found if match})


def _num_heads(part: str, width: int, given: int | None) -> int:
    if given is not None:
        return given
    if width % HEAD_WIDTH:
        raise ModelError(
            f"{part}_heads is not given and {width} channels are no multiple of {HEAD_WIDTH}; "
            f"pass the {part}_heads that the network was trained with"
        )
    return width // HEAD_WIDTH

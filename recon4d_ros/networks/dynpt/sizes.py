"""The sizes of a DynPT network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from recon4d_ros.errors import ModelError

# Pixels along a side of a cell of the finest feature map, and of a patch of the 3D-aware encoder.
STRIDE = 4
PATCH = 16

# What the features are made of: both encoders, the ablation "CE", the ablation "3E".
ENCODERS = ("both", "cnn", "context")
# The 3D-aware encoder: tokens of a frozen network given from outside, or trained convolutions.
CONTEXTS = ("tokens", "convolutions")
# Where tracks are before the first iteration: at their queries, or where chained flow leads.
STARTS = ("standing", "flow")


@dataclass(frozen=True)
class DynPTConfig:
    """Widths in channels, depths in layers; the defaults are the full-size network.

    Attributes:
        trunk_widths: channels of the CNN at strides 2, 4, 8 and 16.
        feature_width: channels of the feature maps that are correlated.
        encoders: both, cnn or context.
        context: what the 3D-aware encoder is, tokens or convolutions.
        token_width: channels of the tokens given from outside.
        context_width: channels of the context branch's maps.
        context_feature_width: channels of what a track sees of the context at its position.
        levels: of the pyramid, each half as large as the one before.
        query_radius: the patch around a query has 2 r + 1 cells a side.
        target_radius: likewise the patch around a track's present position.
        correlation_hidden: width of the hidden layer that reads the correlations of a level.
        correlation_width: numbers it makes of them.
        displacement_octaves: wavelengths that code the step from frame to frame.
        hidden: width of the transformer.
        heads: of its attentions.
        mlp_ratio: width of the hidden layers of its MLPs over its own.
        layers: pairs of one layer over time and one over space.
        virtual_tracks: learned tracks through which the others see each other.
        has_global_motion: one more of these holds the median motion of the image's regions.
        has_motion_residual: a track sees what a homography leaves of its motion.
        start: of the tracks before the first iteration, standing or flow.
        frames: of the windows it was trained on.
        iterations: made unless said otherwise.
    """

    trunk_widths: tuple[int, int, int, int] = (64, 96, 128, 128)
    feature_width: int = 128
    encoders: str = "both"
    context: str = "tokens"
    token_width: int = 1024
    context_width: int = 128
    context_feature_width: int = 64
    levels: int = 4
    query_radius: int = 3
    target_radius: int = 3
    correlation_hidden: int = 384
    correlation_width: int = 256
    displacement_octaves: int = 10
    hidden: int = 384
    heads: int = 8
    mlp_ratio: int = 4
    layers: int = 3
    virtual_tracks: int = 64
    has_global_motion: bool = True
    has_motion_residual: bool = True
    start: str = "standing"
    frames: int = 16
    iterations: int = 4

    def __post_init__(self) -> None:
        for name in ("trunk_widths",):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_numbers()
        words = {"encoders": ENCODERS, "context": CONTEXTS, "start": STARTS}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ModelError(f"{name} is {getattr(self, name)!r}; expected one of {choices}")
        if self.hidden % self.heads or self.hidden % 2:
            raise ModelError(
                f"heads is {self.heads} for a hidden width of {self.hidden}; expected an even "
                "width that the heads divide"
            )

    def _check_numbers(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, int) and part < 1 and part is not False for part in parts):
                raise ModelError(f"{field.name} is {value}; expected at least 1")

    @property
    def has_cnn(self) -> bool:
        """The features hold those of the CNN."""
        return self.encoders != "context"

    @property
    def has_context(self) -> bool:
        """There is a 3D-aware branch."""
        return self.encoders != "cnn"

    @property
    def needs_flow(self) -> bool:
        """Tracks by chained flow must be given to start from."""
        return self.start == "flow"

    @property
    def needs_tokens(self) -> bool:
        """Tokens of another network must be given with the frames."""
        return self.has_context and self.context == "tokens"

    @classmethod
    def named(cls, name: str) -> DynPTConfig:
        """One of the sizes of this project: full, small, lean or tiny.

        Raises:
            ModelError: there is no such size.
        """
        if name not in _NAMED:
            raise ModelError(f"no size {name!r} of DynPT; expected one of {tuple(_NAMED)}")
        return cls(**_NAMED[name])

    def to_json(self) -> str:
        """As one line of JSON, which `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DynPTConfig:
        """Read what `to_json` wrote.

        Raises:
            ModelError: no such text, or no network has these sizes.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"the sizes {text[:200]!r} are not those of a DynPT network ({error}); "
                "give a checkpoint that this version wrote"
            ) from error


_SMALL: dict[str, Any] = {
    "trunk_widths": (32, 48, 64, 64),
    "feature_width": 64,
    "context": "convolutions",
    "context_width": 96,
    "context_feature_width": 32,
    "levels": 3,
    "query_radius": 2,
    "correlation_hidden": 256,
    "correlation_width": 96,
    "displacement_octaves": 8,
    "hidden": 192,
    "heads": 4,
    "virtual_tracks": 16,
}
_TINY: dict[str, Any] = _SMALL | {
    "trunk_widths": (16, 24, 32, 32),
    "feature_width": 32,
    "context_width": 48,
    "context_feature_width": 16,
    "query_radius": 1,
    "target_radius": 2,
    "correlation_hidden": 96,
    "correlation_width": 48,
    "hidden": 96,
    "mlp_ratio": 2,
    "layers": 2,
    "virtual_tracks": 8,
    "frames": 8,
}
# Live on two CPU cores: flow finds the tracks, the network mends and judges them.
_LEAN: dict[str, Any] = _TINY | {
    "trunk_widths": (8, 16, 24, 32),
    "feature_width": 24,
    "context_width": 24,
    "context_feature_width": 8,
    "target_radius": 1,
    "virtual_tracks": 16,
    "start": "flow",
    "frames": 12,
    "iterations": 1,
}
_NAMED: dict[str, dict[str, Any]] = {
    "full": {},
    "small": _SMALL,
    "lean": _LEAN,
    "tiny": _TINY,
}

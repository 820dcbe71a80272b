"""What an exported POMATO network consists of: ONNX files and a description that vouches for them.

    encoder.onnx        images -> tokens
    decoder.onnx        tokens of both images of a pair -> tokens for the heads
    headK_coarse.onnx   tokens of the two coarser levels -> path, frames of a window mixed
    headK_fine.onnx     tokens of the two finer levels, path -> points, confidence

The number of images is free, their size is fixed. Weights lie beside each file as `*.onnx.data`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.files import sha256_of
from recon4d_ros.networks.pomato.rope import Grid
from recon4d_ros.networks.pomato.sizes import PATCH

Precision: TypeAlias = Literal["fp32", "fp16"]

DESCRIPTION = "pomato.json"
ENCODER, DECODER = "encoder", "decoder"
_FORMAT = "recon4d_ros POMATO as ONNX, 1"


def coarse_part(head: int) -> str:
    """Name of the part of a head that needs whole windows."""
    return f"head{head}_coarse"


def fine_part(head: int) -> str:
    """Name of the part of a head that sees each frame by itself."""
    return f"head{head}_fine"


@dataclass(frozen=True)
class OnnxDescription:
    """What `pomato.json` says.

    Attributes:
        temporal_length: frames of a window; None for the pairwise model.
        height: of the images in pixels, as `width`.
        precision: of weights and tokens; images and pointmaps are float32 always.
        errors: relative L2 distance from the float32 network, measured when it was exported.
        sha256: of every other file of the folder, by name.
        format: of this description.
    """

    temporal_length: int | None
    height: int
    width: int
    precision: Precision
    errors: Mapping[str, float]
    sha256: Mapping[str, str]
    format: str = _FORMAT

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""
        return self.height // PATCH, self.width // PATCH


def write_description(folder: Path, description: OnnxDescription) -> None:
    """Write `pomato.json`.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1) + "\n")


def read_description(folder: Path, parts: Sequence[str]) -> OnnxDescription:
    """Read `pomato.json` and check the files that belong to some parts.

    Raises:
        ModelError: the folder is no complete, undamaged export; the message says what to do.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no {DESCRIPTION}; expected a folder written by `recon4d export`"
        )
    description = _parsed(path)
    for part in parts:
        graph = f"{part}.onnx"
        if graph not in description.sha256:
            raise ModelError(f"{path} names no {graph}; {_again(folder)}")
        for name in (graph, f"{graph}.data"):
            if name in description.sha256:
                _check_file(folder / name, description.sha256[name])
    return description


def _parsed(path: Path) -> OnnxDescription:
    names = {field.name for field in fields(OnnxDescription)}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} ({error}); {_again(path.parent)}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelError(f"{path} is not of the format '{_FORMAT}'; {_again(path.parent)}")
    length, sides = content.get("temporal_length"), [content.get(k) for k in ("height", "width")]
    is_sound = (
        content.keys() == names
        and (length is None or (isinstance(length, int) and length > 0))
        and all(isinstance(side, int) and side > 0 and side % PATCH == 0 for side in sides)
        and content["precision"] in get_args(Precision)
        and isinstance(content["errors"], dict)
        and isinstance(content["sha256"], dict)
    )
    if not is_sound:
        raise ModelError(f"{path} lacks entries or holds others; {_again(path.parent)}")
    return OnnxDescription(**content)


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing; {_again(path.parent)}")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if found != sha256:
        raise ModelError(
            f"{path} is damaged: its SHA-256 is {found[:12]}..., {DESCRIPTION} says "
            f"{str(sha256)[:12]}...; {_again(path.parent)}"
        )


def _again(folder: Path) -> str:
    return f"write {folder} again with `recon4d export`, or copy all of its files"

"""What an exported DynPT network consists of.

    encoder.onnx   images -> the levels of their feature maps, and their context
    updater.onnx   maps, support, queries, state and common motion -> steps of the state

Sizes are fixed, but for the number of images that are encoded; what is not learned, such as the
common motion of all tracks, stays outside. `dynpt.json` vouches for the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.networks.files import sha256_of

DESCRIPTION = "dynpt.json"
ENCODER, UPDATER = "encoder", "updater"
_FORMAT = "recon4d_ros DynPT as ONNX, 1"


@dataclass(frozen=True)
class OnnxDescription:
    """What `dynpt.json` says.

    Attributes:
        config: sizes of the network, as `DynPTConfig.to_json` writes them.
        height: of the images, px, as `width`.
        num_frames: of the windows.
        num_points: rows for tracks.
        errors: largest absolute difference from the network, by output, when it was exported.
        sha256: of every other file of the folder, by name.
        format: of this description.
    """

    config: str
    height: int
    width: int
    num_frames: int
    num_points: int
    errors: Mapping[str, float]
    sha256: Mapping[str, str]
    format: str = _FORMAT


def write_description(folder: Path, description: OnnxDescription) -> None:
    """Write `dynpt.json`.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1) + "\n")


def read_description(folder: Path) -> OnnxDescription:
    """Read `dynpt.json` and check the files that it names.

    Raises:
        ModelError: the folder is no complete, undamaged export; the message says what to do.
    """
    path = folder / DESCRIPTION
    again = f"write {folder} again with `recon4d export`, or copy all of its files"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} ({error}); {again}") from error
    names = {field.name for field in fields(OnnxDescription)}
    if not isinstance(content, dict) or content.keys() != names or content["format"] != _FORMAT:
        raise ModelError(f"{path} is not of the format '{_FORMAT}'; {again}")
    description = OnnxDescription(**content)
    DynPTConfig.from_json(description.config)
    for name, expected in description.sha256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ModelError(f"{folder / name} is missing or damaged; {again}")
    return description

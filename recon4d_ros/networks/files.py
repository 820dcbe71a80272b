"""What files of weights have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path

import recon4d_ros
from recon4d_ros.errors import MissingPrerequisiteError

_BLOCK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; one block is in memory at a time.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def shipped_file(name: str) -> Path:
    """A file of `models/` of this installation, in the repository or in a share folder.

    Raises:
        MissingPrerequisiteError: it is not installed.
    """
    folders = Path(recon4d_ros.__file__).resolve().parents[1:]
    places = [folders[0] / "models", *(f / "share" / "recon4d_ros" / "models" for f in folders)]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise MissingPrerequisiteError(
        f"models/{name} is neither in {folders[0]} nor in a share folder above it; install "
        "recon4d_ros again"
    )

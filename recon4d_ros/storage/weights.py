"""Weights of networks: which ones there are, where they are kept, and whether they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros.errors import MissingPrerequisiteError, ModelError, OutputError, SourceError
from recon4d_ros.installation import package_file
from recon4d_ros.networks.files import sha256_of

FOLDER_VARIABLE = "RECON4D_MODELS"
_MANIFEST = "models/manifest.yaml"
_DIGITS = 64

# Puts the file of a repository into a folder.
Download = Callable[[str, str, Path], None]


@dataclass(frozen=True)
class Weights:
    """One entry of `models/manifest.yaml`.

    Attributes:
        name: what the command line calls it.
        file: its name, at the publisher and here.
        repository: owner and name on the Hugging Face Hub.
        licence: of the weights; it binds whoever fetches them.
        sha256: of the file, or None if it is recorded at the first fetch.
        description: one line.
    """

    name: str
    file: str
    repository: str
    licence: str
    sha256: str | None
    description: str


def read_manifest(path: Path | None = None) -> tuple[Weights, ...]:
    """All weights that are known.

    Raises:
        MissingPrerequisiteError: there is no manifest.
        SourceError: it cannot be read or lacks entries.
    """
    path = path or package_file(_MANIFEST)
    try:
        content = yaml.safe_load(path.read_text())
        entries = [_entry(item) for item in content["models"]]
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {error}; expected a list of models") from error
    return tuple(entries)


def _entry(item: Any) -> Weights:
    names = [field.name for field in fields(Weights)]
    if not isinstance(item, dict) or sorted(item) != sorted(names):
        raise ValueError(f"got {item!r}, expected {', '.join(names)}")
    wrong = [n for n in names if not (isinstance(item[n], str) or (n == "sha256" and not item[n]))]
    if wrong or Path(item["file"]).name != item["file"]:
        raise ValueError(f"got {item!r}, expected text and a plain file name")
    return Weights(**item)


def find_weights(name: str, manifest: tuple[Weights, ...]) -> Weights:
    """The entry of a name, which may also be that of its file.

    Raises:
        ModelError: there is none.
    """
    for weights in manifest:
        if name in (weights.name, weights.file):
            return weights
    names = ", ".join(weights.name for weights in manifest)
    raise ModelError(f"there are no weights called {name!r}; expected one of {names}")


def weights_folder() -> Path:
    """Where fetched weights are kept: `$RECON4D_MODELS`, else in the user's cache folder."""
    if os.environ.get(FOLDER_VARIABLE):
        return Path(os.environ[FOLDER_VARIABLE]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "recon4d_ros" / "models"


def fetch(weights: Weights, folder: Path, download: Download) -> Path:
    """Path of the weights, downloaded if they are not there, and checked in either case.

    Raises:
        ModelError: they cannot be had, or are not the ones that were recorded.
        OutputError: the folder cannot be written.
    """
    path = folder / weights.file
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder}: {error}; set {FOLDER_VARIABLE}") from error
        download(weights.repository, weights.file, folder)
    verify(weights, folder)
    return path


def verify(weights: Weights, folder: Path) -> str:
    """SHA-256 of the weights, equal to the known one, or recorded where none is known yet.

    Raises:
        ModelError: the file is not there or has changed.
        OutputError: the checksum cannot be recorded.
    """
    path, record = folder / weights.file, record_path(weights, folder)
    if not path.is_file():
        raise ModelError(f"{path} is not there; run `recon4d models fetch {weights.name}`")
    try:
        found, known = sha256_of(path), weights.sha256 or _recorded(record)
        if known is None:
            record.write_text(f"{found}  {weights.file}\n")
    except OSError as error:
        raise OutputError(f"cannot check {path}: {error}") from error
    if known not in (None, found):
        raise ModelError(
            f"{path} has SHA-256 {found}, expected {known}: it is damaged or another file; remove "
            f"it and run `recon4d models fetch {weights.name}`, or remove {record.name} if the "
            "publisher has replaced it"
        )
    return found


def record_path(weights: Weights, folder: Path) -> Path:
    """Where the checksum of fetched weights is written, as `sha256sum` writes it."""
    return folder / f"{weights.file}.sha256"


def _recorded(path: Path) -> str | None:
    if not path.is_file():
        return None
    found = path.read_text(errors="replace").partition(" ")[0].lower()
    if len(found) != _DIGITS or set(found) - set("0123456789abcdef"):
        raise ModelError(f"{path} holds no SHA-256; remove it to record the file's present one")
    return found


def hub_download(repository: str, file: str, folder: Path) -> None:
    """Fetch a file from the Hugging Face Hub, with its progress bar.

    Raises:
        ModelError: the Hub cannot be reached, or does not have it.
        MissingPrerequisiteError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise MissingPrerequisiteError(
            f"cannot download ({error}); run `make setup`, or `pip install huggingface_hub`"
        ) from error
    try:
        hf_hub_download(repository, file, local_dir=folder)
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"cannot download {file} from huggingface.co/{repository} ({reason}); check the "
            f"connection and HF_HUB_OFFLINE, or put the file into {folder} yourself"
        ) from error

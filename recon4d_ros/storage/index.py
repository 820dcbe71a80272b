"""Index files (`timestamp filename`), text files and folders of results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recon4d_ros.errors import OutputError, SourceError
from recon4d_ros.storage.trajectory import parse_seconds, seconds_text


@dataclass(frozen=True)
class IndexEntry:
    """One line of an index file: a stamp and a file."""

    stamp_ns: int
    path: Path


def read_index(path: Path) -> tuple[IndexEntry, ...]:
    """Read `timestamp filename` lines; names are relative to the folder of the index.

    Raises:
        SourceError: the index is missing, empty, or has a line of another form.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"cannot read {path}: {error}; expected lines 'timestamp filename'"
        ) from error
    entries = [
        _index_entry(path, number, line)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not entries:
        raise SourceError(f"{path} lists nothing; expected lines 'timestamp filename'")
    return tuple(entries)


def _index_entry(path: Path, number: int, line: str) -> IndexEntry:
    words = line.split(maxsplit=1)
    try:
        return IndexEntry(parse_seconds(words[0]), path.parent / words[1].strip())
    except (ValueError, IndexError) as error:
        raise SourceError(
            f"{path}, line {number}: '{line}' is not 'timestamp filename'; "
            "the folder is half written, make it again"
        ) from error


def write_index(path: Path, entries: Iterable[IndexEntry]) -> None:
    """Write `timestamp filename` lines, names relative to the folder of the index.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = [
        f"{seconds_text(entry.stamp_ns)} {entry.path.relative_to(path.parent)}\n"
        for entry in entries
    ]
    write_text(path, "".join(["# timestamp filename\n", *lines]))


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, text, "w")


def append_text(path: Path, text: str) -> None:
    """Write text at the end of a file.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, text, "a")


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; free the disk or choose another place"
        ) from error


def make_empty_folder(path: Path) -> None:
    """Make a folder.

    Raises:
        OutputError: it is not empty, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {path}: {error.strerror}; choose another place"
        ) from error
    if not is_empty:
        raise OutputError(f"{path} is not empty; expected a new folder; choose another name")

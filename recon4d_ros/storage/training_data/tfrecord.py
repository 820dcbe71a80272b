"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A file is a row of records: length (8 bytes, little endian), its checksum (4), the content, its
checksum (4). A checksum is a CRC-32C, turned by 15 bits, plus a constant. An Example is a protocol
buffer: Example{1: Features{1: map entry{1: name, 2: Feature{1: bytes, 2: floats, 3: integers}}}},
the three lists each {1: values}.
Source: tensorflow.org/tutorials/load_data/tfrecord; protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import SourceError

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
_Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_MASK_DELTA = 0xA282EAD8
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def record_offsets(path: Path) -> list[tuple[int, int]]:
    """Start and length of the content of each record.

    Raises:
        SourceError: the file cannot be read, is damaged, or ends within a record.
    """
    offsets = []
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            while file.tell() < end:
                length, checksum = _HEADER.unpack(file.read(_HEADER.size))
                start = file.tell()
                if masked_crc32c(struct.pack("<Q", length)) != checksum:
                    raise _damaged(path, start, "the checksum of a record's length is wrong")
                if start + length + _FOOTER.size > end:
                    raise _damaged(path, start, f"it ends within a record of {length} bytes")
                offsets.append((start, length))
                file.seek(length + _FOOTER.size, 1)
    except (OSError, struct.error) as error:
        raise _damaged(path, len(offsets), str(error)) from error
    return offsets


def read_record(path: Path, start: int, length: int) -> bytes:
    """Content of one record.

    Raises:
        SourceError: the file cannot be read, or the content does not fit its checksum.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
            (checksum,) = _FOOTER.unpack(file.read(_FOOTER.size))
    except (OSError, struct.error) as error:
        raise _damaged(path, start, str(error)) from error
    if masked_crc32c(content) != checksum:
        raise _damaged(path, start, "the checksum of a record is wrong")
    return content


def _damaged(path: Path, at: int, reason: str) -> SourceError:
    return SourceError(f"{path} at {at}: {reason}; expected whole TFRecords; fetch the file again")


def masked_crc32c(content: bytes) -> int:
    """The checksum that TFRecord stores of some bytes."""
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C of some bytes, all rows of a square at once.

    The register after bytes a then b is the register of b, started at 0, plus that of a carried
    over len(b) zeros, which is linear: 32 more rows find what becomes of each bit.
    """
    table = _table()
    width = max(1, int(np.sqrt(len(content))))
    num_rows = len(content) // width
    rows = np.frombuffer(content, np.uint8, num_rows * width).reshape(num_rows, width)
    register = np.zeros(num_rows + 32, np.uint32)
    register[num_rows:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    padded = np.concatenate([rows, np.zeros((32, width), np.uint8)])
    for column in np.ascontiguousarray(padded.T):
        register = table[(register ^ column) & 0xFF] ^ (register >> np.uint32(8))
    crc, carried = 0xFFFFFFFF, register[num_rows:]
    for row in register[:num_rows].tolist():
        crc = _carried(crc, carried) ^ row
    for byte in content[num_rows * width :]:
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _carried(crc: int, of_bit: _Words) -> int:
    bits = (crc >> np.arange(32)) & 1 == 1
    return int(np.bitwise_xor.reduce(of_bit[bits])) if bits.any() else 0


@cache
def _table() -> _Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


def parse_example(content: bytes, names: Collection[str]) -> dict[str, Feature]:
    """Features of an Example by name.

    Args:
        content: the message.
        names: what is wanted; what the message has not is not in the answer.

    Raises:
        SourceError: the bytes are no Example.
    """
    try:
        entries = (e for _, features in _fields(content) for _, e in _fields(features))
        named = ((parts[1].decode(), parts) for parts in map(dict, map(_fields, entries)))
        return {name: _feature(parts.get(2, b"")) for name, parts in named if name in names}
    except (ValueError, IndexError, TypeError, KeyError, struct.error) as error:
        raise SourceError(
            f"{len(content)} bytes are no tf.train.Example ({error}); expected the records of a "
            "TFDS data set; fetch the file again"
        ) from error


def _feature(content: bytes) -> Feature:
    return next((_READ[kind](values) for kind, values in _fields(content)), [])


def _byte_strings(content: bytes) -> list[bytes]:
    return [value for _, value in _fields(content)]


def _floats(content: bytes) -> NDArray[np.float32]:
    """Packed in one field, or a field for each."""
    return np.frombuffer(b"".join(value for _, value in _fields(content)), "<f4")


def _integers(content: bytes) -> NDArray[np.int64]:
    """Variable length, seven bits a byte, the last byte below 128; all at once."""
    packed = np.frombuffer(b"".join(value for _, value in _fields(content)), np.uint8)
    if len(packed) == 0:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(packed[:-1] < 128) + 1])
    place = np.arange(len(packed)) - np.repeat(starts, np.diff(starts, append=len(packed)))
    parts = (packed & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)


_READ: dict[int, Callable[[bytes], Feature]] = {1: _byte_strings, 2: _floats, 3: _integers}


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and the bytes of their values; a number of variable length keeps its form."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind, start = key & 7, at
        if kind == _VARINT:
            _, at = _varint(content, at)
        elif kind == _BYTES:
            length, start = _varint(content, at)
            at = start + length
        else:
            at = start + {_FIXED32: 4, _FIXED64: 8}[kind]
        if at > len(content):
            raise ValueError(f"a field of {at - start} bytes ends {at - len(content)} too late")
        yield key >> 3, content[start:at]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 128:
        value |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | content[at] << shift, at + 1

"""What reading a damaged bag raises; apart from `bag`, since a player needs no torch."""

from __future__ import annotations

import struct
import sys

import apsw
from rosbags.highlevel import AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

# Of rosbags and of its parsers, which pass much on as it comes.
DAMAGE = (
    AnyReaderError,
    ReaderError,
    SerdeError,
    OSError,
    EOFError,
    struct.error,
    apsw.Error,
    ZstdError,
    RuntimeError,
    MemoryError,
    OverflowError,
    AssertionError,
    TypeError,
    ValueError,
    LookupError,
)

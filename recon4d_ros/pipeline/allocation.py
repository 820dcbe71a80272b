"""How this process gets its memory."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
# Maps of a whole window; those of one frame come too often to be mapped anew each time.
_LARGE_BYTES = 2 << 20
# The heap keeps what one image takes; else its pages would be asked for and given back every time.
_KEPT_BYTES = 32 << 20


def map_large_blocks() -> None:
    """Give each large block pages of its own, which go back to the system when it is freed.

    Left alone, the GNU C library raises this limit to the largest block freed so far; the maps of
    windows then lie in heaps between small things that stay, and the process grows with the
    holes. Other C libraries do not, and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def keep_imports_for_good() -> None:
    """Take what is alive out of the garbage collector's rounds, once per process.

    Imports leave two hundred thousand objects, most of them torch's, that live as long as the
    process; else every full round visits each of them while no other thread can run.
    """
    if gc.get_freeze_count() == 0:
        gc.freeze()

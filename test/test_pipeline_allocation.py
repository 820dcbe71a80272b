"""Large blocks go back to the system, whatever was freed before; imports are not searched."""

import gc
import subprocess
import sys
import weakref

import pytest

from recon4d_ros.pipeline.allocation import keep_imports_for_good

# Frees a large block first, which raises the C library's own limit, then fills a heap with blocks
# of window size between small ones that stay. Says how much of it stays resident afterwards.
PROGRAM = """
import sys
import torch
from pathlib import Path
from recon4d_ros.pipeline.allocation import map_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "mapped":
    map_large_blocks()
del_me = torch.ones(28 << 18)
del del_me
before = resident()
blocks, small = [], []
for _ in range(40):
    blocks.append(torch.ones(3 << 18))
    small.append(torch.ones(200))
blocks.clear()
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident size is read from /proc")
def test_freed_windows_do_not_stay_in_the_heap():
    held = {
        how: int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))
        for how in ("mapped", "left alone")
    }
    print(held)
    assert held["mapped"] <= 3
    assert held["left alone"] > 50


class Cycle:
    def __init__(self):
        self.itself = self


def test_imports_are_left_alone_by_the_garbage_collector_and_what_comes_later_is_not():
    gc.unfreeze()
    keep_imports_for_good()
    assert gc.get_freeze_count() > 10_000
    cycle = Cycle()
    gone = weakref.ref(cycle)
    keep_imports_for_good()
    del cycle
    gc.collect()
    assert gone() is None

"""How much of a layer is computed at a time.

On a CPU a layer is faster in portions whose intermediate tensors stay in its cache: large ones
also cost new pages of memory each time. On a GPU, for gradients and in exported graphs it is one
piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers in the largest tensor between input and output of a portion: a megabyte and a half.
_NUMBERS_AT_A_TIME = 3 << 17


def portion(values: Tensor, rows: int, numbers_per_row: int) -> int:
    """How many of the rows of a layer's input to take at a time.

    Args:
        values: the input; says where it is computed.
        rows: there are.
        numbers_per_row: in the largest tensor that a row needs on the way.
    """
    if values.is_cuda or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return rows
    return max(1, min(rows, _NUMBERS_AT_A_TIME // numbers_per_row))

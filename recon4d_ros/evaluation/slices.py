"""A picture of how a run's depth holds still: one column of every frame, side by side over time.

Where depth flickers, what should be level lines is ragged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.report import depth_scale
from recon4d_ros.evaluation.temporal import slice_picture, yt_slice
from recon4d_ros.geometry.image_grid import resize_image
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.images import read_depth

_LEAST_WIDTH_PX = 600
# Depths beyond these quantiles of the slice are black or white.
_QUANTILES = (0.02, 0.98)


def run_slice(run_dir: Path, sequence_dir: Path, share: float = 0.5) -> Tensor:
    """The column of the images, and below it that of the run's depth, near is white.

    Args:
        run_dir: output of `recon4d run`.
        sequence_dir: the sequence folder it ran on.
        share: of the width, where the column is, in [0, 1).

    Returns:
        (2 H, W, 3) uint8, H the height of the depth images; a frame is several pixels wide.

    Raises:
        SourceError: the run or the sequence cannot be read.
        EvaluationError: the run has no depth.
    """
    scale = depth_scale(run_dir / "intrinsics.json")
    pairs = list(_columns(run_dir, SequenceFolder(sequence_dir), scale, share))
    if not pairs:
        raise EvaluationError(
            f"{run_dir}/depth holds no depth of a frame of {sequence_dir}; expected one"
        )
    images, depths = (torch.cat(list(part), dim=1) for part in zip(*pairs, strict=True))
    known = depths[depths.isfinite()].double()
    if len(known) == 0:
        raise EvaluationError(f"no depth in {run_dir}/depth is known where the column is")
    near, far = torch.quantile(known, torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    grey = torch.from_numpy(slice_picture(depths, near, max(far, near * 1.001)))
    picture = torch.cat([images, grey[..., None].expand(-1, -1, 3)])
    wider = -(-_LEAST_WIDTH_PX // picture.shape[1])
    return torch.from_numpy(np.repeat(picture.numpy(), wider, axis=1))


def _columns(
    run_dir: Path, sequence: SequenceFolder, scale: float, share: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """(H, 1, 3) uint8 and (H, 1) of each frame with depth."""
    for frame in sequence:
        path = run_dir / "depth" / f"{frame.stamp_ns}.png"
        if path.is_file():
            depth = read_depth(path, scale)
            image = resize_image(frame.rgb, (depth.shape[0], depth.shape[1]))
            column = int(share * depth.shape[1])
            yield yt_slice([image], column), yt_slice([depth], column)

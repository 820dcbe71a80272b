"""Joining the windows of a long clip: each is aligned in a world of its own.

Windows overlap as in MonST3R, arXiv 2410.03825; frames of the overlap keep the poses, and all
later windows the focal length, of the first window that held them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import AlignmentError, GeometryError
from recon4d_ros.geometry import camera, se3, sim3

# Pixels per frame that tie two windows: thousands over an overlap, without long sums.
_PER_FRAME = 256
# The draws find one without a wrong point among 45 % of them almost surely.
_TRIALS = 64


@dataclass(frozen=True, eq=False)
class ClipWindow:
    """Consecutive frames in one world.

    Attributes:
        first: frame number of the first one.
        T_map_cam: (T, 4, 4) float64.
        depth: (T, H, W) float32 z-depth in map units, NaN where unknown.
        dynamic_mask: (T, H, W) bool.
        intrinsics: of all frames.
    """

    first: int
    T_map_cam: Tensor
    depth: Tensor
    dynamic_mask: Tensor
    intrinsics: Intrinsics

    @property
    def end(self) -> int:
        """Frame number after the last one."""
        return self.first + len(self.T_map_cam)


def joined(before: ClipWindow, window: ClipWindow) -> ClipWindow:
    """A window in the map of the one before it; the frames both hold keep their poses.

    Raises:
        AlignmentError: the windows share no frame, or too few static pixels.
    """
    S = similarity(before, window)
    scale, _ = sim3.split(S)
    T = sim3.transform_pose(S, window.T_map_cam)
    shared = before.end - window.first
    T[:shared] = before.T_map_cam[window.first - before.first :]
    return replace(window, T_map_cam=T, depth=window.depth * scale.float())


def similarity(before: ClipWindow, window: ClipWindow) -> Tensor:
    """S_before_window (4, 4): the static surfaces of the shared frames, in space, coincide.

    Raises:
        AlignmentError: as `joined`.
    """
    shared = range(window.first, before.end)
    if len(shared) == 0:
        raise AlignmentError(
            f"a window of frames {window.first} to {window.end - 1} came after one that ends at "
            f"{before.end - 1}; expected frames in common"
        )
    pairs = [_static_points(before, window, frame) for frame in shared]
    source, target = (torch.cat(each) for each in zip(*pairs, strict=True))
    try:
        return sim3.fit_robust(source, target, trials=_TRIALS).S
    except GeometryError as error:
        raise AlignmentError(
            f"frames {shared[0]} to {shared[-1]} do not tie the window they begin to the one "
            f"before: {error}; raise offline.overlap or offline.window"
        ) from error


def _static_points(before: ClipWindow, window: ClipWindow, frame: int) -> tuple[Tensor, Tensor]:
    """The same pixels (P, 3) in the world of the window and in the map."""
    rows = frame - window.first, frame - before.first
    depths = window.depth[rows[0]], before.depth[rows[1]]
    moving = window.dynamic_mask[rows[0]] | before.dynamic_mask[rows[1]]
    usable = torch.nonzero((depths[0].isfinite() & depths[1].isfinite() & ~moving).flatten())
    chosen = usable.squeeze(-1)[:: max(1, len(usable) // _PER_FRAME)]
    uv = camera.pixel_grid(window.intrinsics.size, torch.float64).reshape(-1, 2)[chosen]
    found = []
    for row, depth, held in zip(rows, depths, (window, before), strict=True):
        points = camera.unproject(uv, depth.flatten()[chosen].double(), held.intrinsics)
        found.append(se3.transform(held.T_map_cam[row], points))
    return found[0], found[1]

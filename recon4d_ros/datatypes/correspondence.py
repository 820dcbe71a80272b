"""What is known of how the pixels of frames correspond."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class FlowField:
    """Dense correspondence from one frame to another on the dense grid.

    Attributes:
        source: index of the frame whose pixels it starts from.
        target: index of the frame it points into.
        flow: (H, W, 2) float32, px of the dense grid, x then y.
        valid: (H, W) bool, can be trusted and stays inside the image.
        structure: (H, W, 3) float32, structure tensor (xx, xy, yy) around each pixel, grey levels
            squared per px squared: r' S r is the mean squared grey difference that a flow wrong
            by r makes. None when the images were not seen.
    """

    source: int
    target: int
    flow: Tensor
    valid: Tensor
    structure: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Matching:
    """A network's points of `source`'s pixels in the camera of `target`, in one unit.

    Attributes:
        source, target: frame numbers.
        points: (H, W, 3) float32 at the time of `source`, NaN where unknown.
        matching: (H, W, 3) float32, where these surface points were at the time of `target`.
        confidence: (H, W) float32, the network's own scale.
    """

    source: int
    target: int
    points: Tensor
    matching: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class PairPointmaps:
    """What a pairwise network says of two frames, in the first one's camera and a unit of its own.

    Attributes:
        first, second: frame numbers.
        points_1: (H, W, 3) float32 of the pixels of `first`, NaN where unknown.
        confidence_1: (H, W) float32, above 1 for a network of the DUSt3R family.
        points_2: (H, W, 3) float32 of the pixels of `second`, at the time of `second`.
        confidence_2: (H, W) float32.
        matching_2: (H, W, 3) float32, where those surface points were at the time of `first`; or
            None.
        confidence_matching: (H, W) float32 of `matching_2`; None when the network gives none.
    """

    first: int
    second: int
    points_1: Tensor
    confidence_1: Tensor
    points_2: Tensor
    confidence_2: Tensor
    matching_2: Tensor | None = None
    confidence_matching: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Tracks:
    """N point tracks over the T frames of a window.

    Attributes:
        ids: (N,) int64, the same physical track keeps its id from window to window.
        uv: (T, N, 2) float32, px of the frames' own size; NaN where not tracked.
        visibility: (T, N) float32 in [0, 1].
        mobility: (T, N) float32 in [0, 1], probability that the point moves in the world.
    """

    ids: Tensor
    uv: Tensor
    visibility: Tensor
    mobility: Tensor

    def in_frame(self, row: int) -> Tracks:
        """Those of one frame (T = 1), apart from the memory of the others."""
        parts = (self.uv, self.visibility, self.mobility)
        return Tracks(self.ids, *(part[row : row + 1].clone() for part in parts))


@dataclass(frozen=True, eq=False)
class Tracks3D:
    """N point tracks of one frame in space.

    Attributes:
        ids, age: (N,) int64 as in `Tracks`, and frames since the track was first seen.
        points, mobility: (N, 3) float32 in map coordinates and (N,) float32 as in `Tracks`.
    """

    ids: Tensor
    age: Tensor
    points: Tensor
    mobility: Tensor

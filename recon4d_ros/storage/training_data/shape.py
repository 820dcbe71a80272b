"""What readers make of sequences of any length and size: clips of one shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import Clips, Intrinsics
from recon4d_ros.errors import SourceError
from recon4d_ros.geometry import image_grid
from recon4d_ros.geometry.image_grid import Box

Size = tuple[int, int]


class ClipReader(Protocol):
    """Clips by number; equal numbers give equal clips, whatever the batch."""

    def clips(self, first: int, count: int) -> Clips:
        """Clips number `first` to `first + count - 1`.

        Raises:
            SourceError, FrameError: a file is missing, damaged or half written.
        """
        ...


class SequenceReader:
    """Clips of random parts of sequences that lie on disk; a `ClipReader` whose `_clip` reads one.

    Everything about a clip is drawn from the seed and its number.
    """

    def __init__(self, sequences: Iterable[Path], shape: ClipShape, seed: int, lack: str) -> None:
        """Take the sequences; none is read yet.

        Args:
            sequences: files or folders, in any order.
            shape: of the clips.
            seed: of the choice of sequences, frames and points.
            lack: what is wrong where there is none.

        Raises:
            SourceError: there is none.
        """
        self._sequences = sorted(sequences)
        self._shape, self._seed = shape, seed
        if not self._sequences:
            raise SourceError(lack)

    def clips(self, first: int, count: int) -> Clips:
        """Clips by number, of random sequences.

        Raises:
            SourceError, FrameError: a file is missing, damaged or half written.
        """
        return Clips.joined([self._numbered(number) for number in range(first, first + count)])

    def _numbered(self, number: int) -> Clips:
        rng = np.random.default_rng((self._seed, number))
        return self._clip(self._sequences[rng.integers(len(self._sequences))], rng)

    def _clip(self, sequence: Path, rng: np.random.Generator) -> Clips:
        raise NotImplementedError


@dataclass(frozen=True)
class ClipShape:
    """Of every clip of a reader.

    Attributes:
        num_frames: T, at least 2.
        size: (H, W) px; the largest middle part of an image with this aspect is resized to it.
        num_tracks: N.
    """

    num_frames: int
    size: Size
    num_tracks: int

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            SourceError: a clip of this shape cannot be.
        """
        if self.num_frames < 2 or min(self.size) < 1 or self.num_tracks < 1:
            raise SourceError(
                f"clips of {self.num_frames} frames, {self.size} px and {self.num_tracks} tracks; "
                "expected 2 frames or more, and at least 1 px and 1 track"
            )


@dataclass(frozen=True)
class Framing:
    """The part of an image that becomes the image of a clip.

    It is one for the whole clip, so that its camera stays a camera.

    Attributes:
        source: (height, width) of the image.
        box: the part.
        size: of the clip.
    """

    source: Size
    box: Box
    size: Size

    @classmethod
    def middle(cls, source: Size, size: Size) -> Framing:
        """The largest middle part of the aspect of `size`."""
        share = min(source[0] / size[0], source[1] / size[1])
        height, width = (max(1, int(side * share + 0.5)) for side in size)
        box = Box((source[0] - height) // 2, (source[1] - width) // 2, height, width)
        return cls(source, box, size)

    def image(self, image: Tensor) -> Tensor:
        """Images (..., H, W, C) in the clip."""
        return image_grid.resize_image(image_grid.crop_image(image, self.box), self.size)

    def labels(self, labels: Tensor) -> Tensor:
        """Maps (..., H, W) of depth or labels in the clip, by the nearest pixel."""
        return image_grid.resize_depth(image_grid.crop_map(labels, self.box), self.size)

    def uv(self, uv: Tensor) -> Tensor:
        """Pixels (..., 2) in the clip."""
        part = (self.box.height, self.box.width)
        return image_grid.resize_uv(image_grid.crop_uv(uv, self.box), part, self.size)

    def K(self, K: Tensor) -> Tensor:
        """Camera matrix (3, 3) of the clip."""
        fx, fy, cx, cy = (float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
        whole = Intrinsics(fx, fy, cx, cy, self.source[1], self.source[0])
        part = image_grid.crop_intrinsics(whole, self.box)
        return image_grid.resize_intrinsics(part, self.size).K.to(torch.float64)

    def contains(self, uv: Tensor) -> Tensor:
        """True (...) where pixels (..., 2) of the image lie in the part."""
        x, y = image_grid.crop_uv(uv, self.box).unbind(-1)
        return (x > -0.5) & (y > -0.5) & (x < self.box.width - 0.5) & (y < self.box.height - 0.5)


def random_part(num_frames: int, wanted: int, rng: np.random.Generator, name: str) -> slice:
    """`wanted` consecutive frames of a sequence.

    Raises:
        SourceError: it has fewer.
    """
    if num_frames < wanted:
        raise SourceError(
            f"{name} has {num_frames} frames; expected at least the {wanted} of a clip; ask for "
            "shorter clips or take it out"
        )
    first = int(rng.integers(num_frames - wanted + 1))
    return slice(first, first + wanted)


def evenly(groups: Tensor, count: int, rng: np.random.Generator, name: str) -> Tensor:
    """Numbers (count,) of things of groups (P,), drawn so that groups are as equal as they can be.

    Raises:
        SourceError: there are fewer things than wanted.
    """
    if len(groups) < count:
        raise SourceError(
            f"{name} shows {len(groups)} points to track; expected at least {count}; ask for "
            "fewer tracks or take it out"
        )
    shuffled = torch.from_numpy(rng.permutation(len(groups)))
    order = shuffled[groups[shuffled].sort(stable=True).indices]
    is_first = groups[order].diff(prepend=groups[order][:1] - 1) != 0
    starts = is_first.nonzero().squeeze(-1)[is_first.long().cumsum(0) - 1]
    turn = torch.arange(len(order)) - starts  # every group's first, then every group's second, ...
    late = shuffled.argsort()[order].double() / len(order)
    return order[(turn + late).argsort()[:count]]

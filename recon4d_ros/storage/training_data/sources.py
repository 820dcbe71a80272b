"""Which data sets there are to train on, how often each is drawn, and the mixture of them.

The shares of POMATO's training (Zhang et al., 2025, supplementary material, table 6): PointOdyssey
57.1 %, TartanAir 14.3 %, DynamicReplica 14.3 %, ParallelDomain4D 8.6 %, Carla 5.7 %. Those of the
last three, which have no reader here, go to the others in proportion. DynPT's are panning MOVi-E
and MOVi-F, without a stated ratio; MOVi-E is held out for evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from recon4d_ros.datatypes import Clips
from recon4d_ros.errors import FrameError, SourceError
from recon4d_ros.storage.training_data.kubric import KubricReader
from recon4d_ros.storage.training_data.point_odyssey import PointOdysseyReader
from recon4d_ros.storage.training_data.shape import ClipReader, ClipShape
from recon4d_ros.storage.training_data.tartanair import TartanAirReader

MAX_UNREADABLE = 0.01  # share of the clips tried; a single one is always let pass
_MOVI_LICENCE = "Apache-2.0; objects CC BY 4.0, skies CC0"


class OpenReader(Protocol):
    """Makes the reader of a folder."""

    def __call__(self, folder: Path, shape: ClipShape, seed: int = 0) -> ClipReader:
        """The reader."""
        ...


@dataclass(frozen=True)
class TrainingSource:
    """A data set.

    Attributes:
        name: what a configuration calls it.
        open: makes its reader.
        ratio: how often it is drawn, against the others of a mixture.
        licence: of the data; it binds whoever fetches them.
    """

    name: str
    open: OpenReader
    ratio: float
    licence: str


SOURCES = {
    source.name: source
    for source in (
        TrainingSource("point_odyssey", PointOdysseyReader, 57.1, "MIT"),
        TrainingSource("tartanair", TartanAirReader, 14.3, "CC BY 4.0"),
        TrainingSource("panning_movi_e", KubricReader, 50.0, _MOVI_LICENCE),
        TrainingSource("movi_f", KubricReader, 50.0, _MOVI_LICENCE),
        TrainingSource("movi_e", KubricReader, 50.0, _MOVI_LICENCE),
    )
}


@dataclass(frozen=True, eq=False)
class Share:
    """One part of a mixture.

    Attributes:
        reader: of its clips.
        ratio: how often it is drawn, against the others.
    """

    reader: ClipReader
    ratio: float


def open_mixture(folders: Mapping[str, Path], shape: ClipShape, seed: int = 0) -> MixedReader:
    """The mixture of the data sets that lie in these folders, in their usual ratios.

    Args:
        folders: by the name of the data set.
        shape: of the clips.
        seed: of all choices.

    Raises:
        SourceError: there is none, a name is unknown, or a folder holds no such data set.
    """
    unknown = [name for name in folders if name not in SOURCES]
    if unknown or not folders:
        raise SourceError(
            f"training sources {sorted(folders)}, unknown {unknown}; expected at least one of "
            f"{', '.join(SOURCES)}"
        )
    parts = {
        name: Share(SOURCES[name].open(folder, shape, seed), SOURCES[name].ratio)
        for name, folder in folders.items()
    }
    return MixedReader(parts, seed)


class MixedReader:
    """Clips of several readers, drawn by ratio; a `ClipReader`.

    A clip that cannot be read is counted and another one is drawn in its place, the same one in
    every run.

    Attributes:
        num_read, num_unreadable: clips of each part.
    """

    def __init__(self, parts: Mapping[str, Share], seed: int = 0) -> None:
        """Mix.

        Args:
            parts: by name.
            seed: of the order.

        Raises:
            SourceError: there is no part, or a ratio is not above 0.
        """
        ratios = {name: part.ratio for name, part in parts.items()}
        if not ratios or not all(0 < ratio < float("inf") for ratio in ratios.values()):
            raise SourceError(f"ratios of a mixture {ratios}; expected at least one, all above 0")
        self._parts, self._seed = dict(parts), seed
        self._chances = np.array(list(ratios.values())) / sum(ratios.values())
        self.num_read: Counter[str] = Counter()
        self.num_unreadable: Counter[str] = Counter()

    def clips(self, first: int, count: int) -> Clips:
        """Clips by number.

        Raises:
            SourceError: more than 1 % of all clips tried so far could not be read.
        """
        return Clips.joined([self._clip(number) for number in range(first, first + count)])

    def _clip(self, number: int) -> Clips:
        rng = np.random.default_rng((self._seed, number))
        while True:
            name = list(self._parts)[rng.choice(len(self._parts), p=self._chances)]
            try:
                clip = self._parts[name].reader.clips(int(rng.integers(2**31)), 1)
            except (SourceError, FrameError) as error:
                self.num_unreadable[name] += 1
                self._check(error)
            else:
                self.num_read[name] += 1
                return clip

    def _check(self, error: Exception) -> None:
        unreadable, read = self.num_unreadable.total(), self.num_read.total()
        if unreadable > max(1.0, MAX_UNREADABLE * (unreadable + read)):
            counts = dict(self.num_unreadable)
            raise SourceError(
                f"{unreadable} of {unreadable + read} training clips cannot be read ({counts}), "
                f"more than {MAX_UNREADABLE:.0%}; fetch the data again; the last: {error}"
            ) from error

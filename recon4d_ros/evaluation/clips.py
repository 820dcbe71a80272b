"""Figures of trackers over clips whose points are known, for each kind of clip apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import CameraMotion, Clips
from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.trackers import ClipTracks, Methods
from recon4d_ros.evaluation.tracking import (
    MobilityReport,
    PositionReport,
    counted,
    distances,
    mobility_report,
    position_figures,
    position_report,
)

ALL = "all"
PARALLAX = "parallax"
_WITH_PARALLAX = (
    CameraMotion.FORWARD,
    CameraMotion.LATERAL,
    CameraMotion.ORBIT,
    CameraMotion.HANDHELD,
)


@dataclass(frozen=True, eq=False)
class LabelledClips:
    """Clips and what their figures are reported under.

    Attributes:
        clips: B clips.
        label: name of their sequence; None names each clip by the motion of its camera.
    """

    clips: Clips
    label: str | None = None


@dataclass(frozen=True)
class MethodReport:
    """Figures of one tracker by kind of clip; "all" is over all of them.

    Attributes:
        positions: of the kinds that have a frame that counts.
        mobility: of the kinds that have a point whose mobility is judged.
    """

    positions: dict[str, PositionReport]
    mobility: dict[str, MobilityReport]

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries of numbers."""
        return dataclasses.asdict(self)


@dataclass(eq=False)
class _Tally:
    """What was found on the clips of one kind by one tracker."""

    figures: list[tuple[float, float, float]] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    moves: list[Tensor] = field(default_factory=list)


def evaluate_clips(clips: Iterable[LabelledClips], methods: Methods) -> dict[str, MethodReport]:
    """Run trackers over clips and compare them with the truth.

    Args:
        clips: held one batch at a time.
        methods: the trackers.

    Returns:
        A report for each method.

    Raises:
        EvaluationError: there is no clip, or none with a point.
    """
    tallies: dict[str, dict[str, _Tally]] = {}
    for batch in clips:
        for index, groups in enumerate(_groups(batch)):
            clip = _cut(batch.clips, index)
            for name, tracks in methods(clip.rgb, clip.queries).items():
                method = tallies.setdefault(name, {})
                for group in groups:
                    _add(method.setdefault(group, _Tally()), clip, tracks)
    if not tallies:
        raise EvaluationError("no clip to evaluate; give a sequence, or ask for synthetic clips")
    return {name: _report(groups) for name, groups in tallies.items()}


@dataclass(frozen=True, eq=False)
class _Clip:
    """One clip of a batch, without the leading axis."""

    rgb: Tensor
    queries: Tensor
    tracks: Tensor
    visibility: Tensor
    moves: Tensor
    is_judged: Tensor


def _cut(clips: Clips, index: int) -> _Clip:
    parts = (clips.rgb, clips.queries, clips.tracks, clips.visibility)
    labels = (clips.moves_in_clip, clips.is_judged)
    return _Clip(*(part[index].cpu() for part in (*parts, *labels)))


def _groups(batch: LabelledClips) -> Iterator[tuple[str, ...]]:
    for motion in batch.clips.camera_motion:
        parallax = (PARALLAX,) if motion in _WITH_PARALLAX else ()
        yield (ALL, *parallax, batch.label or motion.value)


def _add(tally: _Tally, clip: _Clip, tracks: ClipTracks) -> None:
    size = (clip.rgb.shape[1], clip.rgb.shape[2])
    apart = distances(tracks.uv, clip.tracks, size)
    counts = counted(clip.queries, clip.tracks)
    tally.figures.append(position_figures(apart, tracks.seen, clip.visibility, counts))
    tally.scores.append(tracks.mobility[clip.is_judged].double())
    tally.moves.append(clip.moves[clip.is_judged])


def _report(groups: dict[str, _Tally]) -> MethodReport:
    positions, mobility = {}, {}
    for name, tally in groups.items():
        if not np.isnan([row[2] for row in tally.figures]).all():
            positions[name] = position_report(tally.figures)
        scores = torch.cat(tally.scores)
        if len(scores):
            mobility[name] = mobility_report(scores.numpy(), torch.cat(tally.moves).numpy())
    return MethodReport(positions, mobility)

"""Sequence folders whose points are known, cut into clips.

`tracks.npz` holds `tracks` (T, N, 2) px, `visible` (T, N), and where mobility is known
`mobile_frame` (T, N) and `instance` (N,). `tracks.json` holds joints labelled by hand in some
frames: `frames`, each with `frame` and `points` of `id` and `xy`.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.datatypes import CameraMotion, Clips
from recon4d_ros.errors import SourceError
from recon4d_ros.geometry import image_grid
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.images import read_rgb


@dataclass(frozen=True, eq=False)
class _Truth:
    """Points of a whole sequence.

    Attributes:
        uv: (T, N, 2) float32 px, NaN where unknown.
        visibility: (T, N) bool.
        moves: (T, N) bool.
        has_mobility: False when `moves` says nothing.
        object_ids: (N,) int64.
    """

    uv: Tensor
    visibility: Tensor
    moves: Tensor
    has_mobility: bool
    object_ids: Tensor


class TrackSequence:
    """Clips of a sequence folder with tracks, one after the other, resized.

    Attributes:
        name: of the folder.
        num_clips: complete clips; frames left over at the end are in none.
    """

    def __init__(self, path: Path, num_frames: int, max_side: int) -> None:
        """Read the tracks, not yet the images.

        Args:
            path: the folder.
            num_frames: frames of a clip.
            max_side: long side that the images are shrunk to, px.

        Raises:
            SourceError: no tracks, damaged ones, or fewer frames than a clip has.
        """
        self._folder = SequenceFolder(path)
        self._num_frames = num_frames
        self.name = self._folder.name
        self.num_clips = len(self._folder) // num_frames
        self._size = image_grid.fit_long_side(self._folder.size, max_side)
        if self.num_clips == 0:
            raise SourceError(
                f"{path} has {len(self._folder)} frames; expected at least one clip of "
                f"{num_frames}; ask for shorter clips"
            )
        self._truth = _read(self._folder)

    def clip(self, number: int) -> Clips:
        """Clip `number`, B = 1, with the points that are seen in it before its last frame.

        Each point is asked for where it is first seen.

        Raises:
            FrameError: an image is damaged.
            SourceError: the images differ in size.
        """
        rows = slice(number * self._num_frames, (number + 1) * self._num_frames)
        truth = self._truth
        seen = truth.visibility[rows] & torch.isfinite(truth.uv[rows]).all(dim=-1)
        kept = seen[:-1].any(dim=0)
        uv = image_grid.resize_uv(truth.uv[rows][:, kept], self._folder.size, self._size)
        first = seen[:, kept].to(torch.uint8).argmax(dim=0)
        at = uv[first, torch.arange(uv.shape[1])]
        moves = truth.moves[rows][:, kept]
        judged = torch.full((uv.shape[1],), truth.has_mobility)
        return Clips(
            rgb=self._images(rows)[None],
            queries=torch.cat([first[:, None].float(), at], dim=1)[None],
            tracks=uv[None],
            visibility=seen[:, kept][None],
            moves_in_clip=moves.any(dim=0)[None],
            moves_in_frame=moves[None],
            is_judged=judged[None],
            object_ids=truth.object_ids[kept][None],
            camera_motion=(CameraMotion.UNKNOWN,),
        )

    def _images(self, rows: slice) -> Tensor:
        images = [read_rgb(entry.path) for entry in self._folder.entries[rows]]
        sizes = {(image.shape[0], image.shape[1]) for image in images}
        if sizes != {self._folder.size}:
            raise SourceError(
                f"images {rows.start} to {rows.stop - 1} of {self._folder.path} have sizes "
                f"{sorted(sizes)}; expected {self._folder.size} as the first; make it again"
            )
        return torch.stack([image_grid.resize_image(image, self._size) for image in images])


def _read(folder: SequenceFolder) -> _Truth:
    path = folder.truth.tracks_path
    if path is None:
        raise SourceError(
            f"{folder.path} has no tracks; expected tracks.npz or tracks.json; choose a sequence "
            "whose points are known"
        )
    try:
        return (_from_arrays if path.suffix == ".npz" else _from_joints)(path, len(folder))
    except (OSError, KeyError, TypeError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path}: {type(error).__name__} {error}; expected the tracks of {len(folder)} frames "
            "as described in recon4d_ros/storage/track_truth.py; restore the file"
        ) from error


def _from_arrays(path: Path, num_frames: int) -> _Truth:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    uv, visible = arrays["tracks"].float(), arrays["visible"]
    if uv.shape != (num_frames, visible.shape[1], 2) or visible.shape != uv.shape[:2]:
        raise ValueError(f"tracks {tuple(uv.shape)} and visible {tuple(visible.shape)} do not fit")
    moves = arrays.get("mobile_frame")
    unknown = torch.zeros(uv.shape[1], dtype=torch.int64)
    return _Truth(
        uv=uv,
        visibility=visible,
        moves=torch.zeros_like(visible) if moves is None else moves.reshape(visible.shape),
        has_mobility=moves is not None,
        object_ids=arrays.get("instance", unknown).to(torch.int64),
    )


def _from_joints(path: Path, num_frames: int) -> _Truth:
    description = json.loads(path.read_text())
    column = {joint: number for number, joint in enumerate(description["joint_ids"])}
    uv = torch.full((num_frames, len(column), 2), torch.nan)
    for labelled in description["frames"]:
        if labelled["frame"] < num_frames:  # a folder may hold the beginning of a sequence
            for point in labelled["points"]:
                uv[labelled["frame"], column[point["id"]]] = torch.tensor(point["xy"])
    known = torch.isfinite(uv).all(dim=-1)
    object_ids = torch.ones(len(column), dtype=torch.int64)
    return _Truth(uv, known, torch.zeros_like(known), False, object_ids)

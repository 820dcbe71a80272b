"""PointOdyssey: long rendered videos with the tracks of many points.

Folders anywhere below the given one with `anno.npz` (`trajs_2d` (F, P, 2) px, `trajs_3d`
(F, P, 3), `visibs` and `valids` (F, P), `intrinsics` (F, 3, 3), `extrinsics` (F, 4, 4) from the
world to the camera) and `rgbs/rgb_00000.jpg`. Depth is not read.
Source: Zheng et al., "PointOdyssey: A Large-Scale Synthetic Dataset for Long-Term Point Tracking",
ICCV 2023.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.datatypes import CameraMotion, Clips
from recon4d_ros.errors import GeometryError, SourceError
from recon4d_ros.geometry import se3
from recon4d_ros.storage.images import read_rgb
from recon4d_ros.storage.training_data.shape import (
    ClipShape,
    Framing,
    SequenceReader,
    evenly,
    random_part,
)
from recon4d_ros.storage.training_data.solids import about_frames

_KEYS = ("trajs_2d", "trajs_3d", "visibs", "valids", "intrinsics", "extrinsics")
# Share of the distance per frame: up to the first a point rests, above the second it moves.
RESTING_SPEED, MOVING_SPEED = 0.0005, 0.003


@dataclass(frozen=True, eq=False)
class _Points:
    """What `anno.npz` says of the frames of a clip, under its own names."""

    trajs_2d: Tensor
    trajs_3d: Tensor
    visibs: Tensor
    valids: Tensor
    intrinsics: Tensor
    extrinsics: Tensor


class PointOdysseyReader(SequenceReader):
    """Clips of the sequences below a folder."""

    def __init__(self, folder: Path, shape: ClipShape, seed: int = 0) -> None:
        """Find the sequences; none is read yet.

        Args:
            folder: above all sequences.
            shape: of the clips.
            seed: of the choice of sequences, frames and points.

        Raises:
            SourceError: there is no sequence.
        """
        super().__init__(
            (path.parent for path in folder.rglob("anno.npz")),
            shape,
            seed,
            f"{folder} holds no anno.npz; expected PointOdyssey's folders, such as "
            "train/ani10_new_f",
        )

    def _clip(self, sequence: Path, rng: np.random.Generator) -> Clips:
        try:
            with zipfile.ZipFile(sequence / "anno.npz") as archive:
                num_frames = _shape(archive, "trajs_2d")[0]
                rows = random_part(num_frames, self._shape.num_frames, rng, str(sequence))
                points = _Points(*(_rows(archive, key, rows) for key in _KEYS))
            images = [
                read_rgb(sequence / "rgbs" / f"rgb_{n:05d}.jpg")
                for n in range(rows.start, rows.stop)
            ]
            return _made(str(sequence), torch.stack(images), points, self._shape, rng)
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, GeometryError) as error:
            raise _damaged(sequence, error) from error
        except zipfile.BadZipFile as error:
            raise _damaged(sequence, error) from error


def _damaged(sequence: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{sequence}: {type(error).__name__} {error}; expected anno.npz with {', '.join(_KEYS)} "
        "and images of one size in rgbs/; fetch the folder again"
    )


def _shape(archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    with archive.open(f"{key}.npy") as member:
        np.lib.format.read_magic(member)
        shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(member)[0]
    return shape


def _rows(archive: zipfile.ZipFile, key: str, rows: slice) -> Tensor:
    """Rows of an array; a sequence's arrays are gigabytes, so the rest never is in memory."""
    with archive.open(f"{key}.npy") as member:
        np.lib.format.read_magic(member)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if is_fortran or shape[0] < rows.stop:
            raise ValueError(f"{key} has shape {shape}, Fortran order {is_fortran}")
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        member.seek(rows.start * row_bytes, 1)
        content = member.read((rows.stop - rows.start) * row_bytes)
    array: NDArray[np.generic] = np.frombuffer(content, dtype).reshape(-1, *shape[1:])
    return torch.from_numpy(array.astype(bool if dtype.kind in "bu" else np.float64))


def _made(
    name: str, rgb: Tensor, points: _Points, shape: ClipShape, rng: np.random.Generator
) -> Clips:
    framing = Framing.middle((rgb.shape[1], rgb.shape[2]), shape.size)
    known = points.valids & torch.isfinite(points.trajs_2d).all(dim=-1)
    seen = points.visibs & known & framing.contains(points.trajs_2d)
    T_world_cam = _poses(points.extrinsics)
    moves, is_judged = _moves(points, T_world_cam)
    kept = seen.any(dim=0).nonzero().squeeze(-1)
    kept = kept[evenly(moves.any(dim=0)[kept].long(), shape.num_tracks, rng, name)]
    uv = framing.uv(torch.where(known[..., None], points.trajs_2d, torch.nan))[:, kept].float()
    frame = _one_of_each(seen[:, kept], rng)
    at = uv[frame, torch.arange(len(kept))]
    return Clips(
        rgb=framing.image(rgb)[None],
        queries=torch.cat([frame[:, None].float(), at], dim=-1)[None],
        tracks=uv[None],
        visibility=seen[:, kept][None],
        moves_in_clip=moves.any(dim=0)[kept][None],
        moves_in_frame=moves[:, kept][None],
        is_judged=is_judged[kept][None],
        object_ids=moves.any(dim=0)[kept].long()[None],
        camera_motion=(CameraMotion.UNKNOWN,),
        T_world_cam=T_world_cam[None],
        K=framing.K(points.intrinsics[0])[None],
    )


def _poses(extrinsics: Tensor) -> Tensor:
    """(T, 4, 4) camera to world; what was rounded to single precision is made a rotation again."""
    R_cam_world = se3.orthonormalise(extrinsics[:, :3, :3])
    return se3.inverse(se3.make(R_cam_world, extrinsics[:, :3, 3]))


def _moves(points: _Points, T_world_cam: Tensor) -> tuple[Tensor, Tensor]:
    """Moving about a frame (T, P), and judged (P,), by speed over distance."""
    known = points.valids & torch.isfinite(points.trajs_3d).all(dim=-1)
    where = points.trajs_3d
    step = torch.linalg.vector_norm(where[1:] - where[:-1], dim=-1)
    away = torch.linalg.vector_norm(where - T_world_cam[:, None, :3, 3], dim=-1)[:-1]
    speed = torch.where(known[1:] & known[:-1], step / away.clamp(min=1e-6), 0.0)
    moves = speed > MOVING_SPEED
    return about_frames(moves), moves.any(dim=0) | (speed <= RESTING_SPEED).all(dim=0)


def _one_of_each(seen: Tensor, rng: np.random.Generator) -> Tensor:
    """A frame (N,) of those that see each point, of (T, N)."""
    chance = torch.from_numpy(rng.random(tuple(seen.shape)))
    return torch.where(seen, chance, -1.0).argmax(dim=0)

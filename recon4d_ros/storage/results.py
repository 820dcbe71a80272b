"""The folder of one run: trajectories, depth, masks, map and what they were made with.

The folder describes itself: `intrinsics.json` says how to read the images of `depth.txt` and
`masks.txt`, which are in the pixels of the input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from recon4d_ros.config import Config
from recon4d_ros.datatypes import MapCorrection, PointCloud, Reconstruction, Tracks3D, Trajectory
from recon4d_ros.errors import OutputError
from recon4d_ros.geometry import sim3
from recon4d_ros.storage.images import read_depth, write_depth, write_mask
from recon4d_ros.storage.index import IndexEntry, append_text, write_index, write_text
from recon4d_ros.storage.ply import write_ply
from recon4d_ros.storage.rectification import CameraModel, Rectifier
from recon4d_ros.storage.sequence_writer import describe_camera
from recon4d_ros.storage.trajectory import write_trajectory

_FILES = (
    "config.yaml",
    "trajectory.tum",
    "trajectory_provisional.tum",
    "map.ply",
    "depth.txt",
    "masks.txt",
    "tracks.csv",
    "intrinsics.json",
    "summary.png",
    "report.json",
)
_IMAGE_FOLDERS = ("depth", "masks")
_TRACKS_HEADER = "stamp_ns,id,age,x,y,z,mobility\n"

# Stored units per median depth: the range reaches 32 medians in steps of 1/2000 of one.
_STEPS_PER_MEDIAN = 2000.0
_MIN_VALID_FOR_SCALE = 0.01


@dataclass(frozen=True, eq=False)
class _Posed:
    """A posed frame; `length` is today's map units per unit of its depth as it was written."""

    stamp_ns: int
    submap: int
    T_map_cam: Tensor
    length: float = 1.0


class ResultFolder:
    """Writes a run as it happens; `close` adds what is known only at the end.

    Attributes:
        path: the folder.
        num_posed: final frames with a pose.
    """

    def __init__(self, path: Path, config: Config, *, overwrite: bool = False) -> None:
        """Take possession of the folder and write the resolved config.

        Args:
            path: made if missing.
            config: what the run uses.
            overwrite: remove the results of an earlier run first; nothing else is touched.

        Raises:
            OutputError: the folder is not empty (without `overwrite`) or cannot be written.
        """
        self.path = path
        self._final: list[_Posed] = []
        self._provisional: list[_Posed] = []
        self._depth: list[IndexEntry] = []
        self._masks: list[IndexEntry] = []
        self._depth_scale: float | None = None
        check_folder(path, overwrite=overwrite)
        try:
            _remove_results(path)
            for name in _IMAGE_FOLDERS:
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot write into {path}: {error.strerror}; choose another folder with --out"
            ) from error
        write_text(path / "tracks.csv", _TRACKS_HEADER)
        write_text(path / "config.yaml", yaml.safe_dump(config.nested(), sort_keys=False))

    @property
    def num_posed(self) -> int:
        """Final frames with a pose."""
        return len(self._final)

    def add_provisional(self, result: Reconstruction) -> None:
        """Note the pose a frame had on its arrival."""
        if result.T_map_cam is not None:
            posed = _Posed(result.frame.stamp_ns, result.submap, result.T_map_cam)
            self._provisional.append(posed)

    def add_final(self, result: Reconstruction, rectifier: Rectifier) -> None:
        """Note the final pose of a frame and write its depth and mask.

        Raises:
            OutputError: an image cannot be written.
        """
        stamp_ns = result.frame.stamp_ns
        if result.T_map_cam is not None:
            self._final.append(_Posed(stamp_ns, result.submap, result.T_map_cam))
        if result.tracks is not None:
            append_text(self.path / "tracks.csv", _track_lines(stamp_ns, result.tracks))
        self._masks.append(self._entry("masks", stamp_ns))
        write_mask(self._masks[-1].path, rectifier.mask_to_input(result.dynamic_mask))
        scale = self._scale_for(result.depth)
        if scale is not None:
            self._depth.append(self._entry("depth", stamp_ns))
            write_depth(self._depth[-1].path, rectifier.depth_to_input(result.depth), scale)

    def final_poses(self, submap: int) -> Tensor:
        """T_map_cam (N, 4, 4) of the final frames of a submap, oldest first."""
        return _trajectory([posed for posed in self._final if posed.submap == submap]).T_world_cam

    def correct(self, correction: MapCorrection) -> None:
        """Move the final poses, and the lengths of their depth, with the map.

        Provisional ones stay as they were published.
        """
        rows = [row for row, p in enumerate(self._final) if p.submap == correction.submap]
        if not rows:
            return
        before = [self._final[row] for row in rows]
        at = torch.tensor([posed.stamp_ns for posed in before])
        S = sim3.interpolate(correction.stamps_ns, correction.S_new_old, at)
        moved = sim3.transform_pose(S, torch.stack([posed.T_map_cam for posed in before]))
        scales = sim3.split(S)[0].tolist()
        for row, posed, T, scale in zip(rows, before, moved, scales, strict=True):
            self._final[row] = replace(posed, T_map_cam=T, length=posed.length * scale)

    def close(
        self,
        cloud: PointCloud,
        camera: CameraModel | None,
        size: tuple[int, int],
        report: Mapping[str, Any],
    ) -> None:
        """Write trajectories, map, indices, camera and report.

        Args:
            cloud: the static map.
            camera: of the input, given or estimated; None when no frame told it.
            size: (height, width) of the input.
            report: becomes report.json.

        Raises:
            OutputError: a file cannot be written.
        """
        self._rescale_depth()
        write_trajectory(self.path / "trajectory.tum", _trajectory(self._final))
        write_trajectory(self.path / "trajectory_provisional.tum", _trajectory(self._provisional))
        write_ply(self.path / "map.ply", cloud)
        write_index(self.path / "depth.txt", self._depth)
        write_index(self.path / "masks.txt", self._masks)
        description = describe_camera(camera, size) | {
            "intrinsics_source": report["intrinsics"]["source"],
            "scale_known": report["scale_known"],
            "depth_scale": self._depth_scale or 1.0,
            "depth_kind": "z; 0 = no value; depth_scale stored units per map unit",
        }
        write_text(self.path / "intrinsics.json", json.dumps(description, indent=1) + "\n")
        write_text(self.path / "report.json", json.dumps(report, indent=1) + "\n")

    def _rescale_depth(self) -> None:
        """Write depth images anew whose unit was changed by corrections of the map."""
        length = {posed.stamp_ns: posed.length for posed in self._final}
        for entry in self._depth:
            factor = length.get(entry.stamp_ns, 1.0)
            if factor != 1.0 and self._depth_scale is not None:
                depth = read_depth(entry.path, self._depth_scale)
                write_depth(entry.path, depth * factor, self._depth_scale)

    def _entry(self, folder: str, stamp_ns: int) -> IndexEntry:
        return IndexEntry(stamp_ns, self.path / folder / f"{stamp_ns}.png")

    def _scale_for(self, depth: Tensor) -> float | None:
        """The one scale of the run, from the first frame that has depth; None before that."""
        if self._depth_scale is None:
            known = depth[depth.isfinite() & (depth > 0)]
            if known.numel() >= max(1.0, _MIN_VALID_FOR_SCALE * depth.numel()):
                self._depth_scale = _rounded(_STEPS_PER_MEDIAN / float(known.median()))
        return self._depth_scale


def _track_lines(stamp_ns: int, tracks: Tracks3D) -> str:
    """One line per track of a frame, in the map as it was when the frame became final."""
    columns = (tracks.ids, tracks.age, *tracks.points.unbind(dim=1), tracks.mobility)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return "".join(
        f"{stamp_ns},{number},{age},{x:.6g},{y:.6g},{z:.6g},{mobility:.3g}\n"
        for number, age, x, y, z, mobility in rows
    )


def check_folder(path: Path, *, overwrite: bool) -> None:
    """See that results may be written to a folder, without touching anything.

    Raises:
        OutputError: it is a file, or not empty and `overwrite` is not given.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; expected a folder; choose another --out")
    try:
        is_empty = not path.exists() or not any(path.iterdir())
    except OSError as error:
        raise OutputError(
            f"cannot look into {path}: {error.strerror}; choose another --out"
        ) from error
    if not is_empty and not overwrite:
        raise OutputError(
            f"{path} is not empty; expected a new folder; choose another --out or add --overwrite "
            "to replace the results in it"
        )


def _remove_results(path: Path) -> None:
    """Remove what an earlier run wrote; other files stay."""
    images = (image for name in _IMAGE_FOLDERS for image in (path / name).glob("*.png"))
    for file in [*(path / name for name in _FILES), *images]:
        if file.parent == path or file.stem.lstrip("-").isdigit():
            file.unlink(missing_ok=True)


def _trajectory(posed: list[_Posed]) -> Trajectory:
    stamps = torch.tensor([each.stamp_ns for each in posed], dtype=torch.int64)
    poses = torch.stack([each.T_map_cam for each in posed]) if posed else torch.empty(0, 4, 4)
    return Trajectory(stamps, poses.to(torch.float64))


def _rounded(value: float) -> float:
    """Three significant digits, so that the scale is pleasant to read."""
    return float(f"{value:.3g}")

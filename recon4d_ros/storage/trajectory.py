"""Trajectories as TUM text files: `t tx ty tz qx qy qz qw`, camera to world, seconds, metres."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from pathlib import Path

import torch

from recon4d_ros.datatypes import Trajectory
from recon4d_ros.errors import OutputError, SourceError
from recon4d_ros.geometry import se3

_NS_PER_S = 1_000_000_000
_HEADER = "# timestamp tx ty tz qx qy qz qw (T_world_cam, optical frame, xyzw)\n"


def seconds_text(stamp_ns: int) -> str:
    """Seconds with nine digits, exact to the nanosecond."""
    sign = "-" if stamp_ns < 0 else ""
    return f"{sign}{abs(stamp_ns) // _NS_PER_S}.{abs(stamp_ns) % _NS_PER_S:09d}"


def parse_seconds(text: str) -> int:
    """Nanoseconds of decimal seconds, exact (binary floats lose 100 ns at today's epoch).

    Raises:
        ValueError: the text is no finite number.
    """
    try:
        return int((Decimal(text) * _NS_PER_S).to_integral_value())
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise ValueError(f"'{text}' is no time in seconds") from error


def write_trajectory(path: Path, trajectory: Trajectory) -> None:
    """Write a trajectory as TUM text.

    Args:
        path: file to write.
        trajectory: poses; each must be finite and rigid.

    Raises:
        OutputError: a pose is not finite, or the file cannot be written.
    """
    poses = trajectory.T_world_cam
    if not poses.isfinite().all():
        raise OutputError(f"a pose for {path} is not finite; write posed frames only")
    quats_xyzw = se3.matrix_to_quat_xyzw(poses[:, :3, :3])
    rows = torch.cat([poses[:, :3, 3], quats_xyzw], dim=1).tolist()
    lines = [_HEADER]
    for stamp, row in zip(trajectory.stamps_ns.tolist(), rows, strict=True):
        numbers = " ".join(f"{value:.9f}" for value in row)
        lines.append(f"{seconds_text(stamp)} {numbers}\n")
    try:
        path.write_text("".join(lines))
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; choose another place"
        ) from error


def read_trajectory(path: Path) -> Trajectory:
    """Read TUM text; lines that start with '#' are comments.

    Of several lines with one stamp (published ground truth has some) the first counts.

    Raises:
        SourceError: the file cannot be read, or a line is no pose; the message names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read the trajectory {path}: {error}") from error
    stamps: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            stamp, row = _parse_line(line, f"{path}, line {number}")
            if stamps and stamp == stamps[-1]:
                continue
            if stamps and stamp < stamps[-1]:
                raise SourceError(
                    f"{path}, line {number}: stamp {seconds_text(stamp)} follows "
                    f"{seconds_text(stamps[-1])}; expected increasing stamps; sort the file"
                )
            stamps.append(stamp)
            rows.append(row)
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    poses = se3.make(se3.quat_xyzw_to_matrix(values[:, 3:]), values[:, :3])
    return Trajectory(torch.tensor(stamps, dtype=torch.int64), poses)


def _parse_line(line: str, place: str) -> tuple[int, list[float]]:
    words = line.split()
    try:
        stamp, values = parse_seconds(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise SourceError(f"{place}: {error}; expected 't tx ty tz qx qy qz qw'") from error
    if len(values) != 7 or not all(map(math.isfinite, values)):
        raise SourceError(
            f"{place}: '{line.strip()}' is no pose; expected eight finite numbers "
            "'t tx ty tz qx qy qz qw'"
        )
    norm = math.hypot(*values[3:])
    # Published ground truth has four digits; a larger error is another quantity.
    if abs(norm - 1.0) > 0.01:
        raise SourceError(f"{place}: quaternion of norm {norm:.4g}; expected a unit quaternion")
    return stamp, [*values[:3], *(value / norm for value in values[3:])]

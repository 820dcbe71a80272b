"""Files that come with the package, and the transport profile that lets images through.

Fast DDS loses messages larger than its shared-memory segment (512 kB by default); the profile
`config/fastdds_large.xml` enlarges it. It has to be in the environment before rclpy starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

import recon4d_ros
from recon4d_ros.errors import MissingPrerequisiteError

# The first is read from ROS 2 Kilted on, the second by Jazzy; Kilted warns if it sees the second.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_KILTED_RCLPY = 9


def package_file(relative: str) -> Path:
    """A data file of the package, for example `config/recon4d.rviz`.

    It is looked for in the ROS package's share folder, in the repository the package runs from,
    and beside the Python environment.

    Raises:
        MissingPrerequisiteError: it is in none of them.
    """
    folders = list(_data_folders())
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    raise MissingPrerequisiteError(
        f"{relative} is in none of {', '.join(map(str, folders))}; expected it to be installed "
        "with recon4d_ros; install the package again"
    )


def _data_folders() -> Iterator[Path]:
    # Without a sourced ROS installation the lookup itself is an OSError.
    with contextlib.suppress(PackageNotFoundError, OSError):
        yield Path(get_package_share_directory("recon4d_ros"))
    yield Path(recon4d_ros.__file__).resolve().parents[1]
    yield Path(sys.prefix) / "share" / "recon4d_ros"


def user_profile() -> str | None:
    """The profile that the user's environment names, or None."""
    return next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), None)


def ensure_transport_profile() -> Path:
    """Choose the packaged transport profile unless the user has chosen one.

    Call it before `rclpy.init`; processes started afterwards inherit it.

    Returns:
        The profile in force.

    Raises:
        MissingPrerequisiteError: the packaged profile is not installed.
    """
    chosen = user_profile()
    if chosen is not None:
        return Path(chosen)
    profile = package_file("config/fastdds_large.xml")
    for name in _variables_that_are_read():
        os.environ[name] = str(profile)
    return profile


def _variables_that_are_read() -> tuple[str, ...]:
    try:
        major = int(metadata.version("rclpy").partition(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return PROFILE_VARIABLES
    return PROFILE_VARIABLES[:1] if major >= _KILTED_RCLPY else PROFILE_VARIABLES[1:]

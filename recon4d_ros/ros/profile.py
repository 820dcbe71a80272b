"""The transport profile that lets images through.

Fast DDS loses messages larger than its shared-memory segment (512 kB by default); the profile
`config/fastdds_large.xml` enlarges it. It has to be in the environment before rclpy starts.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from recon4d_ros.installation import package_file

# The first is read from ROS 2 Kilted on, the second by Jazzy; Kilted warns if it sees the second.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_KILTED_RCLPY = 9


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

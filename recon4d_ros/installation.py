"""Where the files that come with the package lie: models, configurations, the RViz set-up."""

from __future__ import annotations

from pathlib import Path

import recon4d_ros
from recon4d_ros.errors import MissingPrerequisiteError


def package_file(relative: str) -> Path:
    """A data file of this installation, for example `config/recon4d.rviz`.

    It is looked for in the repository that the package runs from, then in the share folders of
    all folders above it: those of a ROS workspace and of a Python environment are among them.

    Raises:
        MissingPrerequisiteError: it is in none of them.
    """
    above = Path(recon4d_ros.__file__).resolve().parents[1:]
    for place in (above[0], *(folder / "share" / "recon4d_ros" for folder in above)):
        if (place / relative).is_file():
            return place / relative
    raise MissingPrerequisiteError(
        f"{relative} is neither in {above[0]} nor in a share folder above it; expected it to be "
        "installed with recon4d_ros; install the package again"
    )

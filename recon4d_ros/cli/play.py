"""`recon4d play`: publish a bag with its clock; the player itself lives with the node."""

from __future__ import annotations

import argparse
import importlib
from functools import partial

from recon4d_ros.errors import MissingPrerequisiteError

_EPILOG = """examples:
  recon4d play walking_bag
  recon4d play drive.mcap --rate 0.5 --loop
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; its arguments are those of the player.

    Without ROS the command stays in the list, and says what is missing when it is used.
    """
    parser = subparsers.add_parser(
        "play",
        help="publish a rosbag2 with its clock",
        description=(
            "Publishes the messages of a rosbag2 at their recorded pace, with /clock, once its "
            "topics have subscribers."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        player = importlib.import_module("recon4d_ros.ros.player")
    except ImportError as error:
        parser.add_argument("bag", nargs=argparse.REMAINDER, help="needs ROS 2")
        parser.set_defaults(run=partial(_refuse, error))
        return
    player.add_arguments(parser)
    parser.set_defaults(run=player.run)


def _refuse(error: ImportError, _: argparse.Namespace) -> int:
    raise MissingPrerequisiteError(
        f"cannot publish: {error}; expected rclpy and its message packages; source your ROS 2 "
        "installation, or use the environment that `make setup` makes"
    )

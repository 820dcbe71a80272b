"""`recon4d config`: show the parameters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from recon4d_ros.config import load_config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "config",
        help="show the parameters",
        description="Shows the parameters. docs/parameters.md explains each of them.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    dump = actions.add_parser(
        "dump",
        help="print all parameters as YAML",
        description=(
            "Prints all parameters as YAML, ready to be saved, edited and given to "
            "`recon4d run --config`."
        ),
    )
    add_config_arguments(dump)
    dump.set_defaults(run=run)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --config and --set."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="YAML of parameters by section, or a ROS parameter file",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one parameter, after --config; may be repeated (--set window.stride=2)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the resolved parameters."""
    config = load_config(args.config, tuple(args.set))
    yaml.safe_dump(config.nested(), sys.stdout, sort_keys=False)
    return 0

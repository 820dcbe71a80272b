"""The command `recon4d`: one subcommand per module, loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

import cv2

from recon4d_ros import __version__
from recon4d_ros.errors import Recon4DError

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_KNOWN_ERROR = 2
EXIT_INTERRUPTED = 130

# Subcommand and the module that declares it (`add_parser`) and runs it (`args.run`).
COMMANDS = {
    "run": "recon4d_ros.cli.run",
    "eval": "recon4d_ros.cli.evaluate",
    "eval-tracks": "recon4d_ros.cli.evaluate_tracks",
    "eval-mobility": "recon4d_ros.cli.evaluate_mobility",
    "eval-masks": "recon4d_ros.cli.evaluate_masks",
    "demo": "recon4d_ros.cli.demo",
    "bag": "recon4d_ros.cli.bag",
    "play": "recon4d_ros.cli.play",
    "doctor": "recon4d_ros.cli.doctor",
    "config": "recon4d_ros.cli.config",
    "models": "recon4d_ros.cli.models",
    "export": "recon4d_ros.cli.export",
    "clips": "recon4d_ros.cli.clips",
    "train": "recon4d_ros.cli.train",
}

_EPILOG = """examples:
  recon4d doctor                                  is this machine ready?
  recon4d run walking/ --out result               a sequence folder
  recon4d run drive.mcap --out result --image-topic /camera/image_raw
  recon4d run phone.mp4 --out result --set window.stride=2
  recon4d eval result walking/                    compare with the ground truth
  recon4d eval-tracks walking/                    trackers against known points
  recon4d bag walking/ walking_bag && recon4d play walking_bag
  recon4d models list                             weights that predictors can use
"""


def build_parser(modules: Iterable[str] = COMMANDS.values()) -> argparse.ArgumentParser:
    """The command line with the subcommands of these modules."""
    parser = argparse.ArgumentParser(
        prog="recon4d",
        description="Live dynamic 4D reconstruction from one ordinary camera.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"recon4d_ros {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in modules:
        importlib.import_module(module).add_parser(subparsers)
    return parser


def _modules(arguments: Sequence[str]) -> tuple[str, ...]:
    """The module of the command asked for; all of them where help or a hint is needed."""
    if arguments and arguments[0] in COMMANDS:
        return (COMMANDS[arguments[0]],)
    return tuple(COMMANDS.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: command line without the program's name; None takes the process's.

    Returns:
        0 done, 1 a mistake of ours (with traceback), 2 a known error (one line on stderr),
        130 interrupted.
    """
    _silence_decoders()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        args = build_parser(_modules(words)).parse_args(words)
        return int(args.run(args))
    except Recon4DError as error:
        print(f"recon4d: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_KNOWN_ERROR
    except KeyboardInterrupt:
        print("recon4d: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`recon4d config dump | head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception:
        traceback.print_exc()
        return EXIT_UNEXPECTED


def _silence_decoders() -> None:
    """Keep OpenCV and FFmpeg from printing beside our own messages."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


if __name__ == "__main__":
    sys.exit(main())

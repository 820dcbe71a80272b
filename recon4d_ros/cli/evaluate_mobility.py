"""`recon4d eval-mobility`: which tracked points move, against the truth."""

from __future__ import annotations

import argparse

from recon4d_ros.cli.track_clips import EPILOG, add_clip_arguments, percent, run_table
from recon4d_ros.evaluation.clips import MethodReport


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "eval-mobility",
        help="which tracked points move, against the truth",
        description=(
            "D-ACC, balanced accuracy, recall of the moving points, area under the ROC curve and "
            "the accuracy of always saying the commoner kind, in per cent, over the points of all "
            "clips and for each kind of clip. Zero motion calls every point static."
        ),
        epilog=EPILOG.format(command="eval-mobility"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_clip_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures."""
    names = ("D-ACC", "balanced", "recall", "AUROC", "majority", "moving", "static")
    return run_table(args, "".join(f"{name:>9s}" for name in names), _row)


def _row(_name: str, report: MethodReport, kind: str) -> str | None:
    if kind not in report.mobility:
        return None
    figures = report.mobility[kind]
    shares = (
        figures.accuracy,
        figures.balanced_accuracy,
        figures.recall,
        figures.auroc,
        figures.majority_rate,
    )
    counts = f"{figures.num_moving:9d}{figures.num_static:9d}"
    return "".join(map(percent, shares)) + counts

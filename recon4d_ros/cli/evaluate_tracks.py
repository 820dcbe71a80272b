"""`recon4d eval-tracks`: positions of point trackers against known points."""

from __future__ import annotations

import argparse

from recon4d_ros.cli.track_clips import EPILOG, add_clip_arguments, percent, run_table
from recon4d_ros.evaluation.clips import MethodReport
from recon4d_ros.evaluation.trackers import RESIDUALS


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "eval-tracks",
        help="positions of point trackers against known points",
        description=(
            "Average Jaccard, share of positions within 1, 2, 4, 8 and 16 px and occlusion "
            "accuracy as TAP-Vid has them, query-first, in a raster of 256 x 256, in per cent; "
            "each point is asked for where it is first seen."
        ),
        epilog=EPILOG.format(command="eval-tracks"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_clip_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures."""
    header = f"{'AJ':>9s}{'<d_avg':>9s}{'OA':>9s}{'clips':>9s}"
    return run_table(args, header, _row)


def _row(name: str, report: MethodReport, kind: str) -> str | None:
    if name in RESIDUALS or kind not in report.positions:
        return None
    figures = report.positions[kind]
    shares = (figures.average_jaccard, figures.share_within, figures.occlusion_accuracy)
    return "".join(map(percent, shares)) + f"{figures.num_clips:9d}"

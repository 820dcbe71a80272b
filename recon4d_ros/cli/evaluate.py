"""`recon4d eval`: score a run against the ground truth of its sequence."""

from __future__ import annotations

import argparse
from pathlib import Path

from recon4d_ros.errors import OutputError
from recon4d_ros.evaluation.masks import MaskReport
from recon4d_ros.evaluation.report import Report, TrajectoryReport, evaluate_run
from recon4d_ros.evaluation.slices import run_slice
from recon4d_ros.storage.images import write_rgb


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "eval",
        help="score a run against the ground truth of its sequence",
        description=(
            "Compares the output of `recon4d run` with whatever ground truth the sequence folder "
            "has: poses (groundtruth.txt or reference_rgbd.txt), depth (depth.txt), masks "
            "(masks/). Trajectories are aligned by Sim(3), depth by one scale per sequence."
        ),
    )
    parser.add_argument("run_dir", metavar="DIR", type=Path, help="output of `recon4d run`")
    parser.add_argument("sequence", metavar="SEQUENCE", type=Path, help="sequence folder")
    parser.add_argument(
        "--slice",
        metavar="FILE",
        type=Path,
        help="also draw the middle column of all frames over time, and that of their depth (.png)",
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Print the figures; 0 when there were any."""
    report = evaluate_run(args.run_dir, args.sequence)
    print("\n".join(report_lines(report)))
    write_json(args.json, report.to_json())
    if args.slice is not None:
        write_rgb(args.slice, run_slice(args.run_dir, args.sequence))
    return 0


def write_json(path: Path | None, text: str) -> None:
    """Write the figures of `--json`, where it was given.

    Raises:
        OutputError: the file cannot be written.
    """
    if path is not None:
        try:
            path.write_text(text + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error


def report_lines(report: Report) -> list[str]:
    """The report as lines of text."""
    lines = [f"{report.sequence}"]
    for label, figures in (
        ("final poses", report.final),
        ("  truth interpolated", report.final_interpolated),
        ("provisional poses", report.provisional),
    ):
        if figures is not None:
            lines.append(f"{label:24s}" + _trajectory_text(figures))
    for label, depth in report.depth.items():
        pixels = label.replace("_", " ")
        lines.append(
            f"depth, {pixels:17s}AbsRel {depth.abs_rel:.4f}  delta<1.25 {depth.delta_125:.3f}  "
            f"valid {depth.valid_share:.1%}  scale {depth.scale:.4g}"
        )
    if report.masks is not None:
        lines.append(f"{'masks':24s}" + mask_text(report.masks))
    return lines


def mask_text(masks: MaskReport) -> str:
    """The figures of masks as one line."""
    return (
        f"IoU {masks.iou:.3f}  recall {masks.recall:.3f}  precision {masks.precision:.3f}  "
        f"IoU>0.5 {masks.iou_recall:.1%}  flagged {masks.flagged_share:.2%}"
    )


def _trajectory_text(figures: TrajectoryReport) -> str:
    return (
        f"ATE {figures.ate.rmse:.4f}  RPE {figures.rpe_translation.rmse:.4f} "
        f"{figures.rpe_rotation_deg.rmse:.3f} deg  posed {figures.num_posed}/"
        f"{figures.num_frames}  spread {figures.spread:.3f}  scale {figures.scale:.4g}"
    )

"""`recon4d eval-masks`: overlap of the masks of runs with the truth."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from recon4d_ros.cli.evaluate import add_json_argument, mask_text, write_json
from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.masks import MaskReport
from recon4d_ros.evaluation.report import evaluate_run_masks, json_text
from recon4d_ros.storage.dataset import SequenceFolder

_EPILOG = """examples:
  recon4d eval-masks result walking/
  recon4d eval-masks result_1 cows/ result_2 dog/ --json masks.json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "eval-masks",
        help="overlap of the masks of runs with the truth",
        description=(
            "Compares the masks that `recon4d run` wrote with masks/ of the sequence folders: "
            "intersection over union, recall and precision, each the mean over the frames."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pairs",
        metavar="RUN SEQUENCE",
        nargs="+",
        type=Path,
        help="output of `recon4d run` and its sequence folder, as often as wanted",
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures of each run."""
    if len(args.pairs) % 2:
        raise EvaluationError(
            f"{len(args.pairs)} folders; expected each run to be followed by its sequence"
        )
    reports = {}
    for run_dir, path in zip(args.pairs[::2], args.pairs[1::2], strict=True):
        reports[str(run_dir)] = _report(run_dir, path)
        print(f"{run_dir.name:24s}" + mask_text(reports[str(run_dir)]))
    write_json(args.json, json_text({run: dataclasses.asdict(r) for run, r in reports.items()}))
    return 0


def _report(run_dir: Path, path: Path) -> MaskReport:
    if not (run_dir / "masks").is_dir():
        raise EvaluationError(f"{run_dir} has no masks/; expected the output of `recon4d run`")
    sequence = SequenceFolder(path)
    if not sequence.truth.has_masks:
        raise EvaluationError(f"{path} has no masks/; choose a sequence whose masks are known")
    return evaluate_run_masks(run_dir, sequence)

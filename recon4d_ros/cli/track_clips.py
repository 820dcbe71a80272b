"""What `eval-tracks` and `eval-mobility` share: the clips, the trackers and the table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from recon4d_ros.cli.evaluate import add_json_argument, write_json
from recon4d_ros.evaluation.clips import LabelledClips, MethodReport, evaluate_clips
from recon4d_ros.evaluation.network_tracker import NetworkTracker, with_baselines
from recon4d_ros.evaluation.report import json_text
from recon4d_ros.evaluation.trackers import Methods, baselines
from recon4d_ros.networks.dynpt.checkpoint import load
from recon4d_ros.predictors.devices import choose_device
from recon4d_ros.storage.track_truth import TrackSequence
from recon4d_ros.synthetic.clips.generator import ClipGenerator
from recon4d_ros.synthetic.clips.settings import ClipSettings

# Seeds of training and of its validation are others.
HELD_OUT_SEED = 900_002

EPILOG = """examples:
  recon4d {command} room_walkers/ tossed_objects/
  recon4d {command} cows/ dog/ --frames 40 --json figures.json
  recon4d {command} --synthetic 64 --frames 12 --model dynpt.safetensors
"""


# Columns of a method's report on one kind of clip; None where there is no figure to tell.
Row = Callable[[str, MethodReport, str], str | None]


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which clips and which trackers."""
    parser.add_argument(
        "sequences",
        metavar="SEQUENCE",
        nargs="*",
        type=Path,
        help="sequence folders with tracks.npz or tracks.json, cut into clips",
    )
    for name, default, text in (
        ("frames", 16, "frames of a clip"),
        ("max-side", 256, "long side that images are shrunk to, px"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=_at_least_two,
            default=default,
            help=f"{text} (default {default})",
        )
    _add_rendered_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        help="weights of DynPT, to stand in the table as well",
    )
    parser.add_argument("--device", default="auto", help="of the network (default %(default)s)")
    add_json_argument(parser)


def _add_rendered_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--synthetic",
        metavar="COUNT",
        type=int,
        default=0,
        help="also this many rendered clips, reported by the motion of the camera",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=HELD_OUT_SEED,
        help="of the rendered clips, one that nothing was trained on (default %(default)s)",
    )


def run_table(args: argparse.Namespace, header: str, row: Row) -> int:
    """Evaluate, print one table for each kind of clip, and write the figures.

    Args:
        args: as `add_clip_arguments` declared.
        header: names of the columns.
        row: the columns.
    """
    reports = evaluate_clips(_clips(args), _methods(args))
    print("\n".join(_lines(reports, header, row)))
    write_json(args.json, json_text({name: r.to_plain() for name, r in reports.items()}))
    return 0


def percent(share: float) -> str:
    """A share as a column; NaN is a dash."""
    return f"{'-' if share != share else f'{100 * share:.1f}':>9s}"


def _clips(args: argparse.Namespace) -> Iterator[LabelledClips]:
    for path in args.sequences:
        sequence = TrackSequence(path, args.frames, args.max_side)
        for number in range(sequence.num_clips):
            yield LabelledClips(sequence.clip(number), sequence.name)
    if args.synthetic > 0:
        generator = ClipGenerator(ClipSettings(num_frames=args.frames), args.seed)
        for number in range(args.synthetic):
            yield LabelledClips(generator.clips(number, 1))


def _methods(args: argparse.Namespace) -> Methods:
    if args.model is None:
        return baselines
    device = choose_device(args.device, "--device")
    return with_baselines(args.model.stem, NetworkTracker(load(args.model, device), device))


def _lines(reports: dict[str, MethodReport], header: str, row: Row) -> Iterator[str]:
    kinds = dict.fromkeys(kind for report in reports.values() for kind in report.positions)
    for kind in kinds:
        rows = {name: row(name, report, kind) for name, report in reports.items()}
        told = {name: text for name, text in rows.items() if text is not None}
        if told:
            yield f"{kind:24s}{header}"
            yield from (f"  {name:22s}{text}" for name, text in told.items())


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number}; expected at least 2")
    return number

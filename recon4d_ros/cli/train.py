"""`recon4d train`: train a network of this project on rendered clips."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from recon4d_ros.config import Parameter
from recon4d_ros.training.config import KINDS, TrainingConfig
from recon4d_ros.training.session import train_network

_DESCRIPTION = """\
Trains a network on clips that are rendered as they are needed, and ends with its weights (fp16
safetensors) and a page that says what they are.

DIR receives config.yaml (all parameters), checkpoint.pt, train.csv, validation.csv, tensorboard/,
curves.png, and at the end NAME.safetensors and NAME.md. A run that was killed goes on with
--resume and the same --config.
"""

_EPILOG = """examples:
  recon4d train dynpt --config config/train/dynpt_cpu.yaml
  recon4d train dynpt --config config/train/dynpt_small.yaml --out trained --minutes 25
  recon4d train dynpt --config config/train/dynpt_small.yaml --out trained --resume
  recon4d train pomato --config config/train/pomato_small_pairwise.yaml

parameters of a kind of training, with default, unit and range:
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on rendered clips",
        description=_DESCRIPTION,
        epilog=_EPILOG + "\n".join(_parameter_lines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=tuple(KINDS), help="what is trained")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, required=True, help="YAML of parameters by section"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="default: train_out/ and the name of FILE"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that DIR holds")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one parameter, after --config; may be repeated (--set run.batch=4)",
    )
    parser.add_argument(
        "--minutes", metavar="M", type=float, help="as --set run.minutes=M, a bound on the time"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, and print what came out."""
    overrides = (*args.set, *([] if args.minutes is None else [f"run.minutes={args.minutes}"]))
    folder = args.out or Path("train_out", args.config.stem)
    trained = train_network(args.kind, args.config, overrides, folder, is_resumed=args.resume)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in trained.figures.items())
    print(f"{trained.weights}: {trained.steps} steps in {trained.minutes:.1f} min; {figures}")
    return 0


def _parameter_lines() -> Iterator[str]:
    """Every parameter with default and range, those of all kinds first."""
    shared = tuple(TrainingConfig.parameters())
    yield from _lines("any", shared)
    for kind, config in KINDS.items():
        yield from _lines(kind, [own for own in config.parameters() if own not in shared])


def _lines(kind: str, declared: Iterable[Parameter]) -> Iterator[str]:
    yield f"  {kind}"
    for parameter in declared:
        unit = f" {parameter.unit}" if parameter.unit else ""
        yield f"    {parameter.name}={parameter.default}{unit} ({parameter.bounds})"
        yield f"        {parameter.doc}"

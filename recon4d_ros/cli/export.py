"""`recon4d export`: write a network as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from recon4d_ros.cli.models import add_heads_arguments
from recon4d_ros.errors import OutputError
from recon4d_ros.networks.pomato import PomatoNet
from recon4d_ros.networks.pomato.onnx_export import export_onnx
from recon4d_ros.networks.pomato.onnx_folder import DESCRIPTION

_DESCRIPTION = """\
Writes a POMATO network as ONNX, for the predictor with pomato.runtime=onnx, and compares every
output with the network's own on ONNX Runtime.

DIR receives the encoder, the decoder and, for each head, a coarse part (which mixes the frames of
a window in a temporal model) and a fine part, with pomato.json, which describes and vouches for
them. The number of images is free, their size is the given one.
"""

_EPILOG = """examples:
  recon4d export pomato.safetensors --out pomato_onnx
  recon4d export pomato.safetensors --out pomato_onnx --height 384 --width 512 --precision fp16
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "export",
        help="write a network as ONNX",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=".pth or .safetensors of POMATO")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="made if missing")
    for side, default in (("height", 288), ("width", 512)):
        parser.add_argument(
            f"--{side}",
            metavar="PX",
            type=int,
            default=default,
            help=f"{side} of the images, a multiple of 16 (default {default})",
        )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of weights and tokens (default fp32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_heads_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print what was measured."""
    if (args.out / DESCRIPTION).exists() and not args.overwrite:
        raise OutputError(f"{args.out} holds an export; add --overwrite, or choose another folder")
    net = PomatoNet.from_file(args.model, args.encoder_heads, args.decoder_heads)
    found = export_onnx(net, args.out, args.height, args.width, args.precision)
    worst = max(found.errors, key=lambda name: found.errors[name])
    print(
        f"{args.out}: {net.sizes.description}, {found.height} x {found.width}, {found.precision}; "
        f"largest difference {found.errors[worst]:.2g} (relative L2, {worst})"
    )
    return 0

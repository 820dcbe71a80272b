"""`recon4d export`: write a network as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from recon4d_ros.cli.models import add_heads_arguments
from recon4d_ros.errors import OutputError
from recon4d_ros.networks.dynpt import checkpoint
from recon4d_ros.networks.dynpt import onnx_export as dynpt_export
from recon4d_ros.networks.dynpt import onnx_folder as dynpt_folder
from recon4d_ros.networks.pomato import PomatoNet
from recon4d_ros.networks.pomato.onnx_export import export_onnx
from recon4d_ros.networks.pomato.onnx_folder import DESCRIPTION

_DESCRIPTION = """\
Writes a POMATO or DynPT network as ONNX, for pomato.runtime=onnx or tracker.runtime=onnx, and
compares every output with the network's own on ONNX Runtime. The file says which network it is.

Of POMATO, DIR receives the encoder, the decoder and, for each head, a coarse part (which mixes the
frames of a window in a temporal model) and a fine part, with pomato.json, which describes and
vouches for them. The number of images is free, their size is the given one.

Of DynPT, DIR receives the encoder and the updater with dynpt.json. Give the size that
tracker.long_side makes of the images, the windows' frames and the value of tracker.max_points.
"""

_EPILOG = """examples:
  recon4d export pomato.safetensors --out pomato_onnx
  recon4d export pomato.safetensors --out pomato_onnx --height 384 --width 512 --precision fp16
  recon4d export dynpt.safetensors --out dynpt_onnx --height 144 --width 256 --points 512
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
    parser.add_argument("model", metavar="MODEL", type=Path, help=".pth or .safetensors")
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
    for count, default, meaning in (
        ("frames", 16, "frames of a window at most"),
        ("points", 1024, "rows for tracks"),
    ):
        parser.add_argument(
            f"--{count}",
            metavar="N",
            type=int,
            default=default,
            help=f"DynPT: {meaning} (default {default})",
        )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_heads_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print what was measured."""
    held = [name for name in (DESCRIPTION, dynpt_folder.DESCRIPTION) if (args.out / name).exists()]
    if held and not args.overwrite:
        raise OutputError(f"{args.out} holds an export; add --overwrite, or choose another folder")
    return _export_dynpt(args) if checkpoint.is_checkpoint(args.model) else _export_pomato(args)


def _export_dynpt(args: argparse.Namespace) -> int:
    net = checkpoint.load(args.model).requires_grad_(False)
    size = (args.height, args.width)
    found = dynpt_export.export_onnx(net, args.out, size, args.frames, args.points)
    worst = max(found.errors, key=lambda name: found.errors[name])
    print(
        f"{args.out}: DynPT, {found.height} x {found.width}, windows of {found.num_frames}, "
        f"{found.num_points} tracks; largest difference {found.errors[worst]:.2g} ({worst})"
    )
    return 0


def _export_pomato(args: argparse.Namespace) -> int:
    net = PomatoNet.from_file(args.model, args.encoder_heads, args.decoder_heads)
    found = export_onnx(net, args.out, args.height, args.width, args.precision)
    worst = max(found.errors, key=lambda name: found.errors[name])
    print(
        f"{args.out}: {net.sizes.description}, {found.height} x {found.width}, {found.precision}; "
        f"largest difference {found.errors[worst]:.2g} (relative L2, {worst})"
    )
    return 0

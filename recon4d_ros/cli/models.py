"""`recon4d models`: list, fetch, verify and convert weights of networks."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato import PomatoNet, save_safetensors
from recon4d_ros.storage.weights import (
    Weights,
    fetch,
    find_weights,
    hub_download,
    read_manifest,
    record_path,
    verify,
    weights_folder,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_DESCRIPTION = """\
Weights of networks. None are needed for the classical predictor, none are part of this package,
and nothing is downloaded but by `fetch`. They are kept in ~/.cache/recon4d_ros/models;
RECON4D_MODELS names another folder.
"""

_EPILOG = """examples:
  recon4d models list
  recon4d models fetch pomato_pairwise --accept-licence
  recon4d models verify
  recon4d models convert POMATO_pairwise.pth pomato.safetensors --dtype fp16
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its actions."""
    parser = subparsers.add_parser(
        "models",
        help="list, fetch, verify and convert weights of networks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    action = actions.add_parser("list", help="what there is, under which licence")
    action.set_defaults(run=list_models)
    action = actions.add_parser("fetch", help="download from the publisher, and check")
    action.add_argument("name", metavar="NAME", help="as `list` calls it")
    action.add_argument(
        "--accept-licence", action="store_true", help="you accept the licence of the weights"
    )
    action.set_defaults(run=fetch_model)
    action = actions.add_parser("verify", help="compare with the checksums of the first fetch")
    action.add_argument("names", metavar="NAME", nargs="*", help="all that are there if none")
    action.set_defaults(run=verify_models)
    action = actions.add_parser("convert", help="write a checkpoint as .safetensors")
    action.add_argument("source", metavar="IN", type=Path, help=".pth or .safetensors of POMATO")
    action.add_argument("target", metavar="OUT", type=Path, help="ends in .safetensors")
    action.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights")
    add_heads_arguments(action)
    action.set_defaults(run=convert_model)


def add_heads_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --encoder-heads and --decoder-heads."""
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}-heads",
            metavar="N",
            type=int,
            help="attention heads, where they are not 64 channels wide",
        )


def list_models(_: argparse.Namespace) -> int:
    """Print every entry of the manifest."""
    folder = weights_folder()
    for weights in read_manifest():
        state = "fetched" if (folder / weights.file).is_file() else "not fetched"
        print(
            f"{weights.name:20s}{weights.description:34s}{weights.licence:18s}{state:13s}"
            f"huggingface.co/{weights.repository} {weights.file}"
        )
    print(f"folder: {folder}")
    return 0


def fetch_model(args: argparse.Namespace) -> int:
    """Download one entry, once its licence is accepted."""
    weights = find_weights(args.name, read_manifest())
    print(f"{weights.file}, huggingface.co/{weights.repository}, licence: {weights.licence}")
    if not args.accept_licence:
        raise ModelError(
            f"the weights {weights.name} are under {weights.licence}, not under the licence of "
            "recon4d_ros; read it and, if you accept it, repeat the command with --accept-licence"
        )
    print(fetch(weights, weights_folder(), hub_download))
    return 0


def verify_models(args: argparse.Namespace) -> int:
    """Check the named entries, or all that have been fetched."""
    folder, manifest = weights_folder(), read_manifest()
    chosen = [find_weights(name, manifest) for name in args.names]
    chosen = chosen or [held for held in manifest if (folder / held.file).is_file()]
    for weights in chosen:
        print(f"{weights.name:20s}{_verdict(weights, folder)}")
    if not chosen:
        print(f"there are no weights in {folder}")
    return 0


def _verdict(weights: Weights, folder: Path) -> str:
    is_known = weights.sha256 is not None or record_path(weights, folder).is_file()
    return f"{'ok' if is_known else 'recorded'}  {verify(weights, folder)}"


def convert_model(args: argparse.Namespace) -> int:
    """Write a checkpoint as safetensors, in the wanted precision."""
    net = PomatoNet.from_file(args.source, args.encoder_heads, args.decoder_heads)
    save_safetensors(net, args.target, DTYPES[args.dtype])
    size = args.target.stat().st_size / 2**20
    print(f"{args.target}: {net.sizes.description}, {args.dtype}, {size:,.1f} MiB")
    return 0

"""Writes a DynPT network as ONNX files and checks them against it, see `onnx_folder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.model import DynPT
from recon4d_ros.networks.dynpt.motion import SharedMotion
from recon4d_ros.networks.dynpt.onnx_folder import (
    DESCRIPTION,
    ENCODER,
    UPDATER,
    OnnxDescription,
    write_description,
)
from recon4d_ros.networks.dynpt.onnx_runtime import OnnxDynPT, updater_inputs
from recon4d_ros.networks.dynpt.state import TrackState
from recon4d_ros.networks.dynpt.support import QuerySupport
from recon4d_ros.networks.files import sha256_of
from recon4d_ros.networks.onnx_session import CPU
from recon4d_ros.networks.onnx_writing import write_graphs

MAX_ERROR = 1e-4  # px and logits, after one iteration
_SEED = 0


@torch.no_grad()
def export_onnx(
    net: DynPT, folder: Path | str, size: tuple[int, int], num_frames: int, num_points: int
) -> OnnxDescription:
    """Write a network as ONNX and check it with ONNX Runtime on the CPU.

    Args:
        net: float32, on the CPU, in evaluation mode.
        folder: made if missing; the files of an earlier export are replaced.
        size: (height, width) of the images, multiples of 16.
        num_frames: of the windows.
        num_points: rows for tracks, `tracker.max_points`.

    Returns:
        What was written, with the error of each output.

    Raises:
        ModelError: the size does not fit, the network needs tokens, or the files do not compute
            what it does.
        OutputError: the folder cannot be written.
        MissingPrerequisiteError: onnxscript or ONNX Runtime are not installed.
    """
    if net.config.needs_tokens:
        raise ModelError(
            "this DynPT network needs the tokens of another one, which an export cannot hold; "
            "export one whose context is made of convolutions"
        )
    folder = Path(folder)
    images, queries = _example(size, num_frames, num_points)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without its description no half-written folder can be mistaken for an export.
        (folder / DESCRIPTION).unlink(missing_ok=True)
        _write(net, folder, images, queries)
        files = [f"{part}.onnx{end}" for part in (ENCODER, UPDATER) for end in ("", ".data")]
        sha256 = {name: sha256_of(folder / name) for name in files}
        description = OnnxDescription(
            net.config.to_json(), *size, num_frames, num_points, errors={}, sha256=sha256
        )
        errors = _errors(net, OnnxDynPT(description, folder, (CPU,)), images, queries)
        description = replace(description, errors=errors)
        write_description(folder, description)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}; choose another place") from error
    return description


def _example(size: tuple[int, int], num_frames: int, num_points: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(_SEED)
    images = torch.rand(1, num_frames, 3, *size, generator=random) * 2 - 1
    place = torch.rand(1, num_points, 2, generator=random) * torch.tensor([size[1], size[0]])
    frame = torch.randint(num_frames, (1, num_points, 1), generator=random).float()
    return images, torch.cat([frame, place - 0.5], dim=-1)


def _write(net: DynPT, folder: Path, images: Tensor, queries: Tensor) -> None:
    maps = net.encode(images)
    names = [f"level{number}" for number in range(len(maps.levels))]
    names += ["context"] if maps.context is not None else []
    free = ({0: torch.export.Dim("images")},)
    # Two images or more: torch bakes a single one in.
    several = images[0].repeat(2, 1, 1, 1)
    encoder = _Encoder(net)
    write_graphs({folder / f"{ENCODER}.onnx": encoder}, (several,), ("images",), names, free)
    support = net.support(maps, queries)
    state = TrackState.standing(queries[..., 1:], maps.num_frames)
    valid = torch.ones_like(queries[..., 0], dtype=torch.bool)
    shared = net.shared_motion(state, valid, maps)
    inputs = updater_inputs(maps, support, queries, state, shared, valid)
    write_graphs(
        {folder / f"{UPDATER}.onnx": _Updater(net, tuple(inputs))},
        tuple(inputs.values()),
        tuple(inputs),
        ("step", "logit_steps"),
    )


def _errors(net: DynPT, exported: OnnxDynPT, images: Tensor, queries: Tensor) -> dict[str, float]:
    """Largest differences after one iteration, on the network's own maps.

    Raises:
        ModelError: one is too large.
    """
    maps, theirs = net.encode(images), exported.encode(images)
    errors = {
        f"level{number}": _difference(*pair)
        for number, pair in enumerate(zip(maps.levels, theirs.levels, strict=True))
    }
    support = net.support(maps, queries)
    state = TrackState.standing(queries[..., 1:], maps.num_frames)
    ours, found = (
        runtime.refine(maps, support, queries, iterations=1, initial=state)[-1]
        for runtime in (net, exported)
    )
    errors |= {"uv": _difference(ours.uv, found.uv)}
    errors |= {"logits": _difference(ours.logits, found.logits)}
    _check(errors)
    return errors


def _check(errors: Mapping[str, float]) -> None:
    wrong = {name: error for name, error in errors.items() if not error < MAX_ERROR}
    if wrong:
        raise ModelError(
            f"the ONNX files differ from the network by {wrong}, expected less than {MAX_ERROR}; "
            "use another release of torch and onnxruntime"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


class _Encoder(nn.Module):
    def __init__(self, net: DynPT) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels, context = self.net.encoder(images, None)
        return (*levels, *(() if context is None else (context,)))


class _Updater(nn.Module):
    """The updater of a network, its inputs plain tensors in the order of their names."""

    def __init__(self, net: DynPT, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        held = dict(zip(self.names, inputs, strict=True))
        levels = tuple(part for name, part in held.items() if name.startswith("level"))
        patches = tuple(part for name, part in held.items() if name.startswith("patch"))
        shared = None
        if "residual" in held:
            shared = SharedMotion(held["residual"], held["summary"])
        steps: tuple[Tensor, Tensor] = self.net.updater(
            FeatureMaps(levels, held.get("context")),
            QuerySupport(patches, held.get("query_context")),
            held["queries"],
            TrackState(held["uv"], *held["logits"].unbind(dim=-1)),
            shared,
            held["valid"] > 0.5,
        )
        return steps

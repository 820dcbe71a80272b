"""Writes a POMATO network as ONNX files and checks them against it, see `onnx_folder`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.files import sha256_of
from recon4d_ros.networks.onnx_session import CPU
from recon4d_ros.networks.onnx_writing import write_graphs
from recon4d_ros.networks.pomato.dpt_head import DptHead, activate
from recon4d_ros.networks.pomato.onnx_folder import (
    DECODER,
    DESCRIPTION,
    ENCODER,
    OnnxDescription,
    Precision,
    coarse_part,
    fine_part,
    write_description,
)
from recon4d_ros.networks.pomato.onnx_runtime import OnnxPomato, load_sessions
from recon4d_ros.networks.pomato.parts import HEADS, PomatoParts
from recon4d_ros.networks.pomato.rope import Grid
from recon4d_ros.networks.pomato.sizes import PATCH
from recon4d_ros.networks.pomato.tokens import Features

MAX_FP32_ERROR = 1e-4
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_SEED = 0


def export_onnx(
    net: PomatoParts,
    folder: Path | str,
    height: int,
    width: int,
    precision: Precision = "fp32",
) -> OnnxDescription:
    """Write a network as ONNX and check it with ONNX Runtime on the CPU.

    The number of images, pairs or windows is free in every file; height and width are not, since
    the position tables are written into the files.

    Args:
        net: float32, on the CPU, in evaluation mode.
        folder: made if missing; the files of an earlier export are replaced.
        height: of the images in pixels, a multiple of 16, as `width`.
        width: see there.
        precision: of weights and tokens.

    Returns:
        What was written, with the error of each output.

    Raises:
        ModelError: the size does not fit, or the files do not compute what the network does.
        OutputError: the folder cannot be written.
        MissingPrerequisiteError: onnxscript or ONNX Runtime are not installed.
    """
    if min(height, width) < PATCH or height % PATCH or width % PATCH:
        raise ModelError(f"size is {height} x {width}; expected multiples of {PATCH}")
    folder = Path(folder)
    images = _check_images(net, height, width)
    with torch.no_grad():
        expected = _outputs(net, images)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without its description no half-written folder can be mistaken for an export.
            (folder / DESCRIPTION).unlink(missing_ok=True)
            exported = net if precision == "fp32" else copy.deepcopy(net).to(_DTYPES[precision])
            graphs = [n for part in _parts(exported, images) for n in _write(folder, part)]
            files = [name for graph in graphs for name in (graph, f"{graph}.data")]
            description = OnnxDescription(
                net.temporal_length,
                height,
                width,
                precision,
                errors={},
                sha256={name: sha256_of(folder / name) for name in files},
            )
            found = _outputs(OnnxPomato(description, load_sessions(folder, (CPU,))), images)
            errors = {name: _error(found[name], held) for name, held in expected.items()}
            check_errors(errors, precision)
            description = replace(description, errors=errors)
            write_description(folder, description)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error}; choose another place") from error
    return description


def _check_images(net: PomatoParts, height: int, width: int) -> Tensor:
    """Images for two windows, or for two pairs: torch bakes a single one in."""
    random = torch.Generator().manual_seed(_SEED)
    number = 2 * (net.temporal_length or 1)
    return torch.rand(number, 3, height, width, generator=random) * 2 - 1


def _outputs(net: PomatoParts | OnnxPomato, images: Tensor) -> dict[str, Tensor]:
    """Everything the parts compute for the first window, or the first pair, each image by itself.

    Besides, the network fills its cache of position tables, which must not happen while torch
    traces it.
    """
    number = net.temporal_length or 1
    features = net.encode(images[:number])
    tokens = net.decode(features[[0] * number], features)
    outputs = {"encoder": features.tokens}
    for branch, held in enumerate(tokens, start=1):
        outputs |= {f"decoder {branch}, {level}": held.levels[level] for level in range(1, 4)}
    for head in HEADS:
        points, conf = net.head(head, tokens[0 if head == 1 else 1])
        outputs |= {f"head {head} points": points, f"head {head} confidence": conf}
    return outputs


def _error(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def check_errors(errors: Mapping[str, float], precision: Precision) -> None:
    """Require that an export computes what its network does, in half precision at least roughly.

    Args:
        errors: relative L2 distance of each output from the network's.
        precision: of the export.

    Raises:
        ModelError: it does not.
    """
    limit = MAX_FP32_ERROR if precision == "fp32" else math.inf
    wrong = [name for name, error in errors.items() if not error < limit]
    if wrong:
        raise ModelError(
            f"the ONNX files are wrong: {wrong[0]} differs by {errors[wrong[0]]:.3g} (relative "
            f"L2) from the network, expected less than {limit:g}; use --precision fp32, or "
            "another release of torch and onnxruntime"
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Files of one structure.

    Attributes:
        modules: by name of the file.
        examples: of their inputs.
        inputs, outputs: names.
        rows_per_clip: that the first axis counts for each clip; 1 where clips do not matter.
    """

    modules: Mapping[str, nn.Module]
    examples: Sequence[Tensor]
    inputs: Sequence[str]
    outputs: Sequence[str]
    rows_per_clip: int = 1


def _parts(net: PomatoParts, images: Tensor) -> Iterator[_Part]:
    grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    features = net.encode(images)
    tokens = net.decode(features, features)
    yield _Part({ENCODER: _Encoder(net)}, (images,), ("images",), ("tokens",))
    hooks = [f"view{view}_level{level}" for view in (1, 2) for level in (1, 2, 3)]
    pair = features.tokens, features.tokens.clone()
    yield _Part({DECODER: _Decoder(net, grid)}, pair, ("tokens1", "tokens2"), hooks)
    heads = net.downstream_head1.dpt, net.downstream_head2.dpt, net.downstream_head3.dpt
    named = dict(zip(HEADS, heads, strict=True))
    first, second, third, fourth = tokens[0].levels
    coarse = {coarse_part(number): _Coarse(dpt, grid) for number, dpt in named.items()}
    rows, levels = net.temporal_length or 1, ("level2", "level3")
    yield _Part(coarse, (third, fourth), levels, ("path",), rows)
    fine = {fine_part(number): _Fine(dpt, grid) for number, dpt in named.items()}
    path = coarse[coarse_part(HEADS[0])](third, fourth)
    inputs = ("level0", "level1", "path")
    yield _Part(fine, (first, second, path), inputs, ("points", "conf"))


def _write(folder: Path, part: _Part) -> list[str]:
    """Write the files of a part; returns their names."""
    rows = torch.export.Dim("batch") if part.rows_per_clip == 1 else torch.export.Dim("clips")
    dynamic = {0: rows if part.rows_per_clip == 1 else part.rows_per_clip * rows}
    modules = {folder / f"{name}.onnx": module for name, module in part.modules.items()}
    shapes = tuple(dynamic for _ in part.examples)
    write_graphs(modules, part.examples, part.inputs, part.outputs, shapes)
    return [path.name for path in modules]


class _Encoder(nn.Module):
    def __init__(self, net: PomatoParts) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.encode(images).tokens


class _Decoder(nn.Module):
    def __init__(self, net: PomatoParts, grid: Grid) -> None:
        super().__init__()
        self.net = net
        self.grid = grid

    def forward(self, tokens1: Tensor, tokens2: Tensor) -> tuple[Tensor, ...]:
        branches = self.net.decode(Features(tokens1, self.grid), Features(tokens2, self.grid))
        # Two hooks of a shallow decoder are one tensor, and outputs need names of their own.
        return tuple(level.clone() for held in branches for level in held.levels[1:])


class _Coarse(nn.Module):
    def __init__(self, dpt: DptHead, grid: Grid) -> None:
        super().__init__()
        self.dpt = dpt
        self.grid = grid

    def forward(self, third: Tensor, fourth: Tensor) -> Tensor:
        return self.dpt.coarse(_as_map(third, self.grid), _as_map(fourth, self.grid), self.grid)


class _Fine(nn.Module):
    def __init__(self, dpt: DptHead, grid: Grid) -> None:
        super().__init__()
        self.dpt = dpt
        self.grid = grid

    def forward(self, first: Tensor, second: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        maps = _as_map(first, self.grid), _as_map(second, self.grid)
        points, conf = activate(self.dpt.fine(*maps, path))
        return points, conf


def _as_map(level: Tensor, grid: Grid) -> Tensor:
    return torch.unflatten(level.mT, -1, grid)

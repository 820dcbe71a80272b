"""Reading and writing the weights of POMATO networks.

A checkpoint is checked completely before its network is made; nothing in it is ever executed.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.pomato.parts import PomatoParts
from recon4d_ros.networks.pomato.sizes import PomatoSizes, read_sizes

Tensors = dict[str, Tensor]

_PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
# What torch raises on files that are damaged or hold other things than weights.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OSError,
)
_ALIAS = re.compile(r"(downstream_head\d+\.dpt\.scratch\.)layer([1-4])_rn\.weight")
# Parts that may be missing as a whole and start as copies of others, as in training.
_COPIED_PARTS = (
    ("dec_blocks2.", "dec_blocks."),
    ("downstream_head3.", "downstream_head2."),
)
_MAX_NAMES = 4
_HEADS_KEYS = ("encoder_heads", "decoder_heads")


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit a network.

    Attributes:
        tensors: float32, on the CPU, one for every parameter and buffer.
        sizes: of the network they belong to.
        unexpected: names of tensors in the file that no part of the network uses.
        copied: prefixes of parts that the file lacks and that were copied from their twins.
    """

    tensors: Tensors
    sizes: PomatoSizes
    unexpected: tuple[str, ...]
    copied: tuple[str, ...]

    @property
    def remarks(self) -> str:
        """What a user should know of the file; empty if nothing."""
        remarks = []
        if self.unexpected:
            remarks += [f"{len(self.unexpected)} tensors are not used: {_some(self.unexpected)}"]
        if self.copied:
            remarks += [f"{' and '.join(self.copied)} are missing and copied from their twins"]
        return "; ".join(remarks)


def load_checkpoint(
    path: Path | str, encoder_heads: int | None = None, decoder_heads: int | None = None
) -> Checkpoint:
    """Read and check a checkpoint.

    Published files repeat some tensors under a second name (`layer1_rn` for `layer_rn.0`): either
    name is enough. A second decoder branch or a third head that is missing as a whole is copied
    from the first branch or the second head.

    Args:
        path: `.safetensors`, or a `.pth` of torch, read without executing anything in it.
        encoder_heads: attention heads; else as the file says, else 64 channels each.
        decoder_heads: likewise.

    Raises:
        ModelError: the file cannot be read, is not a POMATO network, lacks tensors or holds
            such of a wrong shape, of no floating type or with values that are not finite.
    """
    path = Path(path)
    try:
        tensors, metadata = _read(path)
        tensors = _without_aliases(tensors)
        copied = _copy_missing_parts(tensors)
        given = (encoder_heads, decoder_heads)
        heads = [
            number if number is not None else _heads_of_file(metadata, key)
            for key, number in zip(_HEADS_KEYS, given, strict=True)
        ]
        sizes = read_sizes({name: tuple(held.shape) for name, held in tensors.items()}, *heads)
        expected = _expected_shapes(sizes)
        _check_shapes(tensors, expected)
        unexpected = tuple(name for name in tensors if name not in expected)
        weights = _as_weights(tensors, expected)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return Checkpoint(weights, sizes, unexpected, copied)


def save_safetensors(
    net: PomatoParts, path: Path | str, dtype: torch.dtype = torch.float32
) -> None:
    """Write a network's weights so that `load_checkpoint` reads them, heads included.

    Args:
        net: network of any type, on any device.
        path: ends in `.safetensors`; an existing file is replaced.
        dtype: of the tensors in the file; half precision makes it half as large.

    Raises:
        ModelError: a weight is not finite in `dtype`.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputError(f"cannot write {path}: expected a name that ends in .safetensors")
    tensors = {}
    for name, tensor in net.state_dict().items():
        # Copies, since tensors that share memory cannot be written.
        tensors[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        _check_values(name, tensors[name])
    metadata = {key: str(getattr(net.sizes, key)) for key in _HEADS_KEYS}
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error


def _read(path: Path) -> tuple[Tensors, Mapping[str, str]]:
    """Tensors of a file by name, and what its header says besides."""
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "does not exist"
        raise ModelError(f"{found}; expected a checkpoint file .pth or .safetensors")
    if path.stat().st_size == 0:
        raise ModelError("is empty; download or copy the checkpoint again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLE_SUFFIXES:
        return _read_pickle(path), {}
    raise ModelError(f"ends in '{path.suffix}'; expected a checkpoint .pth or .safetensors")


def _read_safetensors(path: Path) -> tuple[Tensors, Mapping[str, str]]:
    try:
        # Read, not mapped: a file may be replaced while its network lives.
        with safe_open(path, framework="pt", backend="pread") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"is no readable safetensors file ({error}); download or convert it again"
        ) from error


def _read_pickle(path: Path) -> Tensors:
    """Tensors of a torch file; of other types only the options of a training run may occur."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"is damaged or holds more than weights, which is never run ({first_line}); download "
            "it again from its publisher, or give a .safetensors file"
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise ModelError(f"holds a {type(state).__name__}; expected tensors by name ('model')")
    return {str(name): held for name, held in state.items() if isinstance(held, Tensor)}


def _heads_of_file(metadata: Mapping[str, str], key: str) -> int | None:
    text = metadata.get(key)
    if text is None:
        return None
    if not text.isdecimal():
        raise ModelError(f"says {key} = {text!r}; expected a number: convert the file again")
    return int(text)


def _without_aliases(tensors: Tensors) -> Tensors:
    """Every tensor under one name."""
    plain: Tensors = {}
    for name, tensor in tensors.items():
        match = _ALIAS.fullmatch(name)
        target = f"{match[1]}layer_rn.{int(match[2]) - 1}.weight" if match else name
        if target in plain and not _equal(plain[target], tensor):
            raise ModelError(
                f"{target} and its second name layer{int(target[-8]) + 1}_rn.weight differ; they "
                "are one tensor in a sound checkpoint: download it again"
            )
        plain[target] = tensor
    return plain


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _copy_missing_parts(tensors: Tensors) -> tuple[str, ...]:
    """Fill in the parts that may be missing as a whole; returns their prefixes."""
    copied = []
    for part, twin in _COPIED_PARTS:
        if any(name.startswith(part) for name in tensors):
            continue
        found = {name: held for name, held in tensors.items() if name.startswith(twin)}
        # Clones: the two parts are trained and written separately.
        tensors.update({part + name[len(twin) :]: held.clone() for name, held in found.items()})
        copied += [part] if found else []
    return tuple(copied)


@lru_cache(maxsize=4)
def _expected_shapes(sizes: PomatoSizes) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(held.shape) for name, held in PomatoParts(sizes).state_dict().items()}


def _check_shapes(tensors: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ModelError(
            f"lacks {len(missing)} of {len(expected)} tensors: {_some(missing)}; expected a "
            "complete POMATO network: download or convert it again"
        )
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(expected)} tensors do not fit the others: {_some(wrong)}; "
            "expected the weights of one network: download or convert it again"
        )


def _as_weights(tensors: Tensors, expected: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The expected tensors as float32; the given ones are let go one by one to save memory."""
    weights = {}
    for name in expected:
        held = tensors.pop(name)
        if not held.is_floating_point() or held.layout != torch.strided:
            raise ModelError(f"{name} is {held.dtype}, {held.layout}; expected plain floats")
        weights[name] = held.to(torch.float32).contiguous()
        _check_values(name, weights[name])
    return weights


def _check_values(name: str, tensor: Tensor) -> None:
    # The extremes of a tensor with NaN are NaN; no copy of the tensor is needed.
    if not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
        raise ModelError(
            f"{name} holds values that are not finite as {tensor.dtype}; training diverged or "
            "the type is too narrow: use another checkpoint or type"
        )


def _some(names: Sequence[str]) -> str:
    dots = ", ..." if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + dots

"""Files of DynPT weights: safetensors whose metadata hold the sizes of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.dynpt.model import DynPT
from recon4d_ros.networks.dynpt.sizes import DynPTConfig

_CONFIG = "config"
_SUFFIX = ".safetensors"


def save(
    path: Path | str,
    model: DynPT,
    facts: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network; an existing file is replaced.

    Args:
        path: ends in `.safetensors`.
        model: on any device.
        facts: more entries of the file's metadata, such as the seed.
        dtype: of the tensors in the file.

    Raises:
        ModelError: a weight is not finite in `dtype`.
        OutputError: the file cannot be written, or a fact has the name of an entry of its own.
    """
    path = Path(path)
    if path.suffix != _SUFFIX or _CONFIG in facts:
        raise OutputError(
            f"cannot write {path} with the facts {sorted(facts)}; expected a name that ends in "
            f"{_SUFFIX}, and no fact named {_CONFIG}"
        )
    # Copies, since tensors that share memory cannot be written.
    tensors = {
        name: tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }
    _check_finite(tensors, path)
    metadata = {**facts, "format": "pt", _CONFIG: model.config.to_json()}
    try:
        save_file(tensors, path, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error


def load(path: Path | str, device: torch.device | str = "cpu") -> DynPT:
    """A network in evaluation mode, float32, on a device.

    Raises:
        ModelError: the file cannot be read or holds no complete DynPT network.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if _CONFIG not in metadata:
        raise ModelError(
            f"{path} does not say the sizes of its network; expected a DynPT checkpoint, as "
            "training writes it"
        )
    try:
        model = DynPT(DynPTConfig.from_json(metadata[_CONFIG]))
        model.load_state_dict({name: held.float() for name, held in tensors.items()})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the tensors of {path} do not fit the sizes it says ({first}); give a checkpoint "
            "that this version wrote"
        ) from error
    _check_finite(tensors, path)
    return model.to(device).eval()


def is_checkpoint(path: Path | str) -> bool:
    """Whether a file says that it holds a DynPT network."""
    try:
        return _CONFIG in read_facts(path)
    except ModelError:
        return False


def read_facts(path: Path | str) -> Mapping[str, str]:
    """What the metadata of a checkpoint say.

    Raises:
        ModelError: the file cannot be read.
    """
    return _read(Path(path), with_tensors=False)[1]


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    if not path.is_file():
        raise ModelError(f"{path} does not exist; expected a DynPT checkpoint {_SUFFIX}")
    try:
        # Read, not mapped: a file may be replaced while its network lives.
        with safe_open(path, framework="pt", backend="pread") as file:
            names = file.keys() if with_tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is no readable safetensors file ({error}); copy or train it again"
        ) from error


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    wrong = [name for name, held in tensors.items() if not bool(held.isfinite().all())]
    if wrong:
        raise ModelError(
            f"{path}: {wrong[0]} and {len(wrong) - 1} other tensors hold values that are not "
            "finite; training diverged or the type is too narrow: use another checkpoint or type"
        )

"""Where networks run."""

from __future__ import annotations

import torch

from recon4d_ros.errors import ConfigError


def choose_device(name: str, parameter: str) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:N.

    Args:
        name: see above.
        parameter: that holds the name, for messages.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"{parameter}={name!r} is refused; expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise ConfigError(
            f"{parameter}={name} does not exist: this machine has {count} CUDA devices for "
            f"torch {torch.__version__}; set {parameter}=cpu, or install the build for CUDA "
            "(make setup GPU=1)"
        )
    return torch.device(name)

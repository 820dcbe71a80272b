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


def onnx_providers(runtime: str, device: torch.device, parameter: str) -> list[str]:
    """Execution providers of ONNX Runtime by preference, each of which must load.

    Args:
        runtime: onnx, or tensorrt for what TensorRT knows and CUDA for the rest.
        device: where they run.
        parameter: that holds the runtime, for messages.

    Raises:
        ConfigError: they do not run there.
    """
    if device.type == "cpu" and runtime == "tensorrt":
        raise ConfigError(
            f"{parameter}=tensorrt needs a CUDA device, but the network is to run on {device}; "
            f"set {parameter}=onnx"
        )
    if device.index:
        raise ConfigError(
            f"{parameter}={runtime} runs on the first CUDA device, not on {device}; name cuda, or "
            f"set {parameter}=torch"
        )
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    first = ["TensorrtExecutionProvider"] if runtime == "tensorrt" else []
    return [*first, "CUDAExecutionProvider", "CPUExecutionProvider"]

"""Networks on ONNX Runtime: files as functions of torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.errors import MissingPrerequisiteError, ModelError

CPU = "CPUExecutionProvider"
_ON_CUDA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class Session:
    """One ONNX file; torch tensors go in and out without a copy where device and type fit.

    Attributes:
        device: where inputs are read and outputs written.
    """

    def __init__(self, path: Path, providers: Sequence[str]) -> None:
        """Load a file.

        Raises:
            ModelError: it cannot be loaded, or not on every one of the providers.
        """
        runtime = onnx_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what matters is raised, with a message of ours
        # Threads that wait for work would take the cores from the rest of the node.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(path, options, providers=list(providers))
        except _runtime_errors() as error:
            raise ModelError(
                f"ONNX Runtime cannot load {path} ({_first_line(error)}); export it again"
            ) from error
        self._session.disable_fallback()
        not_loaded = [name for name in providers if name not in self._session.get_providers()]
        if not_loaded:
            raise ModelError(
                f"{', '.join(not_loaded)} did not load for {path}, only "
                f"{', '.join(self._session.get_providers())}; install its libraries, or ask for "
                "the others alone"
            )
        self.device = torch.device("cuda" if providers[0] in _ON_CUDA else "cpu")

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Outputs for inputs in the order of the file; all have the same number of rows.

        Raises:
            ModelError: ONNX Runtime fails, for example for want of memory.
        """
        binding = self._session.io_binding()
        # The binding knows addresses only: the tensors have to live until the end of the run.
        held = [
            tensor.to(self.device, _DTYPES[node.type]).contiguous()
            for node, tensor in zip(self._session.get_inputs(), inputs, strict=True)
        ]
        outputs = [
            torch.empty(
                (len(held[0]), *node.shape[1:]), dtype=_DTYPES[node.type], device=self.device
            )
            for node in self._session.get_outputs()
        ]
        for node, tensor in zip(self._session.get_inputs(), held, strict=True):
            binding.bind_input(node.name, *_address(tensor))
        for node, tensor in zip(self._session.get_outputs(), outputs, strict=True):
            binding.bind_output(node.name, *_address(tensor))
        if self.device.type == "cuda":
            # ONNX Runtime works on a stream of its own, and waits for that one only.
            torch.cuda.current_stream().synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except _runtime_errors() as error:
            raise ModelError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return outputs


def _address(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """Device, its number, type, shape and address, in the order of `bind_input`."""
    numpy_type = torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
    number = tensor.device.index or 0
    return tensor.device.type, number, numpy_type, list(tensor.shape), tensor.data_ptr()


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: a class for each of its error codes, with no base in common."""
    states = vars(onnx_runtime().capi.onnxruntime_pybind11_state).values()
    own = [held for held in states if isinstance(held, type) and issubclass(held, Exception)]
    return RuntimeError, ValueError, *own


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def check_providers(providers: Sequence[str]) -> None:
    """Require that the installed ONNX Runtime has these execution providers.

    Raises:
        ModelError: there is none given, or one that it lacks.
        MissingPrerequisiteError: ONNX Runtime is not installed.
    """
    available = onnx_runtime().get_available_providers()
    unknown = [name for name in providers if name not in available]
    if unknown or not providers:
        raise ModelError(
            f"providers are {', '.join(providers) or 'none'}; the installed ONNX Runtime has "
            f"{', '.join(available)}: choose among these, or install another build "
            "(`make setup GPU=1` takes the one for CUDA and TensorRT)"
        )


def onnx_runtime() -> Any:
    """The module `onnxruntime`, loaded when it is needed.

    Raises:
        MissingPrerequisiteError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPrerequisiteError(
            f"ONNX Runtime cannot be imported ({error}); run `make setup`, or "
            "`pip install onnxruntime` (for a GPU onnxruntime-gpu, never both)"
        ) from error
    return onnxruntime

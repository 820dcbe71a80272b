"""POMATO on ONNX Runtime: the parts of `PomatoNet`, from a folder that `recon4d export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon4d_ros.errors import MissingPrerequisiteError, ModelError
from recon4d_ros.networks.pomato.dpt_head import DEFAULT_CHUNK, Pointmap
from recon4d_ros.networks.pomato.onnx_folder import (
    DECODER,
    ENCODER,
    OnnxDescription,
    coarse_part,
    fine_part,
    read_description,
)
from recon4d_ros.networks.pomato.parts import HEADS, check_heads, check_images
from recon4d_ros.networks.pomato.tokens import Features, HookTokens

CPU = "CPUExecutionProvider"
_ON_CUDA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxPomato:
    """Encoder, decoder and heads, pairwise or temporal, called like those of `PomatoNet`.

    Attributes:
        description: what was exported, with its measured errors.
        device: where results are; inputs from elsewhere are copied there.
    """

    def __init__(self, description: OnnxDescription, sessions: dict[str, Session]) -> None:
        """Use `from_folder`."""
        self.description = description
        self.device = sessions[ENCODER].device
        self._sessions = sessions

    @classmethod
    def from_folder(
        cls, path: Path | str, providers: Sequence[str] = (CPU,), heads: Sequence[int] = HEADS
    ) -> OnnxPomato:
        """Load an exported network.

        Args:
            path: folder written by `recon4d export`.
            providers: execution providers of ONNX Runtime by preference; each must load.
            heads: numbers of the heads to load; the others cannot be called.

        Raises:
            ModelError: the folder is incomplete or damaged, or a provider does not load.
            MissingPrerequisiteError: ONNX Runtime is not installed.
        """
        check_heads(heads)
        folder = Path(path)
        description = read_description(folder, part_names(heads))
        check_providers(providers)
        return cls(description, load_sessions(folder, providers, heads))

    @property
    def temporal_length(self) -> int | None:
        """Frames of a window; None for the pairwise model."""
        return self.description.temporal_length

    def encode(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1], of the size that was exported.

        Raises:
            ModelError: the images have another size.
        """
        check_images(images, 4, "(B, 3, H, W)")
        exported = self.description.height, self.description.width
        if tuple(images.shape[-2:]) != exported:
            raise ModelError(
                f"images are {images.shape[-2]} x {images.shape[-1]}, the network was exported "
                f"for {exported[0]} x {exported[1]}; resize them, or export with --height, --width"
            )
        (tokens,) = self._sessions[ENCODER](images)
        return Features(tokens, self.description.grid)

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        """Tokens of both branches for B pairs; head 1 reads the first, heads 2 and 3 the second.

        Raises:
            ModelError: the numbers of images differ or their size is not the exported one.
        """
        num1, num2 = len(features1.tokens), len(features2.tokens)
        if num1 != num2:
            raise ModelError(f"got {num1} first and {num2} second images; expected pairs")
        self._check_grid(features1)
        self._check_grid(features2)
        decoder, grid = self._sessions[DECODER], self.description.grid
        a2, a3, a4, b2, b3, b4 = decoder(features1.tokens, features2.tokens)
        first, second = (
            features.tokens.to(self.device, a2.dtype) for features in (features1, features2)
        )
        return HookTokens((first, a2, a3, a4), grid), HookTokens((second, b2, b3, b4), grid)

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> Pointmap:
        """Points (B, H, W, 3) and confidence (B, H, W) of one head, see `PomatoNet.head`.

        Raises:
            ModelError: the head was not loaded or the tokens are no whole number of windows.
        """
        if coarse_part(number) not in self._sessions:
            raise ModelError(f"head {number} is not loaded; name it in `from_folder(heads=...)`")
        num_frames = self.temporal_length or 1
        if len(tokens) == 0 or len(tokens) % num_frames:
            raise ModelError(
                f"a head got tokens of {len(tokens)} pairs; expected windows of {num_frames}"
            )
        self._check_grid(tokens)
        (path,) = self._sessions[coarse_part(number)](*tokens.levels[2:])
        rows = torch.arange(len(tokens), device=self.device)
        if frames is not None:
            rows = rows.view(-1, num_frames)[:, list(frames)].flatten()
        fine = self._sessions[fine_part(number)]
        parts = [
            fine(tokens.levels[0][some], tokens.levels[1][some], path[some])
            for some in torch.split(rows, chunk)
        ]
        points, conf = (torch.cat(maps) for maps in zip(*parts, strict=True))
        return Pointmap(points, conf)

    def _check_grid(self, tokens: Features | HookTokens) -> None:
        if tokens.grid != self.description.grid:
            raise ModelError(
                f"tokens are of a grid {tokens.grid}, the network was exported for "
                f"{self.description.grid}; encode the images with the same network"
            )


def part_names(heads: Sequence[int]) -> list[str]:
    """Names of the parts that a network with these heads consists of."""
    return [ENCODER, DECODER, *(part(head) for head in heads for part in (coarse_part, fine_part))]


def load_sessions(
    folder: Path, providers: Sequence[str], heads: Sequence[int] = HEADS
) -> dict[str, Session]:
    """Sessions of all parts; the files themselves are not compared with the description.

    Raises:
        ModelError: a file cannot be loaded, or not on every one of the providers.
    """
    return {part: Session(folder / f"{part}.onnx", providers) for part in part_names(heads)}


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

"""Writes modules as ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon4d_ros.errors import MissingPrerequisiteError

# The newest that ONNX Runtime and TensorRT both know completely.
_OPSET = 18


def write_graph(
    path: Path,
    module: nn.Module,
    examples: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any = None,
) -> None:
    """Write a module, its weights beside it in `*.onnx.data`.

    Args:
        path: ends in `.onnx`.
        module: what is written, in evaluation mode afterwards.
        examples: of its inputs.
        inputs: their names.
        outputs: names of its outputs.
        dynamic_shapes: free axes of each input, as torch names them; None: all are fixed.

    Raises:
        OSError: the file cannot be written.
        MissingPrerequisiteError: onnxscript is not installed.
    """
    try:
        with _quiet():
            torch.onnx.export(
                module.eval(),
                tuple(examples),
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=_OPSET,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                external_data=True,
                optimize=False,
            )
    except ImportError as error:
        raise MissingPrerequisiteError(
            f"torch cannot write ONNX ({error}); run `make setup`, or `pip install onnxscript`"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing its progress and remarks on operators of no use here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

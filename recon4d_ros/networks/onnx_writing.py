"""Writes modules as ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon4d_ros.errors import MissingPrerequisiteError

# The newest that ONNX Runtime and TensorRT both know completely.
_OPSET = 18


def write_graphs(
    modules: Mapping[Path, nn.Module],
    examples: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any = None,
) -> None:
    """Write modules that differ in their weights alone, which are traced once.

    Args:
        modules: by path, which ends in `.onnx`; the weights go beside it into `*.onnx.data`. They
            are in evaluation mode afterwards.
        examples: of their inputs.
        inputs: names of the inputs.
        outputs: names of the outputs.
        dynamic_shapes: free axes of each input, as torch names them; None: all are fixed.

    Raises:
        OSError: a file cannot be written.
        MissingPrerequisiteError: onnxscript is not installed.
    """
    first = next(iter(modules.values())).eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                first,
                tuple(examples),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=_OPSET,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except ImportError as error:
        raise MissingPrerequisiteError(
            f"torch cannot write ONNX ({error}); run `make setup`, or `pip install onnxscript`"
        ) from error
    assert program is not None
    for path, module in modules.items():
        if module is not first:
            _take_weights(program.model.graph.initializers, module.eval())
        program.save(path, external_data=True)


def _take_weights(initializers: Mapping[str, Any], module: nn.Module) -> None:
    """Put the weights of a module into a graph that another one of its kind was traced to."""
    from onnxscript import ir

    weights = module.state_dict()
    for name, value in initializers.items():
        if name in weights:
            value.const_value = ir.tensor(weights[name].numpy(), name=name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from remarks on operators of no use here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

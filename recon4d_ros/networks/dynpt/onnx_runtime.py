"""DynPT on ONNX Runtime, from a folder that `recon4d export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.motion import SharedMotion
from recon4d_ros.networks.dynpt.onnx_folder import (
    ENCODER,
    UPDATER,
    OnnxDescription,
    read_description,
)
from recon4d_ros.networks.dynpt.refinement import Refinement
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.networks.dynpt.state import TrackState
from recon4d_ros.networks.dynpt.support import QuerySupport
from recon4d_ros.networks.onnx_session import CPU, Session, check_providers


def updater_inputs(
    maps: FeatureMaps,
    support: QuerySupport,
    queries: Tensor,
    state: TrackState,
    shared: SharedMotion | None,
    valid: Tensor,
) -> dict[str, Tensor]:
    """The inputs of an exported updater by name, in its order; absent parts are left out."""
    parts: dict[str, Tensor | None] = {
        **{f"level{number}": level for number, level in enumerate(maps.levels)},
        "context": maps.context,
        **{f"patch{number}": patch for number, patch in enumerate(support.patches)},
        "query_context": support.context,
        "queries": queries,
        "uv": state.uv,
        "logits": state.logits,
        "valid": valid.float(),
        "residual": None if shared is None else shared.residual,
        "summary": None if shared is None else shared.summary,
    }
    return {name: part for name, part in parts.items() if part is not None}


class OnnxDynPT(Refinement):
    """Called like the parts of `DynPT`, one window at a time.

    Attributes:
        description: what was exported.
    """

    def __init__(self, description: OnnxDescription, folder: Path, providers: Sequence[str]):
        """Use `from_folder`."""
        self.description = description
        self.config = DynPTConfig.from_json(description.config)
        self._sessions = {
            part: Session(folder / f"{part}.onnx", providers) for part in (ENCODER, UPDATER)
        }
        self.encoder = self._encode
        self.updater = self._update

    @property
    def device(self) -> torch.device:
        """Where results are."""
        return self._sessions[ENCODER].device

    @classmethod
    def from_folder(cls, path: Path | str, providers: Sequence[str] = (CPU,)) -> OnnxDynPT:
        """Load an exported network.

        Raises:
            ModelError: the folder is incomplete or damaged, or a provider does not load.
            MissingPrerequisiteError: ONNX Runtime is not installed.
        """
        description = read_description(Path(path))
        check_providers(providers)
        return cls(description, Path(path), providers)

    def _encode(
        self, images: Tensor, tokens: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        exported = (self.description.height, self.description.width)
        if tuple(images.shape[-2:]) != exported or tokens is not None:
            raise ModelError(
                f"images are {images.shape[-2]} x {images.shape[-1]}, the network was exported "
                f"for {exported[0]} x {exported[1]} without tokens; resize them, or export again"
            )
        outputs = self._sessions[ENCODER](images)
        context = outputs.pop() if self.config.has_context else None
        return outputs, context

    def _update(
        self,
        maps: FeatureMaps,
        support: QuerySupport,
        queries: Tensor,
        state: TrackState,
        shared: SharedMotion | None,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num_frames, num_points = maps.num_frames, queries.shape[1]
        missing = self.description.num_frames - num_frames
        if len(queries) != 1 or missing < 0 or num_points != self.description.num_points:
            raise ModelError(
                f"got {len(queries)} windows of {num_frames} frames with {num_points} rows for "
                f"tracks; the network was exported for one of at most "
                f"{self.description.num_frames} with {self.description.num_points}: export again "
                "with --frames and --points"
            )
        inputs = updater_inputs(maps, support, queries, state, shared, valid)
        for name, axis in _frame_axes(inputs).items():
            # A short window goes on with its newest frame.
            inputs[name] = _lengthened(inputs[name], axis, missing)
        step, logit_steps = self._sessions[UPDATER](*inputs.values())
        return step[:, :num_frames], logit_steps[:, :num_frames]


def _frame_axes(inputs: dict[str, Tensor]) -> dict[str, int]:
    """Axis that counts frames of those inputs that have one."""
    fixed = ("queries", "valid", "query_context")
    names = [name for name in inputs if name not in fixed and not name.startswith("patch")]
    return {name: 2 if name == "residual" else 1 for name in names}


def _lengthened(part: Tensor, axis: int, missing: int) -> Tensor:
    if missing == 0:
        return part
    rows = part.movedim(axis, -1)
    shape = rows.shape
    padded = functional.pad(rows.reshape(1, -1, shape[-1]), (0, missing), mode="replicate")
    return torch.unflatten(padded[0], 0, shape[:-1]).movedim(-1, axis)

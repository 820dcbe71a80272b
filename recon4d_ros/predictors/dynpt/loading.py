"""Makes the tracker that a configuration names."""

from __future__ import annotations

import dataclasses

import torch

from recon4d_ros.config import Config, TrackerConfig
from recon4d_ros.errors import ConfigError, ModelError
from recon4d_ros.installation import package_file
from recon4d_ros.networks.dynpt import checkpoint
from recon4d_ros.networks.dynpt.onnx_runtime import OnnxDynPT
from recon4d_ros.networks.dynpt.refinement import Refinement
from recon4d_ros.networks.dynpt.sizes import PATCH
from recon4d_ros.predictors.devices import choose_device, onnx_providers
from recon4d_ros.predictors.dynpt.tracker import DynPTTracker

# The tracker that this project trained; models/ holds its page.
_SHIPPED = "models/dynpt_lean.safetensors"


def load_tracker(config: Config) -> DynPTTracker:
    """The tracker with its network on its device.

    Raises:
        ConfigError: the device does not exist, or a parameter does not fit.
        MissingPrerequisiteError: no model is named and that of this package is not installed.
        ModelError: its file cannot be used, or it needs the tokens of another network.
    """
    settings = config.tracker
    if not settings.model and settings.runtime == "torch":
        settings = dataclasses.replace(settings, model=str(package_file(_SHIPPED)))
    if settings.long_side % PATCH:
        raise ConfigError(
            f"tracker.long_side={settings.long_side} is no multiple of {PATCH}; set it to "
            f"{PATCH * max(2, round(settings.long_side / PATCH))}"
        )
    device = choose_device(settings.device, "tracker.device")
    load = _on_torch if settings.runtime == "torch" else _on_onnx_runtime
    return DynPTTracker(load(settings, device), settings)


def _on_torch(settings: TrackerConfig, device: torch.device) -> Refinement:
    network = checkpoint.load(settings.model, device).requires_grad_(False)
    if network.config.needs_tokens:
        raise ModelError(
            f"{settings.model} needs the tokens of a 3D-aware encoder, which no predictor hands "
            "to a tracker; give a network whose context is made of convolutions"
        )
    return network


def _on_onnx_runtime(settings: TrackerConfig, device: torch.device) -> Refinement:
    if not settings.model:
        raise ModelError(
            f"tracker.model is empty; with tracker.runtime={settings.runtime} set it to the "
            "folder of an export (recon4d export), or set tracker.runtime=torch"
        )
    providers = onnx_providers(settings.runtime, device, "tracker.runtime")
    network = OnnxDynPT.from_folder(settings.model, providers)
    if network.description.num_points != settings.max_points:
        raise ConfigError(
            f"tracker.max_points={settings.max_points} but {settings.model} was exported for "
            f"{network.description.num_points}; set it to that, or export again with --points"
        )
    return network

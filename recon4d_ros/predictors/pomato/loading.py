"""Makes the predictor that a configuration names: device, network, precision, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from recon4d_ros.config import Config, PomatoConfig
from recon4d_ros.errors import ConfigError, ModelError
from recon4d_ros.networks.pomato import PomatoNet
from recon4d_ros.networks.pomato.onnx_runtime import OnnxPomato
from recon4d_ros.predictors.devices import choose_device, onnx_providers
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.image_size import network_size
from recon4d_ros.predictors.pomato.memory import Footprint
from recon4d_ros.predictors.pomato.network import PointmapNetwork
from recon4d_ros.predictors.pomato.pair_network import PomatoPairs
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor, check_fits
from recon4d_ros.predictors.pomato.recorded import RecordedNetwork

# Refuses a model by its number of frames, None of a pairwise one.
_Check = Callable[[Config, int | None], None]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Proportions of the image that a network is warmed up with, before the first one has come.
_USUAL_IMAGE = (3, 4)


def load_predictor(config: Config) -> PomatoPredictor:
    """The predictor, warmed up, so that whatever is wrong shows before the first image.

    Raises:
        ConfigError: the device does not exist, or the parameters do not fit together.
        ModelError: there is no model, or its file cannot be used.
        PredictorError: the device has too little memory.
    """
    predictor = PomatoPredictor(config, _engine(config, check_fits))
    if config.pomato.runtime == "torch":
        # An export has one size, which only the first image can be compared with.
        predictor.warm_up(_USUAL_IMAGE)
    return predictor


def load_pairs(config: Config, num_kept: int) -> PomatoPairs:
    """The pairwise network by itself, for any two frames, warmed up.

    Args:
        config: names the model.
        num_kept: frames whose features are kept.

    Raises:
        ConfigError, ModelError, PredictorError: as `load_predictor`, or the model is temporal.
    """
    pairs = PomatoPairs(_engine(config, _check_pairwise), config.pomato.long_side, num_kept)
    if config.pomato.runtime == "torch":
        pairs.warm_up(_USUAL_IMAGE)
    return pairs


def _check_pairwise(config: Config, length: int | None) -> None:
    if length is not None:
        raise ConfigError(
            f"{config.pomato.model} is a temporal model of {length} frames, but whole clips are "
            "aligned from pairs; set pomato.model to a pairwise checkpoint, or stream instead"
        )
    check_fits(config, None)


def _engine(config: Config, check: _Check) -> Engine:
    """The network that the configuration names on its device; `check` says whether it will do."""
    device = choose_device(config.pomato.device, "pomato.device")
    dtype = _dtype(config.pomato, device)
    if not config.pomato.model:
        raise ModelError(
            "pomato.model is empty; set it to a checkpoint (.pth, .safetensors) or to the folder "
            "of an export. Nothing is downloaded here: see `recon4d models`"
        )
    if config.pomato.cuda_graphs and (device.type, config.pomato.runtime) != ("cuda", "torch"):
        raise ConfigError(
            f"pomato.cuda_graphs needs pomato.runtime=torch on a CUDA device; it is "
            f"{config.pomato.runtime} on {device}: set pomato.cuda_graphs=false"
        )
    if config.pomato.runtime != "torch":
        return _onnx_engine(config, device, check)
    return _torch_engine(config, device, dtype, check)


def _dtype(config: PomatoConfig, device: torch.device) -> torch.dtype:
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "pomato.precision=fp16 needs a CUDA device; set it to fp32, or to bf16 where the "
            "processor has that"
        )
    return _DTYPES[config.precision]


def _torch_engine(
    config: Config, device: torch.device, dtype: torch.dtype, check: _Check
) -> Engine:
    settings = config.pomato
    net = PomatoNet.from_file(settings.model).requires_grad_(False)
    check(config, net.temporal_length)
    batch = _footprint(config, net, dtype).batch(settings.memory_mib, settings.batch)
    if device.type == "cuda":
        _bound_cuda(device, settings.memory_mib)
    if settings.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.to(device, dtype)
    network: PointmapNetwork = compiled(net) if settings.compile else net
    if settings.cuda_graphs:
        network = RecordedNetwork(network)
    return Engine(network, device, dtype, batch)


def _footprint(config: Config, net: PomatoNet, dtype: torch.dtype) -> Footprint:
    size = network_size(_USUAL_IMAGE, config.pomato.long_side)
    num_weights = sum(weight.numel() for weight in net.parameters())
    return Footprint.of(net.sizes, num_weights, dtype.itemsize, size, config.window.size + 1)


def _bound_cuda(device: torch.device, limit_mib: int) -> None:
    """Let torch itself refuse more than the bound, and compute in float32 where it says so.

    A stream repeats its shapes, so that it pays to try which convolution is the fastest.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    # Unlike other calls, this one does not take "cuda" for the device in use.
    number = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mib * 2**20 / total), number)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def compiled(net: PomatoNet) -> PomatoNet:
    """The network, whose parts are compiled when they are first called."""
    heads = (net.downstream_head1, net.downstream_head2, net.downstream_head3)
    for part in (*net.enc_blocks, *net.dec_blocks, *net.dec_blocks2, *heads):
        part.compile()
    return net


def _onnx_engine(config: Config, device: torch.device, check: _Check) -> Engine:
    settings = config.pomato
    if settings.precision != "fp32":
        raise ConfigError(
            f"pomato.precision={settings.precision} has no effect on runtime {settings.runtime}: "
            "an export has its own; set it to fp32 and choose the precision of `recon4d export`"
        )
    providers = onnx_providers(settings.runtime, device, "pomato.runtime")
    network = OnnxPomato.from_folder(Path(settings.model), providers)
    check(config, network.temporal_length)
    return Engine(network, device, torch.float32, settings.batch)

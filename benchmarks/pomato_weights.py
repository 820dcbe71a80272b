"""Weights and images of POMATO by rule: full-size networks without a file, the same everywhere."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.networks.pomato import PomatoNet, PomatoSizes

_NORMS = {"norm", "norm1", "norm2", "norm3", "norm_y", "enc_norm", "dec_norm", "norms", "ff_norm"}
_PEAKED = ("attn.qkv", "projq", "projk", "to_q", "to_k")
_TRANSPOSED = ("act_postprocess.0.1.weight", "act_postprocess.1.1.weight")


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weight of a name: seeded by it, with norms near one and attention that is peaked."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(math.prod(shape)).reshape(shape)
    *parents, kind = name.split(".")
    if len(shape) == 1 and kind == "weight" and _NORMS & set(parents[-2:]):
        values = 1.0 + 0.2 * values
    elif kind == "bias":
        values = 0.1 * values
    else:
        fan_in = shape[0] if name.endswith(_TRANSPOSED) else math.prod(shape[1:])
        gain = 1.5 if ".".join(parents).endswith(_PEAKED) else 1.0
        gain = 0.1 if name.endswith("head.4.weight") else gain
        values = gain * values / math.sqrt(fan_in)
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def rule_net(sizes: PomatoSizes) -> PomatoNet:
    """Network of any size with weights by rule; the tables of positions are kept."""
    with torch.device("meta"):
        net = PomatoNet(sizes)
    weights = {name: rule_tensor(name, tuple(held.shape)) for name, held in net.named_parameters()}
    for name, held in net.state_dict().items():
        if name not in weights:
            weights[name] = position_table(*held.shape[1:])
    net.load_state_dict(weights, assign=True)
    return net.eval()


def position_table(length: int, width: int) -> Tensor:
    """Sine and cosine of time by turns, written out."""
    table = np.zeros((1, length, width))
    for t in range(length):
        for m in range(0, width, 2):
            angle = t * 10000.0 ** (-m / width)
            table[0, t, m], table[0, t, m + 1] = math.sin(angle), math.cos(angle)
    return torch.from_numpy(table.astype(np.float32))


def rule_images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images in [-1, 1] of the given shape (..., H, W): blocks of 16 pixels and noise."""
    random = np.random.RandomState(seed)
    height, width = shape[-2:]
    blocks = (*shape[:-2], -(-height // 16), -(-width // 16))
    low = random.uniform(-1, 1, blocks).repeat(16, axis=-2).repeat(16, axis=-1)
    image = 0.7 * low[..., :height, :width] + 0.3 * random.uniform(-1, 1, shape)
    return torch.from_numpy(image.astype(np.float16).astype(np.float32))


def relative_l2(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Distance of two tensors in units of the second's length."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())

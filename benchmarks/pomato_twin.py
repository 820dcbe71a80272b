"""POMATO as its authors run it: the slow twin of `recon4d_ros.networks.pomato`, same mathematics.

Both images of every directed pair are encoded; all three heads are evaluated for every frame, all
frames at once; attention holds its whole matrix; the 1x1 convolution of a fusion comes after its
upsampling; every window starts from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor
from torch.nn import functional

from recon4d_ros.networks.pomato import PairOutput, PomatoNet, WindowMode, WindowOutput
from recon4d_ros.networks.pomato.dpt_head import Fusion


def pair(net: PomatoNet, image1: Tensor, image2: Tensor) -> PairOutput:
    """All pointmaps of one directed pair of images (1, 3, H, W)."""
    with _slow_ways():
        return net.pair(image1, image2)


def window(net: PomatoNet, clip: Tensor, mode: WindowMode) -> WindowOutput:
    """All pointmaps of one window (1, T, 3, H, W)."""
    with _slow_ways():
        return net.window(clip, mode, chunk=clip.shape[1])


@contextmanager
def _slow_ways() -> Iterator[None]:
    attention = mock.patch.object(functional, "scaled_dot_product_attention", _attention)
    with attention, mock.patch.object(Fusion, "forward", _fuse):
        yield


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def _fuse(fusion: Fusion, path: Tensor, level: Tensor | None = None) -> Tensor:
    if level is not None:
        path = path + fusion.resConfUnit1(level)
    path = fusion.resConfUnit2(path)
    path = functional.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True)
    out: Tensor = fusion.out_conv(path)
    return out

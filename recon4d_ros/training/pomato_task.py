"""Training of the pointmap network: pairs first, then windows with encoder and decoder frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from recon4d_ros.datatypes.clips import Clips
from recon4d_ros.errors import ConfigError
from recon4d_ros.geometry import camera
from recon4d_ros.networks.images import network_images
from recon4d_ros.networks.pomato import (
    PairOutput,
    PomatoNet,
    PomatoSizes,
    WindowMode,
    save_safetensors,
    window_pairs,
)
from recon4d_ros.training.config import PointmapNetConfig, PomatoTraining
from recon4d_ros.training.masked import masked_mean
from recon4d_ros.training.pointmap_losses import pointmap_losses
from recon4d_ros.training.pointmap_targets import PointmapTargets, pointmap_targets
from recon4d_ros.training.task import autocast

Views = tuple[Sequence[int], Sequence[int]]

_MLP_RATIO = 4


class PomatoTask:
    """Every frame of a clip is encoded once and meets another one, or the window's keyframe."""

    kind: ClassVar[str] = "pomato"
    LIMITS: ClassVar[str] = (
        "Trained on rendered scenes alone, at the size and length above: real images and other "
        "sizes are another domain. Points are in an unknown unit per call."
    )

    def __init__(self, config: PomatoTraining, device: torch.device) -> None:
        """A network with the seed's weights, or with those of the pairwise stage.

        Raises:
            ConfigError: the sizes do not fit those of the pairwise stage.
            ModelError: its file cannot be used.
        """
        self._config, self._device = config, device
        torch.manual_seed(config.run.seed)
        is_temporal = config.network.stage == "temporal"
        length = config.clips.num_frames if is_temporal else None
        net = PomatoNet(dataclasses.replace(sizes_of(config.network), temporal_length=length))
        if is_temporal:
            _start_from_pairwise(net, config.network)
        self.network: nn.Module = net.to(device)

    def losses(self, clips: Clips) -> Mapping[str, Tensor]:
        """See `Task.losses`."""
        num_frames, weights = clips.rgb.shape[1], self._config.loss
        views = self._drawn_views(num_frames)
        said = self._said(_pointmap_net(self.network), clips, views)
        true = pointmap_targets(clips, *views)
        parts = [(1.0, 1)]
        if self._config.network.stage == "temporal":
            parts = [(weights.per_clip, num_frames), (weights.per_frame, 1)]
        total: dict[str, Tensor] = {}
        for weight, group in parts:
            for name, loss in pointmap_losses(said, true, group, weights.alpha).items():
                scaled = weight * (weights.matching if name == "matching" else 1.0) * loss
                total[name] = total[name] + scaled if name in total else scaled
        return total

    def figures(self, network: nn.Module, batches: Iterable[Clips]) -> dict[str, float]:
        """See `Task.figures`; all frames with the last one, as in reconstruction."""
        rows = []
        for clips in batches:
            views = window_pairs("fast_recon", clips.rgb.shape[1])
            with torch.no_grad():
                said = self._said(_pointmap_net(network), clips, views)
            true = pointmap_targets(clips, *views)
            rows.append(torch.stack([depth_error(said, true), matching_error_px(said, true)]))
        depth, matching = torch.stack(rows).mean(dim=0).tolist()
        return {"abs_rel": depth, "matching_error_px": matching}

    def export(self, network: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
        """See `Task.export`; the file says the sizes alone."""
        save_safetensors(_pointmap_net(network), path, torch.float16)

    def _drawn_views(self, num_frames: int) -> Views:
        """Pairs of a clip: of one of the modes of windows, or each frame with one other."""
        if self._config.network.stage == "temporal":
            modes: tuple[WindowMode, ...] = get_args(WindowMode)
            return window_pairs(modes[int(torch.randint(len(modes), ()))], num_frames)
        views = torch.randperm(num_frames)
        return views.tolist(), views.roll(int(torch.randint(num_frames, ()))).tolist()

    def _said(self, net: PomatoNet, clips: Clips, views: Views) -> PairOutput:
        """What the network says of these pairs of every clip, float32."""
        images = network_images(clips.rgb)
        num_clips, num_frames = images.shape[:2]
        starts = torch.arange(num_clips, device=self._device)[:, None] * num_frames
        rows1, rows2 = (
            (starts + torch.tensor(list(side), device=self._device)).flatten() for side in views
        )
        # What is frozen keeps nothing for a gradient.
        has_gradient = torch.is_grad_enabled() and net.temporal_length is None
        with autocast(self._device, self._config.run.precision):
            with torch.set_grad_enabled(has_gradient):
                features = net.encode(images.flatten(0, 1))
                tokens1, tokens2 = net.decode(features[rows1], features[rows2])
            heads = [net.head(1, tokens1), net.head(2, tokens2), net.head(3, tokens2)]
        return PairOutput(*(part.float() for pointmap in heads for part in pointmap))


def sizes_of(network: PointmapNetConfig) -> PomatoSizes:
    """Sizes of the pairwise network; the levels of a head are as in the published one."""
    width = network.head_width
    return PomatoSizes(
        encoder_width=network.encoder_width,
        encoder_depth=network.encoder_depth,
        encoder_heads=network.encoder_heads,
        encoder_hidden=_MLP_RATIO * network.encoder_width,
        decoder_width=network.decoder_width,
        decoder_depth=network.decoder_depth,
        decoder_heads=network.decoder_heads,
        decoder_hidden=_MLP_RATIO * network.decoder_width,
        level_widths=(3 * width // 8, 3 * width // 4, 3 * width // 2, 3 * width),
        feature_width=width,
        head_widths=(width // 2, width // 2),
    )


def _start_from_pairwise(net: PomatoNet, network: PointmapNetConfig) -> None:
    """Take over the pairwise weights, and train the heads alone."""
    if not network.start:
        raise ConfigError(
            "network.stage=temporal starts from pairwise weights; set network.start to the "
            ".safetensors of the pairwise stage"
        )
    pairwise = PomatoNet.from_file(network.start, network.encoder_heads, network.decoder_heads)
    pairwise.require_pairwise()
    if pairwise.sizes != sizes_of(network):
        raise ConfigError(
            f"{network.start} holds a network of {pairwise.sizes}, not of the sizes in network.*; "
            "give those of the pairwise stage's configuration"
        )
    net.load_state_dict(pairwise.state_dict(), strict=False)
    for name, part in net.named_parameters():
        part.requires_grad_(name.startswith("downstream_head"))


def _pointmap_net(network: nn.Module) -> PomatoNet:
    assert isinstance(network, PomatoNet)
    return network


def depth_error(said: PairOutput, true: PointmapTargets) -> Tensor:
    """Mean () of |z - Z| / Z of view 2 in camera 1, after one scale for all pairs (AbsRel)."""
    z, target = said.points_2_in_1[..., 2], true.points_2_in_1[..., 2]
    known = target > 0
    scale = (target[known] / z[known].clamp(min=1e-6)).median()
    return masked_mean((scale * z - target).abs() / target, known)


def matching_error_px(said: PairOutput, true: PointmapTargets) -> Tensor:
    """Mean () distance, px, of where view 2's pixels are found in view 1, where they are seen."""
    size = (true.points_1.shape[1], true.points_1.shape[2])
    K = true.K[:, None, None]
    found, target = (
        camera.project(points, K) for points in (said.matching_2_in_1, true.matching_2_in_1)
    )
    error = torch.linalg.vector_norm(found - target, dim=-1)
    return masked_mean(error, camera.inside(target, size) & error.isfinite())

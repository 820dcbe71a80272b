"""How alike the surroundings of a query and of a track's present position are.

Source: Karaev et al., CoTracker3, arXiv 2410.11831, section 3.1: every point of the query's patch
is compared with every point of the target's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.networks.dynpt.support import QuerySupport, blend, cells, neighbourhood


class CorrelationReader(nn.Module):
    """Reads all levels by one MLP: (B, N, T, levels * width)."""

    def __init__(self, config: DynPTConfig) -> None:
        super().__init__()
        self.radius = config.target_radius
        points = (2 * config.query_radius + 1) ** 2 * (2 * config.target_radius + 1) ** 2
        self.hidden = nn.Linear(points, config.correlation_hidden)
        self.out = nn.Linear(config.correlation_hidden, config.correlation_width)

    def forward(self, maps: FeatureMaps, support: QuerySupport, uv: Tensor) -> Tensor:
        """Correlate around positions (B, N, T, 2), px."""
        read = [
            self._read(correlate(level, patch, cells(uv, number), self.radius))
            for number, (level, patch) in enumerate(zip(maps.levels, support.patches, strict=True))
        ]
        return torch.cat(read, dim=-1)

    def _read(self, correlation: Tensor) -> Tensor:
        out: Tensor = self.out(functional.relu(self.hidden(correlation)))
        return out


def correlate(level: Tensor, patch: Tensor, position: Tensor, radius: int) -> Tensor:
    """Dot products of patches with the surroundings of positions in every frame.

    Args:
        level: (B, T, h, w, C).
        patch: (B, N, P, C).
        position: (B, N, T, 2) cells.
        radius: of the surroundings, cells.

    Returns:
        (B, N, T, P * (2 r + 1)^2).
    """
    num_frames = level.shape[1]
    frame = torch.arange(num_frames, device=level.device).expand(position.shape[:3])
    values, fraction = neighbourhood(level, frame.flatten(1), position.flatten(1, 2), radius)
    # One product for all frames of a track: (P, C) times (C, T * cells).
    surroundings = torch.unflatten(values, 1, (-1, num_frames)).flatten(2, 3)
    products = torch.unflatten(patch @ surroundings.mT, -1, (num_frames, -1)).movedim(2, 3)
    correlation = blend(products, torch.unflatten(fraction, 1, (-1, num_frames)))
    return correlation.flatten(-2)

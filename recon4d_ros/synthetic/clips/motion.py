"""Where the camera and the solids are at given times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import se3
from recon4d_ros.synthetic.clips.world import CameraPath, Kind, Solids, World


@dataclass(frozen=True, eq=False)
class Views:
    """B scenes at T times each.

    Attributes:
        T_world_cam: (B, T, 4, 4) float64.
        T_world_solid: (B, T, S, 4, 4) float64, not scaled.
        phase: (B, T, S) float64 of the waves of bent quads.
    """

    T_world_cam: Tensor
    T_world_solid: Tensor
    phase: Tensor

    @property
    def T_cam_solid(self) -> Tensor:
        """(B, T, S, 4, 4) float64."""
        return se3.inverse(self.T_world_cam)[:, :, None] @ self.T_world_solid

    @property
    def T_solid_cam(self) -> Tensor:
        """(B, T, S, 4, 4) float64."""
        return se3.inverse(self.T_cam_solid)


def views(world: World, times: Tensor) -> Views:
    """The scenes at times (B, T) float64, frames."""
    solids = world.solids
    phase = solids.phase[:, None] + _progress(solids, times) * solids.phase_rate[:, None]
    T_world_solid = solid_poses(solids, world.camera, times)
    return Views(camera_poses(world.camera, times), T_world_solid, phase)


def solid_poses(solids: Solids, camera: CameraPath, times: Tensor) -> Tensor:
    """T_world_solid (B, K, S, 4, 4) float64 at times (B, K)."""
    own = _own_poses(solids, _progress(solids, times))
    T_cam_solid = se3.inverse(camera_poses(camera, solids.reference)) @ solids.T_world_reference
    following = camera_poses(camera, times)[:, :, None] @ T_cam_solid[:, None]
    return torch.where(solids.is_following[:, None, :, None, None], following, own)


def camera_poses(path: CameraPath, times: Tensor) -> Tensor:
    """T_world_cam (B, K, 4, 4) float64 at times (B, K)."""
    t = times.unsqueeze(-1)
    waves = path.sway_rate[:, None] * t.unsqueeze(-1) + path.sway_phase[:, None]
    sway = (path.sway[:, None] * waves.sin()).sum(dim=-1)
    angle = path.orbit_rate[:, None] * times
    radius = path.orbit_radius[:, None]
    zero = torch.zeros_like(angle)
    circle = torch.stack([angle.sin() * radius, zero, (1.0 - angle.cos()) * radius], dim=-1)
    inward = se3.exp_so3(torch.stack([zero, -angle, zero], dim=-1))
    rotation = inward @ se3.exp_so3(path.turn[:, None] * t + sway[..., 3:])
    translation = circle + path.velocity[:, None] * t + sway[..., :3]
    return path.T_world_start[:, None] @ se3.assemble(rotation, translation)


def deform(kind: Tensor, wave: Tensor, phase: Tensor, unit: Tensor) -> Tensor:
    """Points (..., 3) of the unit frame at the time of `phase` (...); only bent quads change.

    The material coordinates of a bent quad are x and y.
    """
    z = torch.where(kind == Kind.BENT_QUAD, (wave * unit[..., 0] + phase).sin(), unit[..., 2])
    return torch.cat([unit[..., :2], z.unsqueeze(-1)], dim=-1)


def _progress(solids: Solids, times: Tensor) -> Tensor:
    """Frames (B, T, S) that a solid has been moving for since its reference time."""
    begin, end = solids.begin[:, None], solids.end[:, None]
    held = times.unsqueeze(-1).maximum(begin).minimum(end)
    return held - solids.reference[:, None].maximum(begin).minimum(end)


def _own_poses(solids: Solids, progress: Tensor) -> Tensor:
    along = progress.unsqueeze(-1)
    turned = se3.exp_so3(solids.turn[:, None] * along)
    arm = solids.T_world_reference[..., :3, 3] - solids.pivot
    swung = (turned @ arm[:, None].unsqueeze(-1)).squeeze(-1)
    centre = solids.pivot[:, None] + swung + solids.velocity[:, None] * along
    return se3.assemble(turned @ solids.T_world_reference[:, None, :, :3, :3], centre)

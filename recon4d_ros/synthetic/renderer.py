"""Pictures of a scene with everything that is true about them.

Depth, poses, masks and instance ids are exact: they belong to the ray through each pixel's centre.
Colours at the outlines of solids are averaged over four rays, so that outlines move by fractions
of a pixel as a camera's do; sensor noise is added last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.datatypes import Frame, Intrinsics
from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic import raycast, textures
from recon4d_ros.synthetic.raycast import Hits
from recon4d_ros.synthetic.scene import Scene, Snapshot, corners, half_sizes, snapshot

# A solid moves when a corner of it is displaced by more between the neighbours of a frame.
MOVING_M = 1e-4

_AMBIENT = 0.55
_DIFFUSE = 0.6
_SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


@dataclass(frozen=True, eq=False)
class RenderedFrame:
    """One picture and the truth about it.

    Attributes:
        index, stamp_ns: of the frame.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 z-depth, metres.
        T_world_cam: (4, 4) float64.
        dynamic_mask: (H, W) bool, the surface moves in the world between index - 1 and index + 1.
        instances: (H, W) int16, position of the solid in `scene.solids`; 0 is the room.
        intrinsics: of the image.
    """

    index: int
    stamp_ns: int
    rgb: Tensor
    depth: Tensor
    T_world_cam: Tensor
    dynamic_mask: Tensor
    instances: Tensor
    intrinsics: Intrinsics

    @property
    def frame(self) -> Frame:
        """The picture alone, as a camera would deliver it."""
        return Frame(self.index, self.stamp_ns, self.rgb, self.intrinsics)


def render(scene: Scene, index: int) -> RenderedFrame:
    """Render one frame; equal scenes and indices give equal results."""
    view = snapshot(scene, index)
    size = scene.intrinsics.size
    uv = camera.pixel_grid(size, torch.float64).reshape(-1, 2)
    hits = raycast.cast(view, uv)
    instances = hits.solid.reshape(size)
    colours = _soften_outlines(view, uv, instances, shade(view, hits))
    return RenderedFrame(
        index=index,
        stamp_ns=scene.stamp_ns(index),
        rgb=_expose(colours.reshape(*size, 3), scene, index),
        depth=hits.depth.reshape(size).float(),
        T_world_cam=view.T_world_cam,
        dynamic_mask=moving_solids(scene, index)[instances],
        instances=instances.to(torch.int16),
        intrinsics=scene.intrinsics,
    )


def moving_solids(scene: Scene, index: int) -> Tensor:
    """(S,) bool: the solid moves in the world between the frames before and after `index`."""
    before, after = snapshot(scene, index - 1), snapshot(scene, index + 1)
    points = corners(scene)
    displacement = se3.transform(after.T_world_solid[:, None], points) - se3.transform(
        before.T_world_solid[:, None], points
    )
    moving: Tensor = torch.linalg.vector_norm(displacement, dim=-1).amax(dim=-1) > MOVING_M
    return moving


def shade(view: Snapshot, hits: Hits) -> Tensor:
    """Colours (P, 3) float32 in [0, 1] of hit points: texture times light of one lamp."""
    facing, slant = _light_and_slant(view, hits)
    width = (hits.depth / view.scene.intrinsics.fx / slant.clamp(min=0.1).sqrt()).float()
    position = _face_coordinates(view.scene, hits)
    colours = torch.empty(len(hits.depth), 3)
    for number in torch.unique(hits.solid).tolist():
        rows = (hits.solid == number).nonzero().squeeze(-1)
        texture = view.scene.solids[number].texture
        tiles, footprint = position[rows] / texture.tile_m, width[rows] / texture.tile_m
        colours[rows] = textures.sample(textures.bake(texture), tiles, footprint)
    return colours * (_AMBIENT + _DIFFUSE * facing.float()).unsqueeze(-1)


def _light_and_slant(view: Snapshot, hits: Hits) -> tuple[Tensor, Tensor]:
    """Cosines (P,) between the normal and the directions to the lamp and to the camera."""
    scene = view.scene
    lamp = torch.tensor(scene.light, dtype=torch.float64)
    # Lamp and camera in the solids' frames: twelve transforms instead of one per pixel.
    lamps = se3.transform(se3.inverse(view.T_world_solid), lamp.expand(len(scene.solids), 3))
    cameras = view.T_solid_cam[:, :3, 3]
    normal = raycast.normals(scene, hits)
    return (
        _cosine(normal, lamps[hits.solid] - hits.local).clamp(min=0.0),
        _cosine(normal, cameras[hits.solid] - hits.local),
    )


def _cosine(normal: Tensor, direction: Tensor) -> Tensor:
    cosine: Tensor = (normal * direction).sum(dim=-1) / torch.linalg.vector_norm(direction, dim=-1)
    return cosine


def _face_coordinates(scene: Scene, hits: Hits) -> Tensor:
    """Metric coordinates (P, 2) float32 on the face of the box around the solid.

    A point of an ellipsoid is first pushed outward onto that box. Each face shows another part of
    the texture.
    """
    half = half_sizes(scene)[hits.solid]
    unit = hits.local / half
    axis = unit.abs().argmax(dim=-1, keepdim=True)
    top = unit.gather(-1, axis)
    on_box = unit / top.abs() * half
    others = torch.cat([(axis + 1) % 3, (axis + 2) % 3], dim=-1)
    face = axis + 3 * (top > 0)
    return (on_box.gather(-1, others) + face * torch.tensor([0.37, 0.61])).float()


def _soften_outlines(view: Snapshot, uv: Tensor, instances: Tensor, colours: Tensor) -> Tensor:
    """Average four rays in the pixels next to another solid."""
    across = instances[:, 1:] != instances[:, :-1]
    along = instances[1:] != instances[:-1]
    outline = torch.zeros_like(instances, dtype=torch.bool)
    outline[:, 1:] |= across
    outline[:, :-1] |= across
    outline[1:] |= along
    outline[:-1] |= along
    rows = outline.reshape(-1).nonzero().squeeze(-1)
    offsets = torch.tensor(_SUBPIXELS, dtype=uv.dtype)
    rays = (uv[rows, None] + offsets).reshape(-1, 2)
    fine = shade(view, raycast.cast(view, rays)).reshape(-1, len(offsets), 3)
    colours[rows] = fine.mean(dim=1)
    return colours


def _expose(colours: Tensor, scene: Scene, index: int) -> Tensor:
    """Sensor noise, saturation and rounding to uint8."""
    levels = colours * 255.0
    if scene.noise_std > 0:
        generator = torch.Generator().manual_seed((scene.seed << 20) + index)
        levels = levels + scene.noise_std * torch.randn(levels.shape, generator=generator)
    return levels.round().clamp(0.0, 255.0).to(torch.uint8)

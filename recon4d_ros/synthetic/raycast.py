"""First intersections of viewing rays with the solids of a snapshot, exact in float64.

Rays have direction z = 1 in the camera, so the ray parameter is the z-depth. A solid is hit in
its own frame scaled to half size 1, where it is the unit cube or the unit sphere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic.scene import Scene, Shape, Snapshot, corners, half_sizes

NEAR_M = 0.02


@dataclass(frozen=True, eq=False)
class Hits:
    """What P rays meet first.

    Attributes:
        depth: (P,) float64 z-depth, metres.
        solid: (P,) int64, position in `scene.solids`.
        local: (P, 3) float64, the material point in the frame of its solid.
    """

    depth: Tensor
    solid: Tensor
    local: Tensor


def cast(view: Snapshot, uv: Tensor) -> Hits:
    """Intersect the rays of pixels (P, 2), which need not be whole.

    The room is closed, so every ray meets something if the camera is inside.
    """
    uv = uv.to(torch.float64)
    rays = camera.directions(uv, view.scene.intrinsics)
    boxes = _image_boxes(view)
    depth = torch.full((len(uv),), torch.inf, dtype=torch.float64)
    solid = torch.zeros(len(uv), dtype=torch.int64)
    for number in range(len(view.scene.solids)):
        rows = _inside_box(uv, boxes[number])
        if rows is None:
            solid_depth = _intersect(view, number, rays)
            depth = torch.minimum(depth, solid_depth)
            solid = torch.where(solid_depth <= depth, number, solid)
        elif len(rows):
            _merge(depth, solid, rows, _intersect(view, number, rays[rows]), number)
    return Hits(depth, solid, _material_points(view, rays, depth, solid))


def normals(scene: Scene, hits: Hits) -> Tensor:
    """Outward normals (P, 3) float64 in the solids' own frames; a room's point inward."""
    half = half_sizes(scene)[hits.solid]
    unit = hits.local / half
    axis = unit.abs().argmax(dim=-1, keepdim=True)
    flat = torch.zeros_like(unit).scatter(-1, axis, unit.gather(-1, axis).sign())
    bent = unit / half
    bent = bent / torch.linalg.vector_norm(bent, dim=-1, keepdim=True)
    kinds = [solid.shape for solid in scene.solids]
    sign = torch.tensor([-1.0 if kind is Shape.ROOM else 1.0 for kind in kinds]).double()
    is_bent = torch.tensor([kind is Shape.ELLIPSOID for kind in kinds])
    chosen: Tensor = torch.where(is_bent[hits.solid].unsqueeze(-1), bent, flat)
    return chosen * sign[hits.solid].unsqueeze(-1)


def _image_boxes(view: Snapshot) -> Tensor:
    """Pixel bounds (S, 4) left, top, right, bottom; infinite for a solid around the camera."""
    points = se3.transform(view.T_cam_solid[:, None], corners(view.scene))
    uv = camera.project(points, view.scene.intrinsics)
    bounds = torch.cat([uv.amin(dim=1), uv.amax(dim=1)], dim=-1)
    everything = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf]).double()
    behind = (points[..., 2] < NEAR_M).all(dim=1, keepdim=True)
    near = (points[..., 2] < NEAR_M).any(dim=1, keepdim=True)
    return torch.where(behind, -everything, torch.where(near, everything, bounds))


def _inside_box(uv: Tensor, box: Tensor) -> Tensor | None:
    """Rows of uv within the bounds, or None for all of them."""
    if bool(torch.isinf(box[0]) & (box[0] < 0)):
        return None
    x, y = uv.unbind(-1)
    left, top, right, bottom = box.tolist()
    within: Tensor = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    return within.nonzero().squeeze(-1)


def _merge(depth: Tensor, solid: Tensor, rows: Tensor, found: Tensor, number: int) -> None:
    """Write the nearer of the known and the found depths, in place."""
    nearer = found < depth[rows]
    depth[rows[nearer]] = found[nearer]
    solid[rows[nearer]] = number


def _intersect(view: Snapshot, number: int, rays: Tensor) -> Tensor:
    """z-depth (P,) at which rays meet one solid, infinite where they do not."""
    half = half_sizes(view.scene)[number]
    T = view.T_solid_cam[number]
    origin = T[:3, 3] / half
    direction = rays @ (T[:3, :3] / half[:, None]).mT
    shape = view.scene.solids[number].shape
    if shape is Shape.ELLIPSOID:
        return _hit_sphere(origin, direction)
    enter, leave = _cross_cube(origin, direction)
    if shape is Shape.ROOM:
        return leave
    hit = (enter <= leave) & (enter > NEAR_M)
    return torch.where(hit, enter, torch.inf)


def _cross_cube(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters (P,) of entry into and exit from the unit cube (slab method)."""
    inverse = 1.0 / direction
    middle = -origin * inverse
    reach = inverse.abs()
    # A ray parallel to a face and exactly on it gives 0/0, which counts as a miss.
    return (middle - reach).amax(dim=-1), (middle + reach).amin(dim=-1)


def _hit_sphere(origin: Tensor, direction: Tensor) -> Tensor:
    """Ray parameter (P,) of the nearer point of the unit sphere, infinite for a miss."""
    a = (direction * direction).sum(dim=-1)
    b = direction @ origin
    discriminant = b * b - a * ((origin * origin).sum() - 1.0)
    near = (-b - discriminant.clamp(min=0.0).sqrt()) / a
    return torch.where((discriminant > 0) & (near > NEAR_M), near, torch.inf)


def _material_points(view: Snapshot, rays: Tensor, depth: Tensor, solid: Tensor) -> Tensor:
    local = torch.empty_like(rays)
    T = view.T_solid_cam
    for number in torch.unique(solid).tolist():
        rows = (solid == number).nonzero().squeeze(-1)
        points = rays[rows] * depth[rows].unsqueeze(-1)
        local[rows] = se3.transform(T[number], points)
    return local

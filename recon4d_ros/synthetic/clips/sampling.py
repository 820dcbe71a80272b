"""Draw scenes: a furnished room, a camera in it, and things of which some move.

What moves and what stands is drawn from one distribution of shape, size, place and surface, and
placed where the camera sees it at a random time of the clip, so that no single frame tells which
is which.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import CameraMotion
from recon4d_ros.geometry import camera, se3
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.motion import camera_poses, solid_poses
from recon4d_ros.synthetic.clips.object_motion import draw_motion
from recon4d_ros.synthetic.clips.settings import ClipSettings
from recon4d_ros.synthetic.clips.surfaces import draw_surfaces
from recon4d_ros.synthetic.clips.world import CameraPath, Kind, Solids, World

CAMERA_KINDS = (
    CameraMotion.STANDING,
    CameraMotion.ROTATION,
    CameraMotion.FORWARD,
    CameraMotion.LATERAL,
    CameraMotion.ORBIT,
    CameraMotion.HANDHELD,
)

_MAX_TURN_RAD = 0.6
_NEAREST, _FARTHEST = 0.6, 2.0  # of solids, share of the usual depth
# Places of solids around the middle of the image, share of its half: some lie outside.
_SPREAD = 1.2
# Standing solids beyond the fewest are left out where all would cover more of the picture.
_STATIC_AREA = 0.3
# Least gap between the camera and a solid, share of the solid's size.
_CLEARANCE = 0.25


def draw_world(settings: ClipSettings, dice: Dice) -> World:
    """Scenes of all clips of the dice."""
    K = _draw_intrinsics(settings, dice)
    depth = dice.log_uniform(3.0, 8.0)
    is_still = dice.chance(settings.still_share)
    camera_kind, path = _draw_camera(settings, dice, depth, is_still)
    solids, standing = _draw_solids(settings, dice, K, depth, path)
    movers = _places(settings, solids.is_present)[0] & ~is_still[:, None]
    solids = draw_motion(settings, dice, solids, path, movers, standing)
    solids = _kept_clear(settings, solids, path)
    distance = _distance(solids, path)
    surfaces = draw_surfaces(settings, dice, solids, distance)
    return World(K, camera_kind, path, solids, surfaces)


def _draw_intrinsics(settings: ClipSettings, dice: Dice) -> Tensor:
    height, width = settings.size
    focal = max(height, width) * dice.uniform(0.7, 1.5)
    K = torch.zeros((len(focal), 3, 3), dtype=torch.float64, device=focal.device)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = (width - 1) / 2.0, (height - 1) / 2.0, 1.0
    return K


def _draw_camera(
    settings: ClipSettings, dice: Dice, depth: Tensor, is_still: Tensor
) -> tuple[Tensor, CameraPath]:
    """Position in CAMERA_KINDS (B,) and paths."""
    shares = [getattr(settings.camera, kind.value) for kind in CAMERA_KINDS]
    kind = dice.choice(shares).masked_fill(is_still, CAMERA_KINDS.index(CameraMotion.STANDING))
    chosen = {each: kind == place for place, each in enumerate(CAMERA_KINDS)}
    fastest = settings.max_travel / settings.num_frames
    step = depth * dice.log_uniform(*settings.camera_speed).clamp(max=fastest)
    sign = 1.0 - 2.0 * dice.chance(0.5)
    ahead = _axis(2, depth) + 0.15 * dice.direction()
    aside = _axis(0, depth) + dice.uniform(-0.5, 0.5)[:, None] * _axis(1, depth)
    aside = aside + 0.1 * dice.direction()
    way = (
        ahead * chosen[CameraMotion.FORWARD][:, None]
        + aside * (chosen[CameraMotion.LATERAL][:, None])
    )
    way = way + 0.4 * dice.direction() * chosen[CameraMotion.HANDHELD][:, None]
    radius = depth * dice.uniform(0.6, 1.2)
    rate = (step / radius) * chosen[CameraMotion.ORBIT]
    sway, sway_rate, sway_phase = _draw_sway(dice, depth, chosen)
    path = CameraPath(
        T_world_start=_draw_start(dice, depth),
        velocity=(sign * step)[:, None] * way,
        turn=_draw_turn(settings, dice, chosen),
        orbit_rate=sign * rate,
        orbit_radius=radius,
        sway=sway,
        sway_rate=sway_rate,
        sway_phase=sway_phase,
    )
    return kind, path


def _draw_start(dice: Dice, depth: Tensor) -> Tensor:
    """T_world_cam (B, 4, 4) at time 0: somewhere above the origin, looking about level."""
    yaw, pitch = dice.uniform(-math.pi, math.pi), dice.uniform(-0.35, 0.15)
    roll = dice.uniform(-0.06, 0.06)
    zero = torch.zeros_like(yaw)
    # Optical axes of a camera that looks along the world's y: x right, -z down.
    level = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]).to(depth)
    turned = se3.exp_so3(torch.stack([zero, zero, yaw], dim=-1)) @ level
    tilted = se3.exp_so3(torch.stack([pitch, zero, zero], dim=-1))
    rolled = se3.exp_so3(torch.stack([zero, zero, roll], dim=-1))
    return se3.assemble(turned @ tilted @ rolled, torch.zeros_like(turned[..., 0]))


def _draw_turn(settings: ClipSettings, dice: Dice, chosen: dict[CameraMotion, Tensor]) -> Tensor:
    """Rotation vectors (B, 3) per frame; a turning camera mostly pans."""
    fastest = _MAX_TURN_RAD / settings.num_frames
    rate = dice.log_uniform(0.004, 0.04).clamp(max=fastest)
    sign = 1.0 - 2.0 * dice.chance(0.5)
    weights = torch.tensor([0.4, 1.0, 0.3]).to(rate)
    axis = weights * dice.direction() + (sign.unsqueeze(-1) * _axis(1, rate))
    share = 1.0 * chosen[CameraMotion.ROTATION] + 0.3 * chosen[CameraMotion.HANDHELD]
    slow = chosen[CameraMotion.FORWARD] | chosen[CameraMotion.LATERAL]
    return (rate * (share + 0.1 * slow)).unsqueeze(-1) * axis


def _draw_sway(
    dice: Dice, depth: Tensor, chosen: dict[CameraMotion, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitudes, rates and phases (B, 6, 3): slow, middle and fast waves of a hand."""
    strength = torch.tensor([1.0, 0.3, 0.07]).to(depth)
    periods = torch.tensor([30.0, 12.0, 5.0]).to(depth)
    amplitude = dice.uniform(0.3, 1.0, 6, 3) * strength * dice.log_uniform(0.3, 1.5)[:, None, None]
    carried = 1.0 * chosen[CameraMotion.HANDHELD]
    light = chosen[CameraMotion.FORWARD] | chosen[CameraMotion.LATERAL]
    light = (light | chosen[CameraMotion.ORBIT]) & dice.chance(0.5)
    share = carried + 0.15 * light
    metres = (0.05 * depth * share)[:, None].expand(-1, 3)
    radians = (0.04 * share + 0.01 * chosen[CameraMotion.ROTATION])[:, None].expand(-1, 3)
    sway = amplitude * torch.cat([metres, radians], dim=-1).unsqueeze(-1)
    rate = 2.0 * math.pi / (periods * dice.uniform(0.7, 1.4, 6, 3))
    return sway, rate, dice.uniform(0.0, 2.0 * math.pi, 6, 3)


def _draw_solids(
    settings: ClipSettings, dice: Dice, K: Tensor, depth: Tensor, path: CameraPath
) -> tuple[Solids, Tensor]:
    """Solids that all stand, and which of them (B, S) stand on the floor."""
    places = settings.num_solids
    batch = len(depth)
    floor = -depth * dice.uniform(0.25, 0.8)
    reference = dice.uniform(0.0, settings.num_frames - 1.0, places)
    T_world_cam = camera_poses(path, reference)
    kind = _draw_kinds(settings, dice, places)
    is_present = _draw_presence(settings, dice)
    far, angle = _draw_extents(settings, dice, is_present)
    z = far * depth[:, None]
    half = _draw_half_sizes(settings, dice, K, kind, z * angle)
    uv = dice.uniform(-_SPREAD, _SPREAD, places, 2) * K[:, None, :2, 2] + K[:, None, :2, 2]
    centre = se3.transform(T_world_cam, camera.unproject(uv, z, K[:, None]))
    standing = dice.chance(0.5, places)
    rotation = _draw_rotations(dice, standing, kind, places)
    reach = (rotation[..., 2, :].abs() * half).sum(dim=-1)
    lowest = floor[:, None] + reach
    height = torch.where(standing, lowest, centre[..., 2].maximum(lowest))
    centre = torch.cat([centre[..., :2], height.unsqueeze(-1)], dim=-1)
    T_world_solid = se3.assemble(rotation, centre)
    room_pose, room_half = _draw_room(dice, depth, floor, path)
    T_world_solid[:, 0], half[:, 0], kind[:, 0] = room_pose, room_half, int(Kind.ROOM)
    none = torch.zeros((batch, places), dtype=torch.float64, device=K.device)
    vector = none.unsqueeze(-1).expand(-1, -1, 3)
    solids = Solids(
        kind=kind,
        half_size=half,
        is_present=_thin_out(settings, is_present, angle),
        T_world_reference=T_world_solid,
        reference=reference,
        velocity=vector,
        turn=vector,
        pivot=T_world_solid[..., :3, 3],
        begin=none - 1e6,
        end=none + 1e6,
        is_following=none > 0,
        wave=dice.uniform(2.0, 5.0, places),
        phase=dice.uniform(0.0, 2.0 * math.pi, places),
        phase_rate=none,
    )
    return solids, standing


def _draw_kinds(settings: ClipSettings, dice: Dice, places: int) -> Tensor:
    kind = int(Kind.BOX) + dice.choice((0.45, 0.3, 0.25), places)
    is_bent = (kind == Kind.QUAD) & dice.chance(settings.bending, places)
    return kind.masked_fill(is_bent, int(Kind.BENT_QUAD))


def _draw_extents(settings: ClipSettings, dice: Dice, is_present: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (B, S), share of the usual one, and half extents (B, S), share of the depth."""
    places = is_present.shape[1]
    far = dice.log_uniform(_NEAREST, _FARTHEST, places)
    angle = dice.log_uniform(0.05, 0.2, places)
    crowded = (angle * _crowding(settings, dice, is_present, angle)[:, None]).clamp(max=0.4)
    # What stands behind the others is large, but leaves some of the room to be seen.
    behind = _places(settings, is_present)[2]
    far = torch.where(behind, far * 0.3 + 0.75 * _FARTHEST, far)
    return far, torch.where(behind, angle * 2.0, crowded)


def _crowding(settings: ClipSettings, dice: Dice, is_present: Tensor, angle: Tensor) -> Tensor:
    """Factors (B,) of all sizes that make movers cover an area drawn evenly up to the largest.

    All solids of a clip grow alike, so that large ones are as often standing as moving. Where
    nothing moves, two that stand take the part of the movers.
    """
    movers, statics, _ = _places(settings, is_present)
    moving = is_present & movers
    two = statics & (statics.cumsum(0) <= 2)
    counted = torch.where(moving.any(dim=1, keepdim=True), moving, two)
    area = ((2.0 * angle).square() * counted).sum(dim=1).clamp(min=1e-3)
    # More than shall be seen: others stand before them, and some leave the image.
    wanted = 3.5 * settings.max_dynamic_area * dice.uniform(0.0, 1.0)
    return (wanted / area).sqrt().clamp(0.4, 4.0)


def _thin_out(settings: ClipSettings, is_present: Tensor, angle: Tensor) -> Tensor:
    """(B, S) presence without the statics that would fill the picture, the fewest kept."""
    statics = _places(settings, is_present)[1]
    area = ((2.0 * angle).square() * (is_present & statics)).cumsum(dim=1)
    few = statics.cumsum(0) <= settings.num_statics[0]
    return is_present & (~statics | few | (area < _STATIC_AREA))


def _places(settings: ClipSettings, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(S,) bool each: the places of movers, of statics and of backdrops."""
    place = torch.arange(like.shape[1], device=like.device)
    last = settings.num_movers[1]
    behind = last + settings.num_statics[1]
    return (place >= 1) & (place <= last), (place > last) & (place <= behind), place > behind


def _draw_half_sizes(
    settings: ClipSettings, dice: Dice, K: Tensor, kind: Tensor, extent: Tensor
) -> Tensor:
    """(B, S, 3); `extent` (B, S) is the usual half size seen by a camera of focal length W."""
    width = float(max(settings.size))
    scale = (width / K[:, 0, 0])[:, None] * extent
    half = scale.unsqueeze(-1) * dice.log_uniform(0.55, 1.5, kind.shape[1], 3)
    # The steepest slope of a bent quad is amplitude * wave / half size; waves go up to 5.
    bent = half[..., 0] * dice.uniform(0.05, 0.12, kind.shape[1])
    amplitude = torch.where(kind == Kind.BENT_QUAD, bent, half[..., 2])
    return torch.cat([half[..., :2], amplitude.unsqueeze(-1)], dim=-1)


def _draw_rotations(dice: Dice, standing: Tensor, kind: Tensor, places: int) -> Tensor:
    """R_world_solid (B, S, 3, 3): turned about the vertical if standing, else anyhow."""
    yaw = dice.uniform(-math.pi, math.pi, places)
    upright = se3.exp_so3(yaw.unsqueeze(-1) * _axis(2, yaw))
    quarter = se3.exp_so3(0.5 * math.pi * _axis(0, yaw))
    is_quad = (kind == Kind.QUAD) | (kind == Kind.BENT_QUAD)
    upright = torch.where(is_quad[..., None, None], upright @ quarter, upright)
    tilt = dice.uniform(0.0, math.pi, places).unsqueeze(-1) * dice.direction(places)
    return torch.where(standing[..., None, None], upright, se3.exp_so3(tilt))


def _draw_room(
    dice: Dice, depth: Tensor, floor: Tensor, path: CameraPath
) -> tuple[Tensor, Tensor]:
    """Poses (B, 4, 4) and half sizes (B, 3) of rooms in which the camera stands at one end."""
    half = depth[:, None] * dice.uniform(1.7, 2.8, 2)
    ceiling = depth * dice.uniform(0.9, 2.5)
    forward = path.T_world_start[:, :2, 2]
    aside = (depth * dice.uniform(0.4, 0.8))[:, None] * forward
    centre = torch.cat([aside, ((ceiling + floor) / 2.0)[:, None]], dim=-1)
    size = torch.cat([half, ((ceiling - floor) / 2.0)[:, None]], dim=-1)
    rotation = torch.eye(3, dtype=depth.dtype, device=depth.device).expand(len(depth), 3, 3)
    return se3.assemble(rotation, centre), size


def _draw_presence(settings: ClipSettings, dice: Dice) -> Tensor:
    """(B, S) bool: the room, and as many of each group as drawn."""
    groups = [dice.chance(2.0, 1)]
    for least, most in (settings.num_movers, settings.num_statics, settings.num_backdrops):
        count = dice.whole(least, most)
        groups.append(torch.arange(most, device=count.device) < count[:, None])
    return torch.cat(groups, dim=1)


def _kept_clear(settings: ClipSettings, solids: Solids, path: CameraPath) -> Solids:
    """The solids without those that the camera would come too near to."""
    frames = torch.arange(settings.num_frames, dtype=torch.float64, device=solids.wave.device)
    times = frames.expand(len(solids.wave), -1)
    T_world_cam = camera_poses(path, times)
    T_world_solid = solid_poses(solids, path, times)
    eye = (T_world_cam[:, :, None, :3, 3] - T_world_solid[..., :3, 3]).unsqueeze(-2)
    local = (eye @ T_world_solid[..., :3, :3]).squeeze(-2)
    outside = (local.abs() - solids.half_size[:, None]).clamp(min=0.0)
    gap = torch.linalg.vector_norm(outside, dim=-1).amin(dim=1)
    is_clear = gap > _CLEARANCE * solids.half_size.amax(dim=-1)
    is_clear[:, 0] = True
    return dataclasses.replace(solids, is_present=solids.is_present & is_clear)


def _distance(solids: Solids, path: CameraPath) -> Tensor:
    """(B, S) from the camera to the middles of the solids at their reference times."""
    eye = camera_poses(path, solids.reference)[..., :3, 3]
    away: Tensor = torch.linalg.vector_norm(solids.T_world_reference[..., :3, 3] - eye, dim=-1)
    return away


def _axis(number: int, like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)[number]

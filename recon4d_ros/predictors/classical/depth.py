"""Dense inverse depth of a frame from flow to its partners, carried on from frame to frame.

With the poses known, each pixel has one unknown, and each partner gives a linear equation for it
(weights: how far a change of inverse depth moves the pixel). The estimate of the frame before,
moved along the flow, joins as one more measurement that has lost some of its weight: so a camera
that stands still keeps the depth it once had, and never gains one it has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.config import DepthConfig
from recon4d_ros.datatypes import FlowField, Intrinsics
from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.rigid import Array

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

_TINY = np.float32(1e-12)
_NOTHING = np.zeros(3, np.float32)
_LEAST_BEND_PX = 0.02  # what the rows that the flow crosses must bend to be worth the time
_AROUND_PX = (9, 9)
_ABSENT: Map = np.empty(0, np.float32)  # OpenCV's type stubs know no None for an array left out


@dataclass(frozen=True, eq=False)
class InverseDepth:
    """Inverse depth of one frame.

    Attributes:
        rho: (H, W) float32, predictor units; 0 where unknown.
        information: (H, W) float32 inverse variance of rho, 0 where unknown.
    """

    rho: Map
    information: Map

    def sure(self, max_relative_sigma: float) -> Mask:
        """Pixels whose relative standard deviation is small enough to be shown."""
        return np.asarray(self.information * self.rho**2 * max_relative_sigma**2 > 1.0)

    def depth(self, max_relative_sigma: float) -> Map:
        """(H, W) z-depth, NaN where not sure."""
        sure = self.sure(max_relative_sigma)
        safe = np.where(sure, self.rho, np.float32(1.0))
        return np.where(sure, 1.0 / safe, np.float32(np.nan)).astype(np.float32)

    def confidence(self, max_relative_sigma: float) -> Map:
        """(H, W) depth over its standard deviation, 0 where not sure."""
        ratio = self.rho * np.sqrt(self.information)
        return np.where(self.sure(max_relative_sigma), ratio, 0.0).astype(np.float32)


def unknown(shape: tuple[int, int]) -> InverseDepth:
    """Nothing known of any pixel."""
    return InverseDepth(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


@dataclass(frozen=True, eq=False)
class Rays:
    """Normalised image coordinates of the dense grid.

    Attributes:
        x, y: (H, W) float32.
        focal: fx, fy, px of the grid.
        centre: cx, cy.
        directions: (H W, 3) float32, the same with z = 1, row by row.
    """

    x: Map
    y: Map
    focal: tuple[float, float]
    centre: tuple[float, float]
    directions: Tensor

    @staticmethod
    def of(grid: Intrinsics) -> Rays:
        """Rays through the pixel centres of a grid."""
        u = (np.arange(grid.width, dtype=np.float32) - grid.cx) / grid.fx
        v = (np.arange(grid.height, dtype=np.float32) - grid.cy) / grid.fy
        x, y = np.meshgrid(u.astype(np.float32), v.astype(np.float32))
        directions = torch.from_numpy(np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3))
        return Rays(x, y, (grid.fx, grid.fy), (grid.cx, grid.cy), directions)


@dataclass(frozen=True, eq=False)
class View:
    """Where a camera is, and how it moves while it reads an image.

    Attributes:
        T_cam_world: (4, 4) pose at the middle row.
        twist: (6,) from the first row's time to the last one's: T(s) = exp(s twist) T_cam_world
            with s from -1/2 to 1/2 down the image.
    """

    T_cam_world: Array
    twist: Array


def measured(
    fields: Sequence[FlowField], views: Mapping[int, View], rays: Rays, config: DepthConfig
) -> InverseDepth:
    """Inverse depth of the fields' common source frame by triangulation.

    A partner whose own answer contradicts the joint one (a moving surface, a wrong flow) leaves
    the pixel without depth; so does flow across the epipolar line.

    Args:
        fields: flow from one frame to partners.
        views: by frame; partners without one are left out.
        rays: of the dense grid.
        config: noise of the flow and bounds.
    """
    shape = rays.x.shape
    total, weighted, squared = (np.zeros(shape, np.float32) for _ in range(3))
    off_line = np.zeros(shape, bool)
    for field in fields:
        if field.source not in views or field.target not in views:
            continue
        pair = views[field.source], views[field.target]
        rho, information, across_px = _triangulated(field, *pair, rays, config)
        total += information
        weighted += information * rho
        squared += information * rho**2
        off_line |= (across_px > config.max_off_line_px) & (information > 0)
    rho = weighted / np.maximum(total, _TINY)
    disagreement = squared - total * rho**2
    good = (total > 0) & (rho > 0) & ~off_line & (disagreement < config.max_disagreement**2)
    rho, total = (np.where(good, grid, 0).astype(np.float32) for grid in (rho, total))
    smooth = _spread(rho, total) < config.max_spread
    return InverseDepth(np.where(smooth, rho, 0), np.where(smooth, total, 0))


def _spread(rho: Map, information: Map) -> Map:
    """Relative standard deviation of the inverse depths about a plane around each pixel, weighted.

    Flow that went astray (an even surface, the rim of a mover) scatters from pixel to pixel where
    its partners, misled alike, still agree.
    """

    def around(grid: Map) -> Map:
        return np.asarray(cv2.boxFilter(grid, -1, _AROUND_PX, borderType=cv2.BORDER_CONSTANT))

    weight = np.maximum(around(information), _TINY)
    mean = around(information * rho) / weight
    # On a plane inverse depth is linear in the image, so the mean is the pixel's own: a floor that
    # is seen at a small angle does not scatter.
    variance = around(information * (rho - mean) ** 2) / weight
    return np.asarray(np.sqrt(np.maximum(variance, 0)) / np.maximum(mean, _TINY), np.float32)


def _triangulated(
    field: FlowField, source: View, target: View, rays: Rays, config: DepthConfig
) -> tuple[Map, Map, Map]:
    """Inverse depth, its information and the distance from the epipolar line in px.

    Each row has a pose of its own: the bearing goes from the time of its row in the source to the
    time of the same row in the target, and on to that of the row it lands in.
    """
    flow, valid = field.flow.numpy(), field.valid.numpy()
    height = flow.shape[0]
    M, t = _by_row(source, target, height)
    # Within a row only x varies: a product and a sum per coordinate of the moved bearing.
    y = rays.y[:, :1]
    q = tuple(M[:, k, :1] * rays.x + (M[:, k, 1:2] * y + M[:, k, 2:]) for k in range(3))
    twist = target.twist.astype(np.float32)
    rows_crossed = flow[..., 1] / np.float32(height)
    bend_px = np.abs(rows_crossed).max() * np.abs(twist).max() * max(rays.focal)
    if bend_px > _LEAST_BEND_PX:
        q = _later(q, twist[3:], _NOTHING, rows_crossed)
        t = _later(t, twist[3:], twist[:3], rows_crossed)
    (qx, qy, qz), (tx, ty, tz) = q, t
    u = rays.x + flow[..., 0] / np.float32(rays.focal[0])
    v = rays.y + flow[..., 1] / np.float32(rays.focal[1])
    along_x, along_y = tx - u * tz, ty - v * tz
    off_x, off_y = qx - u * qz, qy - v * qz
    length2 = np.maximum(along_x**2 + along_y**2, _TINY)
    rho = -(along_x * off_x + along_y * off_y) / length2
    z = np.maximum(qz + rho * tz, np.float32(1e-3))
    to_px = np.float32(0.5 * sum(rays.focal)) / z
    across = np.abs(along_x * off_y - along_y * off_x) / np.sqrt(length2) * to_px
    information = length2 * to_px**2 / _flow_variance(field, along_x, along_y, length2, config)
    return rho, np.where(valid, information, 0).astype(np.float32), across


def _flow_variance(
    field: FlowField, along_x: Map, along_y: Map, length2: Map, config: DepthConfig
) -> Map:
    """Variance of the flow along the epipolar line, px squared.

    Flow is known as well as the image shows its errors: where sliding along the line changes no
    grey value, it is a guess.
    """
    assert field.structure is not None
    xx, xy, yy = (field.structure[..., k].numpy() for k in range(3))
    contrast = along_x**2 * xx + 2 * along_x * along_y * xy + along_y**2 * yy
    grey_variance = np.float32(config.grey_noise**2)
    guess = grey_variance * length2 / np.maximum(contrast, _TINY)
    return np.asarray(config.flow_noise_px**2 + guess, np.float32)


Vector: TypeAlias = tuple[Map, ...]


def _by_row(source: View, target: View, height: int) -> tuple[Map, Vector]:
    """Motion from a row of the source to the same row of the target, each at its own time.

    Returns:
        (H, 3, 3) rotations, and the coordinates of the translations, three of (H, 1).
    """
    share = ((np.arange(height) - 0.5 * (height - 1)) / height)[:, None]
    T = target.T_cam_world @ rigid.inverse(source.T_cam_world)
    T = rigid.exp(share * target.twist) @ T @ rigid.exp(-share * source.twist)
    rows = T.astype(np.float32)
    return rows[:, :3, :3], tuple(rows[:, k, 3:] for k in range(3))


def _later(vector: Vector, spin: Map, speed: Map, share: Map) -> Vector:
    """Coordinates after a share of a small twist of the camera."""
    x, y, z = vector
    turned = spin[1] * z - spin[2] * y, spin[2] * x - spin[0] * z, spin[0] * y - spin[1] * x
    return tuple(
        part + share * (by + along) for part, by, along in zip(vector, turned, speed, strict=True)
    )


def carried(
    before: InverseDepth, field: FlowField, T_before_now: Array, rays: Rays, config: DepthConfig
) -> InverseDepth:
    """The estimate of an earlier frame on the pixels of this one.

    Args:
        before: of the field's target frame.
        field: flow from this frame to the earlier one.
        T_before_now: (4, 4) pose of this camera in the earlier one.
        rays: of the dense grid.
        config: share of the information that survives.
    """
    height, width = rays.x.shape
    landing = field.flow.numpy().copy()
    landing[..., 0] += np.arange(width, dtype=np.float32)
    landing[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    rho = _nearest(before.rho, landing)
    information = _nearest(before.information, landing)
    known = (rho > 0) & field.valid.numpy()
    z = 1.0 / np.where(known, rho, np.float32(1.0))
    u = (landing[..., 0] - np.float32(rays.centre[0])) / np.float32(rays.focal[0])
    v = (landing[..., 1] - np.float32(rays.centre[1])) / np.float32(rays.focal[1])
    T = rigid.inverse(T_before_now).astype(np.float32)
    z_now = z * (T[2, 0] * u + T[2, 1] * v + T[2, 2]) + T[2, 3]
    known &= z_now > 1e-3
    rho_now = np.where(known, 1.0 / np.where(known, z_now, 1.0), 0.0).astype(np.float32)
    # d rho_now / d rho = (z / z_now)^2 up to the rotation: variance follows its square.
    kept = np.float32(config.carry_over) * information * (z_now / z) ** 4
    return InverseDepth(rho_now, np.where(known, kept, 0).astype(np.float32))


def _nearest(values: Map, uv: Map) -> Map:
    """Values at the nearest pixel, 0 outside; never a mean over a depth edge."""
    return np.asarray(cv2.remap(values, uv, _ABSENT, cv2.INTER_NEAREST), np.float32)


def fused(now: InverseDepth, prior: InverseDepth, config: DepthConfig) -> InverseDepth:
    """Joint estimate; where the two contradict each other, the surer one alone."""
    both = (now.information > 0) & (prior.information > 0)
    gap = (now.rho - prior.rho) ** 2
    spread = 1 / np.maximum(now.information, _TINY) + 1 / np.maximum(prior.information, _TINY)
    agree = ~both | (gap < config.max_disagreement**2 * spread)
    total = now.information + prior.information
    rho = (now.information * now.rho + prior.information * prior.rho) / np.maximum(total, _TINY)
    now_wins = now.information >= prior.information
    alone = InverseDepth(
        np.where(now_wins, now.rho, prior.rho),
        np.where(now_wins, now.information, prior.information),
    )
    return InverseDepth(
        np.where(agree, rho, alone.rho).astype(np.float32),
        np.where(agree, total, alone.information).astype(np.float32),
    )

"""Motion along the epipolar lines: what the camera's motion and the depth leave of the flow.

Two views cannot tell a thing that moves along its epipolar line from one at another depth. A depth
that was known before the later of the two frames came can: it says how far along the line a static
surface would be seen, and the flow must agree. Depth from the same flow would agree by
construction, so only what other, earlier pairs gave is asked, and pixels without it have no say.

Wrong depth is not motion: an outline a few pixels off puts background at the depth of the thing
before it, so the flow may agree with any depth around the pixel; errors of the pose bend the whole
image smoothly, so a quadratic form is taken out; and tolerance grows with the scatter that is
left, which the static majority shows.

Source: C4D (ICCV 2025), section 3.4 of its specification (evidence after alignment); the parallax
of a pixel is K (R x + rho t) (Hartley and Zisserman, 9.2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.geometry.robust import MAD_TO_SIGMA

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Matrix: TypeAlias = NDArray[np.float64]

# Depths of a square of this side around a pixel may be its own.
AROUND_PX = 5
# Pixels that show how well flow and ego flow of static surfaces agree, and how few are too few.
SAMPLED = np.s_[2::8, 2::8]
MIN_KNOWN = 60
DRIFT_ITERATIONS = 5
TUKEY_SIGMAS = 4.7
LEAST_SIGMA_PX = 1e-3
RIDGE = 1e-6
_TINY = np.float32(1e-12)
_LEAST_Z = np.float32(1e-3)


@dataclass(frozen=True, eq=False)
class DepthRange:
    """Inverse depths that the pixels of one frame may have.

    Attributes:
        rho: (H, W) float32 inverse depth, 0 where unknown.
        low, high: (H, W) float32, of the pixels around; 0 and infinity where unknown.
        spread: (H, W) float32 relative uncertainty in a unit of its own, 0 where unknown.
    """

    rho: Floats
    low: Floats
    high: Floats
    spread: Floats


@dataclass(frozen=True, eq=False)
class AlongLine:
    """What of the flow no depth of a range explains.

    Attributes:
        residual: (H, W, 2) px along the epipolar line; 0 where the depth is unknown.
        sigma: (H, W) px, standard deviation of what a static surface leaves.
        known: (H, W) bool, pixels of known depth and usable flow.
    """

    residual: Floats
    sigma: Floats
    known: Bools


def depth_range(depth: Floats, confidence: Floats) -> DepthRange:
    """Range of a frame's depth around each pixel.

    Args:
        depth: (H, W) z-depth, NaN where unknown.
        confidence: (H, W), larger where the depth is surer, in any unit.
    """
    known = np.isfinite(depth) & (confidence > 0)
    rho = (known / np.where(known, depth, 1)).astype(np.float32)
    box = np.ones((AROUND_PX, AROUND_PX), np.uint8)
    low = cv2.erode(np.where(known, rho, np.float32(np.inf)), box)
    spread = (known / np.where(known, confidence, 1)).astype(np.float32)
    high = np.where(known, cv2.dilate(rho, box), np.float32(np.inf))
    return DepthRange(rho, np.where(known, low, np.float32(0)), high, spread)


def carried(there: DepthRange, flow: Floats, grid: Intrinsics, T_there_here: Matrix) -> DepthRange:
    """Another frame's depth range on the pixels of this one.

    Args:
        there: of the other frame.
        flow: (H, W, 2) px from this frame to the other one.
        grid: intrinsics of both.
        T_there_here: (4, 4) pose of this camera in the other one.
    """
    u, v = _landing(flow, grid)
    fx, fy, cx, cy = (np.float32(value) for value in (grid.fx, grid.fy, grid.cx, grid.cy))
    at = u * fx + cx, v * fy + cy
    T = np.linalg.inv(T_there_here).astype(np.float32)
    turned = T[2, 0] * u + T[2, 1] * v + T[2, 2]

    def moved(values: Floats) -> Floats:
        near = cv2.remap(values, *at, cv2.INTER_NEAREST)
        return np.asarray(near / np.maximum(turned + T[2, 3] * near, _LEAST_Z))

    spread = cv2.remap(there.spread, *at, cv2.INTER_NEAREST)
    known = there.high
    high = np.where(spread > 0, moved(np.where(np.isfinite(known), known, 0)), np.float32(np.inf))
    return DepthRange(moved(there.rho), moved(there.low), high, np.asarray(spread, np.float32))


def ego_flow(rho: Floats, grid: Intrinsics, T_target_source: Matrix) -> Floats:
    """Flow (H, W, 2) px that the camera's motion alone gives pixels of inverse depth (H, W)."""
    flow, _ = _ego(rho, grid, T_target_source)
    return np.stack(flow, axis=-1)


def along_line(
    flow: Floats, usable: Bools, depth: DepthRange, grid: Intrinsics, T_target_source: Matrix
) -> AlongLine | None:
    """Distance along the epipolar line between the flow and the nearest ego flow of the range.

    Args:
        flow: (H, W, 2) px from source to target.
        usable: (H, W) bool, pixels whose flow can be trusted.
        depth: of the source's pixels, from other pairs than this.
        grid: intrinsics of both frames.
        T_target_source: (4, 4) pose of the source camera in the target's, in the unit of depth.

    Returns:
        None when hardly a pixel has a depth.
    """
    known = usable & (depth.rho > 0)
    if known[SAMPLED].sum() < MIN_KNOWN:
        return None
    u, v = _landing(flow, grid)
    tx, ty, tz = T_target_source[:3, 3].astype(np.float32)
    fx, fy = np.float32(grid.fx), np.float32(grid.fy)
    line_x, line_y = fx * (tx - u * tz), fy * (ty - v * tz)
    length = np.sqrt(line_x * line_x + line_y * line_y) + _TINY
    line_x, line_y = line_x / length, line_y / length
    ego, z = _ego(depth.rho, grid, T_target_source)
    wrong_x, wrong_y = flow[..., 0] - ego[0], flow[..., 1] - ego[1]
    off = wrong_x * line_x + wrong_y * line_y
    px_per_rho = length / z
    off -= _drift(off, known, grid)
    nearer, farther = px_per_rho * (depth.low - depth.rho), px_per_rho * (depth.high - depth.rho)
    unexplained = np.where(known, off - np.clip(off, nearer, farther), np.float32(0))
    sigma = _sigma(off, px_per_rho * depth.rho * depth.spread, known)
    residual = np.stack([unexplained * line_x, unexplained * line_y], axis=-1)
    return AlongLine(residual, sigma, known)


def _drift(off: Floats, known: Bools, grid: Intrinsics) -> Floats:
    """What small errors of pose and focal length add, px: a quadratic form of the position.

    Small motion of the camera makes a quadratic flow (Hartley and Zisserman, 9.2.4, of a plane);
    fitted by Tukey's weights to what most pixels do.
    """
    x, y = _rays(grid)
    some = [np.broadcast_to(part, known.shape)[SAMPLED][known[SAMPLED]] for part in (x, y)]
    shapes, seen = _quadratic(*some).astype(np.float64), off[SAMPLED][known[SAMPLED]]
    factors = np.zeros(shapes.shape[-1])
    for _ in range(DRIFT_ITERATIONS):
        left = seen - shapes @ factors
        bound = TUKEY_SIGMAS * max(MAD_TO_SIGMA * float(np.median(np.abs(left))), LEAST_SIGMA_PX)
        weighted = shapes * np.clip(1 - (left / bound) ** 2, 0, None)[:, None] ** 2
        normal = shapes.T @ weighted + RIDGE * len(seen) * np.eye(len(factors))
        factors = np.linalg.solve(normal, weighted.T @ seen)
    a, bx, by, cxx, cxy, cyy = factors.astype(np.float32)
    return np.asarray(a + x * (bx + cxx * x + cxy * y) + y * (by + cyy * y))


def _quadratic(x: Floats, y: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _sigma(off: Floats, predicted: Floats, known: Bools) -> Floats:
    """Standard deviation (H, W) px of what static surfaces leave, as most of them show it.

    At least the noise of all; more where the depth, by its own word, is less certain.
    """
    seen = np.abs(off[SAMPLED][known[SAMPLED]])
    own = predicted[SAMPLED][known[SAMPLED]]
    least = np.float32(MAD_TO_SIGMA * np.median(seen))
    factor = np.float32(MAD_TO_SIGMA * np.median(seen / (own + _TINY)))
    return np.asarray(np.maximum(least, factor * predicted))


def _ego(
    rho: Floats, grid: Intrinsics, T_target_source: Matrix
) -> tuple[tuple[Floats, Floats], Floats]:
    """Ego flow, x and y apart, and the z of the points in the target over that in the source."""
    (x, y), R = _rays(grid), T_target_source[:3, :3].astype(np.float32)
    tx, ty, tz = T_target_source[:3, 3].astype(np.float32)
    px, py, pz = (
        R[k, 0] * x + (R[k, 1] * y + R[k, 2]) + rho * t for k, t in enumerate((tx, ty, tz))
    )
    z = np.maximum(pz, _LEAST_Z)
    return ((px / z - x) * np.float32(grid.fx), (py / z - y) * np.float32(grid.fy)), z


def _rays(grid: Intrinsics) -> tuple[Floats, Floats]:
    """Normalised coordinates of columns (1, W) and rows (H, 1)."""
    x = (np.arange(grid.width, dtype=np.float32) - grid.cx) / grid.fx
    y = (np.arange(grid.height, dtype=np.float32) - grid.cy) / grid.fy
    return x.astype(np.float32)[None], y.astype(np.float32)[:, None]


def _landing(flow: Floats, grid: Intrinsics) -> tuple[Floats, Floats]:
    """Normalised coordinates (H, W) of where the flow leads."""
    x, y = _rays(grid)
    return x + flow[..., 0] / np.float32(grid.fx), y + flow[..., 1] / np.float32(grid.fy)

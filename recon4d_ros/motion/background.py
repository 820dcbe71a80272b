"""How the static background moves from one frame to another, from the flow alone.

A static point x moves to x' = H x + (parallax along its epipolar line): H is the homography of the
dominant plane or rotation, the line comes from F, and the size of the parallax from the unknown
depth (plane and parallax: Hartley and Zisserman, 13.3). No depth explains motion across the line.
Motion along it is explained by some depth, but hardly when the whole background keeps to a narrow
range of parallax and one compact thing lies far outside. Where the camera stands or rotates, that
range is as narrow as the noise, and every motion is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

NUM_SAMPLES = 700
MIN_SAMPLES = 60
# Random trials of a robust fit; more of them change no mask.
MAX_HOMOGRAPHY_TRIALS = 150
# Of 350 pairs with two fifths wrong, 150 trials miss F four times in sixty; where less is wrong
# the search ends long before.
MAX_FUNDAMENTAL_TRIALS = 1000
# Every n-th sample is enough for the search of F; all of them judge the result.
SEARCH_STRIDE = 2
# Share of the background that the narrowest interval of parallax must hold: a thing may cover
# up to 40 % of the view and still lie outside.
BACKGROUND_SHARE = 0.6
HOMOGRAPHY_INLIER_PX = 1.0
FUNDAMENTAL_INLIER_PX = 0.5
STANDING_PX = 0.5
# Parallax is measured over the distance to the epipole, which must not vanish.
MIN_EPIPOLE_DISTANCE = 0.2


@dataclass(frozen=True, eq=False)
class Background:
    """Motion of the static background from a source to a target frame.

    Attributes:
        H: (3, 3) homography of the dominant plane or rotation; identity for a standing camera.
        F: (3, 3) fundamental matrix of unit norm, x'^T F x = 0; None if H alone explains the
            background (the camera stands, or no F can be found).
        noise_px: robust standard deviation of the distance from the model.
        parallax: narrowest interval that holds most of the background's parallax, px.
        uv: (P, 2) int64 samples of the background and of what moves.
    """

    H: Matrix
    F: Matrix | None
    noise_px: float
    parallax: tuple[float, float]
    uv: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Residual:
    """What of the flow the background's motion leaves unexplained, px.

    Attributes:
        across: (H, W) distance from the epipolar line (Sampson); without F, the distance from
            H x over sqrt(2).
        parallax: (H, W) displacement along the line; 0 without F.
    """

    across: Floats
    parallax: Floats


def fit_background(
    flow: Floats, usable: NDArray[np.bool_], scale: float
) -> tuple[Background, Residual] | None:
    """Fit the background's motion robustly to the flow.

    Args:
        flow: (H, W, 2) px.
        usable: (H, W) bool, pixels whose flow can be trusted.
        scale: long side of the grid over the reference side, for the lengths.

    Returns:
        The motion and what it leaves unexplained; None when too few pixels are usable or no
        model fits.
    """
    uv = even_samples(usable)
    if len(uv) < MIN_SAMPLES:
        return None
    moved = flow[uv[:, 1], uv[:, 0]]
    H: Matrix | None = np.eye(3)
    F: Matrix | None = None
    if float(np.median(np.linalg.norm(moved, axis=1))) >= STANDING_PX * scale:
        source = uv.astype(np.float64)
        H = _homography(source, source + moved, HOMOGRAPHY_INLIER_PX * scale)
        F = fundamental(source, source + moved, FUNDAMENTAL_INLIER_PX * scale)
    if H is None:
        return None
    found = residual(H, F, flow)
    across, parallax = (array[uv[:, 1], uv[:, 0]] for array in (found.across, found.parallax))
    noise_px = float(1.4826 * np.median(across))
    return Background(H, F, noise_px, narrowest_interval(parallax), uv), found


def residual(H: Matrix, F: Matrix | None, flow: Floats) -> Residual:
    """What a homography and a fundamental matrix (None: the homography alone) leave unexplained.

    Args:
        H: (3, 3).
        F: (3, 3) of unit norm, or None.
        flow: (H, W, 2) px.
    """
    du, dv = np.ascontiguousarray(np.moveaxis(flow, -1, 0))
    shift_u, shift_v = _shift(H, du, dv)
    if F is None:
        length = np.sqrt(0.5 * (shift_u**2 + shift_v**2))
        return Residual(length, np.zeros_like(length))
    return Residual(_across(F, du, dv), _parallax(F, du, dv, shift_u, shift_v))


def line_normals(F: Matrix, u: NDArray[np.int64], v: NDArray[np.int64]) -> Floats:
    """Unit normals (P, 2) of the epipolar lines that belong to source pixels (P,)."""
    a, b = (F[row, 0] * u + F[row, 1] * v + F[row, 2] for row in (0, 1))
    normals = np.stack([a, b], axis=-1) / np.maximum(np.hypot(a, b), 1e-20)[:, None]
    return np.asarray(normals, dtype=np.float32)


def homography_shift(
    H: Matrix, flow: Floats, u: NDArray[np.int64], v: NDArray[np.int64]
) -> Floats:
    """Displacement (P, 2) of moved pixels (P,) from where H sends them."""
    plane = np.stack([u, v, np.ones_like(u)], axis=-1) @ H.T
    source = np.stack([u, v], axis=-1)
    return np.asarray(source + flow[v, u] - plane[:, :2] / plane[:, 2:], dtype=np.float32)


def even_samples(usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Usable pixels (P, 2) of an even lattice with about `NUM_SAMPLES` nodes."""
    height, width = usable.shape
    pitch = max(1, round(float(np.sqrt(height * width / NUM_SAMPLES))))
    lattice = usable[pitch // 2 :: pitch, pitch // 2 :: pitch]
    rows, columns = np.nonzero(lattice)
    return np.stack([columns, rows], axis=-1) * pitch + pitch // 2


def narrowest_interval(values: Floats) -> tuple[float, float]:
    """Shortest interval that holds `BACKGROUND_SHARE` of the values.

    Source: Rousseeuw and Leroy, Robust Regression and Outlier Detection, section 4.3 (shorth).
    """
    ordered = np.sort(values)
    count = int(BACKGROUND_SHARE * (len(ordered) - 1))
    first = int(np.argmin(ordered[count:] - ordered[: len(ordered) - count]))
    return float(ordered[first]), float(ordered[first + count])


def _homography(source: Matrix, target: Matrix, inlier_px: float) -> Matrix | None:
    H, _ = cv2.findHomography(
        source,
        target,
        cv2.USAC_MAGSAC,
        inlier_px,
        maxIters=MAX_HOMOGRAPHY_TRIALS,
        confidence=0.999,
    )
    return None if H is None else np.asarray(H, dtype=np.float64)


def fundamental(source: Matrix, target: Matrix, inlier_px: float) -> Matrix | None:
    """F (3, 3) of unit norm, x'^T F x = 0, of most of the pairs (P, 2); None if there is none.

    With the plain parameters: what `USAC_DEFAULT` does beyond them takes 0.7 times as long again
    and explains no more of the flow.
    """
    search = cv2.UsacParams()
    search.threshold, search.confidence = inlier_px, 0.99
    search.maxIterations = MAX_FUNDAMENTAL_TRIALS
    try:
        F, _ = cv2.findFundamentalMat(source[::SEARCH_STRIDE], target[::SEARCH_STRIDE], search)
    except cv2.error:  # OpenCV asserts where no minimal sample gives a model
        return None
    if F is None or F.shape != (3, 3):
        return None
    return np.asarray(F / np.linalg.norm(F), dtype=np.float64)


def _shift(H: Matrix, du: Floats, dv: Floats) -> tuple[Floats, Floats]:
    """Displacement of the moved pixels from where H sends them."""
    u, v = _pixels(du)
    u_plane, v_plane, w_plane = (row[0] * u + row[1] * v + row[2] for row in H.astype(np.float32))
    return u - u_plane / w_plane + du, v - v_plane / w_plane + dv


def _across(F_exact: Matrix, du: Floats, dv: Floats) -> Floats:
    """Sampson distance from the epipolar lines."""
    F = F_exact.astype(np.float32)
    u, v = _pixels(du)
    u_moved, v_moved = u + du, v + dv
    a, b, c = (row[0] * u + row[1] * v + row[2] for row in F)
    back_a, back_b = (F[0, i] * u_moved + F[1, i] * v_moved + F[2, i] for i in (0, 1))
    algebraic = a * u_moved + b * v_moved + c
    gradient = a * a + b * b + back_a * back_a + back_b * back_b
    return np.asarray(np.abs(algebraic) / np.sqrt(gradient + 1e-20))


def _parallax(F: Matrix, du: Floats, dv: Floats, shift_u: Floats, shift_v: Floats) -> Floats:
    """Displacement along the epipolar lines, away from the epipole, relative to the homography.

    It grows with the distance to the epipole and is given for the mean distance.
    """
    u, v = _pixels(du)
    epipole = np.linalg.svd(F)[0][:, 2].astype(np.float32)
    to_u = (u + du - shift_u) * epipole[2] - epipole[0]
    to_v = (v + dv - shift_v) * epipole[2] - epipole[1]
    distance = np.sqrt(to_u * to_u + to_v * to_v) + 1e-9
    mean = distance.mean()
    along = shift_u * to_u + shift_v * to_v
    return np.asarray(
        along * mean / (distance * np.maximum(distance, MIN_EPIPOLE_DISTANCE * mean))
    )


def _pixels(plane: Floats) -> tuple[Floats, Floats]:
    height, width = plane.shape
    columns = np.arange(width, dtype=np.float32)
    return columns, np.arange(height, dtype=np.float32)[:, None]

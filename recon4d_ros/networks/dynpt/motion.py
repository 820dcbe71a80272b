"""How the tracks of a window move together, and what each does apart from that.

Nothing here is learned and no gradient passes. Masked tracks have no say. Positions are compared
with those in one reference frame, the middle one, from which the others are the least far away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import cross, solve_ex, vector_norm

from recon4d_ros.geometry.epipolar import homogeneous
from recon4d_ros.geometry.robust import cauchy_weight

RESIDUAL_WIDTH = 5
REGIONS = 3  # of the image, across and down
SUMMARY_WIDTH = 2 * (REGIONS**2 + 1)

_ROUNDS = 4
_WIDTHS = 2.0  # median residuals at which a track counts half
_LEAST_PX = 0.1  # below this no residual is told from noise
# Pull towards no motion, in units of one fully counted track on the edge of the image; more for
# the two perspective terms, which few tracks determine.
_PULL = (1e-4,) * 6 + (1e-2,) * 2
_REACH = 3.0  # half image sides from the centre; tracks beyond are not believed
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class SharedMotion:
    """What the transformer is told.

    Attributes:
        residual: (B, N, T, 5) of each track: what the homography leaves of its motion, then the
            same across and along the epipolar line, px, and its length in usual lengths; all
            compressed.
        summary: (B, T, 20) displacements from the reference frame, px and compressed: the median
            of all tracks, then those of the 3 x 3 regions of the image.
    """

    residual: Tensor
    summary: Tensor


@torch.no_grad()
def shared_motion(uv: Tensor, weight: Tensor, size: tuple[int, int]) -> SharedMotion:
    """Describe the motion of tracks.

    Args:
        uv: (B, T, N, 2) float32 px.
        weight: (B, T, N) in [0, 1], 0 for masked tracks in all frames.
        size: (height, width) of the images, px.
    """
    with torch.autocast(uv.device.type, enabled=False):
        reference = uv.shape[1] // 2
        source = uv[:, reference : reference + 1].expand_as(uv)
        both = weight * weight[:, reference : reference + 1]
        residual = _residual(source, uv, both, size)
        summary = _summary(source[:, 0], uv - source, weight.amax(dim=1) > 0, size)
    return SharedMotion(residual.transpose(1, 2), summary)


def _residual(source: Tensor, target: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    half_px = max(size) / 2
    centre = source.new_tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
    a, b = (source - centre) / half_px, (target - centre) / half_px
    far = torch.maximum(a.abs(), b.abs()).amax(dim=-1) > _REACH
    weight = torch.where(far, 0.0, weight)
    least = _LEAST_PX / half_px
    moved = fit_homography(a, b, weight, least)
    left = b - moved
    length = vector_norm(left, dim=-1)
    usual = masked_median(length, weight > 0)[..., None].clamp(min=least)
    across, along = _along_epipolar_lines(moved, b, weight, usual, least)
    parts = torch.stack([left[..., 0], left[..., 1], across, along], dim=-1) * half_px
    relative = torch.log1p(length / usual)[..., None]
    return torch.cat([torch.asinh(parts), relative], dim=-1).nan_to_num(0.0, 0.0, 0.0)


def fit_homography(source: Tensor, target: Tensor, weight: Tensor, least: float) -> Tensor:
    """Points moved by the robust homography of all of them.

    Reweighted least squares that start from the median displacement; the matrix is I + D with a
    small pull of D towards zero, so that few or collinear points still give a sane answer.

    Args:
        source: (..., N, 2) within a few units of the origin.
        target: (..., N, 2).
        weight: (..., N) in [0, 1].
        least: residual that is not told from noise.

    Returns:
        (..., N, 2) the source points moved.
    """
    known = weight > 0
    step = target - source
    moved = source + masked_median(step.mT, known[..., None, :])[..., None, :]
    u, v = source.unbind(dim=-1)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    x, y = target.unbind(dim=-1)
    rows_x = torch.stack([u, v, one, zero, zero, zero, -u * x, -v * x], dim=-1)
    rows_y = torch.stack([zero, zero, zero, u, v, one, -u * y, -v * y], dim=-1)
    pull = torch.diag(source.new_tensor(_PULL))
    for _ in range(_ROUNDS):
        trust = weight * _trust(vector_norm(target - moved, dim=-1), known, least)
        weighted_x, weighted_y = rows_x.mT * trust[..., None, :], rows_y.mT * trust[..., None, :]
        normal = weighted_x @ rows_x + weighted_y @ rows_y + pull
        right = weighted_x @ step[..., :1] + weighted_y @ step[..., 1:]
        D = solve_ex(normal, right).result.squeeze(-1)
        moved = _apply(D, source)
    return moved


def _apply(D: Tensor, source: Tensor) -> Tensor:
    """Points (..., N, 2) moved by I + D, its entries (..., 8) row by row."""
    H = torch.unflatten(torch.cat([D, torch.zeros_like(D[..., :1])], dim=-1), -1, (3, 3))
    H = H + torch.eye(3, dtype=D.dtype, device=D.device)
    moved = homogeneous(source) @ H.mT
    return torch.div(moved[..., :2], moved[..., 2:].clamp(min=1e-2))


def _along_epipolar_lines(
    moved: Tensor, target: Tensor, weight: Tensor, usual: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """Residuals (..., N) across and along the lines through the epipole that explains most.

    A static point off the plane of the homography moves towards or away from the epipole alone
    (plane and parallax; Hartley and Zisserman, section 13.3).
    """
    known = weight > 0
    left = target - moved
    lines = cross(homogeneous(moved), homogeneous(target))
    trust = weight * cauchy_weight(vector_norm(left, dim=-1) / usual, 2 * _WIDTHS)
    for _ in range(_ROUNDS):
        epipole = _null_vector((lines.mT * trust[..., None, :]) @ lines)
        direction = epipole[..., None, :2] - epipole[..., None, 2:] * moved
        direction = direction / vector_norm(direction, dim=-1, keepdim=True).clamp(min=_TINY)
        across = left[..., 0] * direction[..., 1] - left[..., 1] * direction[..., 0]
        trust = weight * _trust(across.abs(), known, least)
    return across, (left * direction).sum(dim=-1)


def _null_vector(matrix: Tensor) -> Tensor:
    """Direction (..., 3) that symmetric matrices (..., 3, 3) shrink the most, its z not negative.

    The adjugate stretches that direction the most; squaring it drives out the others.
    """
    first, second, third = matrix.unbind(dim=-2)
    power = torch.stack([cross(second, third), cross(third, first), cross(first, second)], dim=-2)
    for _ in range(3):
        power = power / vector_norm(power, dim=(-2, -1), keepdim=True).clamp(min=_TINY)
        power = power @ power
    diagonal = power.diagonal(dim1=-2, dim2=-1)
    best = diagonal.argmax(dim=-1)[..., None, None].expand(*diagonal.shape[:-1], 3, 1)
    vector = power.gather(-1, best).squeeze(-1)
    return torch.where(vector[..., 2:] < 0, -vector, vector)


def _trust(residual: Tensor, known: Tensor, least: float) -> Tensor:
    usual = masked_median(residual, known)[..., None].clamp(min=least)
    return cauchy_weight(residual / usual, _WIDTHS)


def _summary(
    reference: Tensor, displacement: Tensor, known: Tensor, size: tuple[int, int]
) -> Tensor:
    """(B, T, 20) of displacements (B, T, N, 2); a region without tracks moves as all do."""
    scale = reference.new_tensor([size[1], size[0]]) / REGIONS
    column, row = (reference / scale).floor().clamp(0, REGIONS - 1).unbind(dim=-1)
    regions = torch.arange(REGIONS**2, device=reference.device)[:, None]
    inside = (row * REGIONS + column)[:, None] == regions  # (B, 9, N)
    inside = (inside & known[:, None])[:, None, :, None]
    steps = displacement.mT[:, :, None]  # (B, T, 1, 2, N)
    everywhere = masked_median(steps, known[:, None, None, None])
    medians = masked_median(steps.expand(-1, -1, REGIONS**2, -1, -1), inside)
    medians = torch.where(inside.any(dim=-1), medians, everywhere)
    return torch.asinh(torch.cat([everywhere, medians], dim=2).flatten(2))


def masked_median(values: Tensor, known: Tensor) -> Tensor:
    """Lower median over the last axis of the known values; 0 where none is known."""
    known = known.expand_as(values)
    count = known.sum(dim=-1, keepdim=True)
    ordered = torch.where(known, values, torch.inf).sort(dim=-1).values
    middle = ordered.gather(-1, (count - 1).clamp(min=0) // 2)
    return torch.where(count > 0, middle, 0.0).squeeze(-1)

"""Rigid motions SE(3) as 4x4 matrices.

Convention: T_target_source maps source coordinates to target coordinates, so neighbours cancel in
a product. Twists are (rho, phi): translation part first, rotation vector last. Quaternions are
Hamilton, unit, in the order x y z w.
Source of the closed forms: Barfoot, State Estimation for Robotics, chapter 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry.checks import check_finite, check_rotation, check_shape, check_transform

# Below this angle the Taylor series is exact to float64 rounding; the closed forms cancel there.
_SMALL_ANGLE = 1e-3


def make(rotation: Tensor, translation: Tensor) -> Tensor:
    """Transform (..., 4, 4) of a rotation (..., 3, 3) and a translation (..., 3).

    Raises:
        GeometryError: wrong shapes or no rotation.
    """
    check_rotation(rotation, "rotation")
    return assemble(rotation, translation)


def assemble(linear: Tensor, translation: Tensor) -> Tensor:
    """Affine matrix (..., 4, 4) of any linear part (..., 3, 3) and a translation (..., 3).

    Raises:
        GeometryError: wrong shapes or values that are not finite.
    """
    check_shape(linear, "linear part", 3, 3)
    check_shape(translation, "translation", 3)
    check_finite(translation, "translation")
    column = translation.unsqueeze(-1)
    # Adding zeros of the other operand's batch broadcasts both to the common one.
    linear = linear + torch.zeros_like(column[..., :1])
    column = column + torch.zeros_like(linear[..., :1])
    top = torch.cat([linear, column], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def inverse(T: Tensor) -> Tensor:
    """T_source_target (..., 4, 4) of T_target_source.

    Raises:
        GeometryError: not a rigid transform.
    """
    check_transform(T, "T")
    R_inverse = T[..., :3, :3].mT
    check_rotation(R_inverse, "rotation")
    top = torch.cat([R_inverse, -(R_inverse @ T[..., :3, 3:])], dim=-1)
    return torch.cat([top, T[..., 3:, :]], dim=-2)


def compose(*transforms: Tensor) -> Tensor:
    """Product (..., 4, 4) from left to right, so that T_a_b and T_b_c give T_a_c.

    Raises:
        GeometryError: nothing given, or something that is no 4x4 transform.
    """
    if not transforms:
        raise GeometryError("compose() was given no transform; expected at least one")
    for position, T in enumerate(transforms):
        check_transform(T, f"transform {position}")
    product = transforms[0]
    for T in transforms[1:]:
        product = product @ T
    return product


def relative(T_world_a: Tensor, T_world_b: Tensor) -> Tensor:
    """T_a_b (..., 4, 4) of two poses in one world."""
    return compose(inverse(T_world_a), T_world_b)


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Points (..., 3) moved by one SE(3) or Sim(3) matrix (4, 4), or by one per point.

    NaN (unknown) points stay NaN. A batch of matrices (B, 4, 4) needs points (B, 3); give
    (B, 1, 4, 4) for (B, P, 3).

    Raises:
        GeometryError: wrong shapes or a matrix that is not finite.
    """
    check_transform(T, "T")
    check_shape(points, "points", 3)
    if T.ndim == 2:
        return points @ T[:3, :3].mT + T[:3, 3]
    return (T[..., :3, :3] @ points.unsqueeze(-1)).squeeze(-1) + T[..., :3, 3]


def skew(vector: Tensor) -> Tensor:
    """Cross-product matrix (..., 3, 3): its product with w is the cross product v x w."""
    check_shape(vector, "vector", 3)
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(*vector.shape[:-1], 3, 3)


def exp_so3(phi: Tensor) -> Tensor:
    """Rotation (..., 3, 3) of a rotation vector (..., 3), radians (Rodrigues).

    Raises:
        GeometryError: wrong shape or values that are not finite.
    """
    sine, cosine, _ = _series(phi)
    hat = skew(phi)
    return _identity(phi) + sine * hat + cosine * (hat @ hat)


def log_so3(R: Tensor) -> Tensor:
    """Rotation vector (..., 3) of a rotation, its length in [0, pi]; stable at 0 and at pi.

    Raises:
        GeometryError: no rotation.
    """
    quaternion = matrix_to_quat_xyzw(R)
    vector, w = quaternion[..., :3], quaternion[..., 3:]
    squared = (vector * vector).sum(dim=-1, keepdim=True)
    small = squared < _SMALL_ANGLE**2
    length = torch.sqrt(torch.where(small, torch.ones_like(squared), squared))
    series = 2.0 / w.clamp(min=0.5) * (1.0 - squared / (3.0 * w.clamp(min=0.5) ** 2))
    return vector * torch.where(small, series, 2.0 * torch.atan2(length, w) / length)


def exp(twist: Tensor) -> Tensor:
    """Transform (..., 4, 4) of a twist (..., 6) = (rho, phi).

    Raises:
        GeometryError: wrong shape or values that are not finite.
    """
    check_shape(twist, "twist", 6)
    check_finite(twist, "twist")
    rho, phi = twist[..., :3], twist[..., 3:]
    translation = (left_jacobian(phi) @ rho.unsqueeze(-1)).squeeze(-1)
    return assemble(exp_so3(phi), translation)


def log(T: Tensor) -> Tensor:
    """Twist (..., 6) = (rho, phi) of a transform, the rotation angle in [0, pi].

    Raises:
        GeometryError: not a rigid transform.
    """
    check_transform(T, "T")
    phi = log_so3(T[..., :3, :3])
    rho = (left_jacobian_inverse(phi) @ T[..., :3, 3:]).squeeze(-1)
    return torch.cat([rho, phi], dim=-1)


def left_jacobian(phi: Tensor) -> Tensor:
    """Left Jacobian (..., 3, 3) of SO(3): exp(phi + d) = exp(J d) exp(phi) to first order."""
    _, cosine, cubic = _series(phi)
    hat = skew(phi)
    return _identity(phi) + cosine * hat + cubic * (hat @ hat)


def right_jacobian(phi: Tensor) -> Tensor:
    """Right Jacobian (..., 3, 3) of SO(3): exp(phi + d) = exp(phi) exp(J d) to first order."""
    return left_jacobian(-phi)


def left_jacobian_inverse(phi: Tensor) -> Tensor:
    """Inverse (..., 3, 3) of the left Jacobian, for angles below 2 pi."""
    check_shape(phi, "phi", 3)
    squared, small, theta = _angles(phi)
    half = 0.5 * theta
    # sin and cos of the half angle avoid the 0/0 of (1 + cos) / sin at pi.
    closed = (1.0 - half * torch.cos(half) / torch.sin(half)) / theta**2
    factor = torch.where(small, 1.0 / 12.0 + squared / 720.0, closed).unsqueeze(-1)
    hat = skew(phi)
    return _identity(phi) - 0.5 * hat + factor * (hat @ hat)


def angle(R: Tensor) -> Tensor:
    """Rotation angle (...) in [0, pi] of rotations (..., 3, 3), radians."""
    theta: Tensor = torch.linalg.vector_norm(log_so3(R), dim=-1)
    return theta


def interpolate(T_a: Tensor, T_b: Tensor, fraction: Tensor | float) -> Tensor:
    """Pose (..., 4, 4) on the screw motion from T_a (fraction 0) to T_b (fraction 1)."""
    step = log(relative(T_a, T_b))
    share = torch.as_tensor(fraction, dtype=step.dtype, device=step.device)
    check_finite(share, "fraction")
    return compose(T_a, exp(step * share.unsqueeze(-1)))


def quat_xyzw_to_matrix(quat_xyzw: Tensor) -> Tensor:
    """Rotation (..., 3, 3) of a quaternion (..., 4) in the order x y z w; normalised here.

    Raises:
        GeometryError: wrong shape, not finite or of zero length.
    """
    check_shape(quat_xyzw, "quat_xyzw", 4)
    check_finite(quat_xyzw, "quat_xyzw")
    length = torch.linalg.vector_norm(quat_xyzw, dim=-1, keepdim=True)
    if not bool((length > 1e-8).all()):
        raise GeometryError("quat_xyzw has zero length; expected a unit quaternion x y z w")
    unit = quat_xyzw / length
    vector, w = unit[..., :3], unit[..., 3, None, None]
    hat = skew(vector)
    R: Tensor = _identity(vector) + 2.0 * w * hat + 2.0 * (hat @ hat)
    return R


def matrix_to_quat_xyzw(R: Tensor) -> Tensor:
    """Quaternion (..., 4) in the order x y z w, w >= 0, of a rotation (..., 3, 3).

    The largest of the four components is computed first, so no division is by a small number.
    Source: Shepperd, Journal of Guidance and Control 1978.

    Raises:
        GeometryError: no rotation.
    """
    check_rotation(R, "R")
    xx, yy, zz = torch.diagonal(R, dim1=-2, dim2=-1).unbind(-1)
    wx, wy, wz = (
        R[..., 2, 1] - R[..., 1, 2],
        R[..., 0, 2] - R[..., 2, 0],
        R[..., 1, 0] - R[..., 0, 1],
    )
    xy, xz, yz = (
        R[..., 0, 1] + R[..., 1, 0],
        R[..., 0, 2] + R[..., 2, 0],
        R[..., 1, 2] + R[..., 2, 1],
    )
    # Row i is 4 q_i (x, y, z, w); the row with the largest q_i is the accurate one.
    rows = [
        torch.stack([1.0 + xx - yy - zz, xy, xz, wx], dim=-1),
        torch.stack([xy, 1.0 - xx + yy - zz, yz, wy], dim=-1),
        torch.stack([xz, yz, 1.0 - xx - yy + zz, wz], dim=-1),
        torch.stack([wx, wy, wz, 1.0 + xx + yy + zz], dim=-1),
    ]
    table = torch.stack(rows, dim=-2)
    best = torch.diagonal(table, dim1=-2, dim2=-1).argmax(dim=-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    chosen = table.gather(-2, index).squeeze(-2)
    unit = chosen / torch.linalg.vector_norm(chosen, dim=-1, keepdim=True)
    return torch.where(unit[..., 3:] < 0, -unit, unit)


def orthonormalise(matrix: Tensor) -> Tensor:
    """Nearest rotation (..., 3, 3) in the Frobenius norm.

    Raises:
        GeometryError: wrong shape, not finite, or (nearly) singular so that none is nearest.
    """
    check_shape(matrix, "matrix", 3, 3)
    check_finite(matrix, "matrix")
    U, sigma, Vh = torch.linalg.svd(matrix)
    if not bool((sigma[..., 1] > 1e-6 * sigma[..., 0]).all()):
        raise GeometryError("matrix has rank below 2; no rotation is nearest to it")
    sign = torch.linalg.det(U @ Vh).unsqueeze(-1)
    flip = torch.cat([torch.ones_like(sigma[..., :2]), sign], dim=-1)
    R: Tensor = (U * flip.unsqueeze(-2)) @ Vh
    return R


def _identity(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)


def _angles(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared angle, whether it is small, and an angle that is never zero, each (..., 1)."""
    squared = (phi * phi).sum(dim=-1, keepdim=True)
    small = squared < _SMALL_ANGLE**2
    return squared, small, torch.sqrt(torch.where(small, torch.ones_like(squared), squared))


def _series(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(a)/a, (1 - cos(a))/a^2 and (a - sin(a))/a^3 of the angle a, each (..., 1, 1)."""
    check_shape(phi, "phi", 3)
    check_finite(phi, "phi")
    squared, small, theta = _angles(phi)
    half = torch.sin(0.5 * theta) / theta
    sine = torch.where(small, 1.0 - squared / 6.0, torch.sin(theta) / theta)
    cosine = torch.where(small, 0.5 - squared / 24.0, 2.0 * half * half)
    cubic = torch.where(small, 1.0 / 6.0 - squared / 120.0, (theta - torch.sin(theta)) / theta**3)
    return sine.unsqueeze(-1), cosine.unsqueeze(-1), cubic.unsqueeze(-1)

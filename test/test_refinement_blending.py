"""Linear blend displacement against equations 6 to 11 in plain loops; depth against Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_scene import intrinsics
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered_stream import rendered
from torch import Tensor

from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import camera, pointmap, se3
from recon4d_ros.refinement.blend_displacement import BlendedDisplacement, Controls, enlarge

seeds = st.integers(0, 10_000)


def cloud(seed: int, count: int, spread: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, 3)) * spread + [0, 0, 4])


def controls(points: Tensor, displacements: Tensor, moving: bool = False) -> Controls:
    return Controls(points, displacements, torch.full((len(points),), moving))


def kinds(points: Tensor, moving: bool = False) -> Tensor:
    return torch.full(points.shape[:-1], moving)


def published(queries: Tensor, around: Tensor, displacements: Tensor, k: int = 4) -> np.ndarray:
    """Equations 6 to 10, one query and one control after the other."""
    result = []
    for query in queries.numpy():
        squared = [float(((query - control) ** 2).sum()) for control in around.numpy()]
        nearest = sorted(range(len(squared)), key=squared.__getitem__)[:k]
        weights = [1 / squared[i] for i in nearest]
        total = sum(weights)
        result.append(
            sum(
                w / total * displacements.numpy()[i] for w, i in zip(weights, nearest, strict=True)
            )
        )
    return np.array(result)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 8))
def test_without_fading_it_is_the_published_equations(seed, count, k):
    around, moved = cloud(seed, count), cloud(seed + 1, count) * 0.1
    queries = cloud(seed + 2, 30)
    found = BlendedDisplacement(controls(around, moved), k).at(queries, kinds(queries))
    np.testing.assert_allclose(found, published(queries, around, moved, k), rtol=0.02, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(seeds, st.tuples(*[st.floats(-1, 1)] * 3))
def test_a_constant_displacement_is_reproduced_exactly(seed, shift):
    around = cloud(seed, 50)
    shift = torch.tensor(shift, dtype=torch.float64)
    field = BlendedDisplacement(controls(around, shift.expand(50, 3)))
    queries = cloud(seed + 1, 100, 3.0)
    found = field.at(queries, kinds(queries))
    torch.testing.assert_close(found, shift.expand(100, 3), atol=1e-12, rtol=0)


def test_on_a_control_it_is_the_controls_own():
    around, moved = cloud(0, 200), cloud(1, 200)
    field = BlendedDisplacement(controls(around, moved), reach=3.0)
    found = field.at(around, kinds(around))
    # The softening, 0.001 of the distance, lets the neighbours in by its square over theirs.
    assert float((found - moved).abs().median()) < 1e-3
    assert float((found - moved).abs().max()) < 0.3


def test_coincident_controls_and_single_ones_give_no_nan():
    around = cloud(0, 1).expand(6, 3)
    moved = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    for count in (6, 2, 1):
        for reach in (3.0, np.inf):
            field = BlendedDisplacement(controls(around[:count], moved[:count]), reach=reach)
            found = field.at(around[:1], kinds(around[:1]))
            torch.testing.assert_close(found[0], moved[: min(count, 4)].mean(0), atol=0.3, rtol=0)
            assert bool(field.at(cloud(5, 9), kinds(cloud(5, 9))).isfinite().all())


def test_without_controls_nothing_moves():
    none = torch.zeros(0, 3, dtype=torch.float64)
    queries = cloud(0, 9)
    found = BlendedDisplacement(controls(none, none), reach=3.0).at(queries, kinds(queries))
    assert torch.equal(found, torch.zeros_like(queries))


def test_influence_fades_far_from_every_control_and_not_near_them():
    grid = torch.cartesian_prod(torch.arange(10), torch.arange(10)).double() * 0.1
    around = torch.cat([grid, torch.full((100, 1), 4.0).double()], dim=1)
    shift = torch.ones(100, 3, dtype=torch.float64)
    field = BlendedDisplacement(controls(around, shift), reach=3.0)
    near, far = torch.tensor([[0.45, 0.45, 4.0], [0.45, 0.45, 9.0]], dtype=torch.float64)
    found = field.at(torch.stack([near, far]), torch.zeros(2, dtype=torch.bool))
    assert float(found[0].min()) > 0.9 and float(found[1].max()) < 1e-6


def test_a_surface_listens_to_its_own_kind_only():
    still, moving = cloud(0, 40), cloud(1, 40)
    both = Controls(
        torch.cat([still, moving]),
        torch.cat([torch.zeros(40, 3), torch.ones(40, 3)]).double(),
        torch.arange(80) >= 40,
    )
    field, queries = BlendedDisplacement(both), cloud(2, 30)
    assert torch.equal(field.at(queries, kinds(queries)), torch.zeros_like(queries))
    torch.testing.assert_close(field.at(queries, kinds(queries, True)), torch.ones_like(queries))
    alone = BlendedDisplacement(controls(still, torch.ones_like(still)))
    assert not bool(alone.at(queries, kinds(queries, True)).any())


def image(size: tuple[int, int] = (240, 320)) -> tuple[Tensor, Tensor]:
    """Points of a rendered room with moving things, and its mask."""
    frame = rendered("demo", 10)
    assert frame.depth.shape == size
    return pointmap.from_depth(frame.depth, frame.intrinsics), frame.dynamic_mask


def wave(points: Tensor) -> Tensor:
    """A smooth displacement of a few centimetres."""
    x, y, z = points.unbind(dim=-1)
    return 0.03 * torch.stack([torch.sin(2 * x), torch.cos(2 * y), torch.sin(z + x)], dim=-1)


def on_grid(points: Tensor, mask: Tensor, step: int = 12) -> Controls:
    grid = (slice(step // 2, None, step),) * 2
    at = points[grid].reshape(-1, 3)
    moving = mask[grid].reshape(-1)
    return Controls(at, wave(at) + 0.05 * moving.unsqueeze(-1), moving)


def test_an_image_is_blended_as_its_pixels_one_by_one():
    points, mask = image()
    points[:20, :20] = torch.nan
    field = BlendedDisplacement(on_grid(points[20:], mask[20:]), reach=3.0)
    every, coarse = field.over(points, mask, 1), field.over(points, mask, 4)
    known = points.isfinite().all(dim=-1)
    assert torch.equal(every[known], field.at(points[known], mask[known]))
    for found in (every, coarse):
        assert torch.equal(found.isfinite().all(dim=-1), known)
    error = torch.linalg.vector_norm((coarse - every)[known], dim=-1)
    size = torch.linalg.vector_norm(every[known], dim=-1)
    assert float(error.mean() / size.mean()) < 0.03
    # Nothing bleeds over outlines: moving surfaces go 5 cm further than static ones.
    assert float((error > 0.025).float().mean()) < 1e-3


def test_nothing_bleeds_over_the_edge_of_the_mask_on_one_flat_surface():
    points, _ = image()
    points = points / points[..., 2:] * 3.0
    mask = torch.zeros(240, 320, dtype=torch.bool)
    mask[60:180, 101:222] = True
    at = on_grid(points, mask)
    shift = at.moving.to(points).unsqueeze(-1).expand_as(at.points)
    found = BlendedDisplacement(Controls(at.points, shift, at.moving)).over(points, mask)
    torch.testing.assert_close(found[..., 0], mask.float())


def test_a_constant_displacement_of_an_image_is_exact_at_every_pixel():
    points, mask = image()
    at = on_grid(points, mask)
    shift = torch.tensor([0.01, -0.02, 0.03]).expand(len(at.points), 3)
    field = BlendedDisplacement(Controls(at.points, shift, at.moving))
    torch.testing.assert_close(field.over(points, mask), shift[0].expand_as(points))


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(2, 5))
def test_enlarging_reproduces_a_plane_between_the_nodes(height, width, step):
    pixels = camera.pixel_grid((height, width), torch.float64)
    plane = torch.cat(
        [pixels, pixels @ torch.tensor([[0.3], [-0.7]], dtype=torch.float64)], dim=-1
    )
    nodes = plane[step // 2 :: step, step // 2 :: step]
    if nodes.numel() == 0:
        return
    last = plane[step // 2 :: step, step // 2 :: step][-1, -1, :2]
    found = enlarge(nodes, (height, width), step)
    x, y = (pixels[..., axis].clamp(step // 2, float(last[axis])) for axis in (0, 1))
    expected = torch.stack([x, y, 0.3 * x - 0.7 * y], dim=-1)
    torch.testing.assert_close(found, expected)


def test_images_smaller_than_a_step_and_unknown_ones_are_blended():
    points, mask = image()
    field = BlendedDisplacement(on_grid(points, mask))
    for rows in (1, 2, 3):
        small = points[:rows, :2]
        assert bool(field.over(small, mask[:rows, :2]).isfinite().all())
    assert bool(field.over(torch.full_like(points, torch.nan), mask).isnan().all())


def test_wrong_shapes_and_unknown_controls_are_errors():
    with pytest.raises(GeometryError, match="not finite"):
        controls(cloud(0, 3) * torch.nan, cloud(0, 3))
    with pytest.raises(GeometryError, match="displacements"):
        controls(cloud(0, 3), cloud(0, 4))
    with pytest.raises(GeometryError, match="bool"):
        Controls(cloud(0, 3), cloud(0, 3), torch.zeros(3))


def test_closed_form_depth_is_where_adam_ends():
    """Acceptance: within 1e-3 relative of the optimum of sum |X(D) - X~|^2 over depth alone."""
    size, generator = (18, 24), torch.Generator().manual_seed(0)
    K = intrinsics(*size)
    depth = 2.0 + torch.rand(size, generator=generator, dtype=torch.float64)
    T = se3.exp(torch.tensor([0.3, -1.0, 2.0, 0.4, 0.1, -0.7], dtype=torch.float64))
    displacement = 0.1 * torch.randn((*size, 3), generator=generator, dtype=torch.float64)
    wanted = pointmap.transform(T, pointmap.from_depth(depth, K) + displacement)
    free = depth.clone().requires_grad_(True)
    adam = torch.optim.Adam([free], lr=0.01, betas=(0.9, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, 600)
    for _ in range(600):
        adam.zero_grad()
        ((pointmap.transform(T, pointmap.from_depth(free, K)) - wanted) ** 2).sum().backward()
        adam.step()
        decay.step()
    found = pointmap.depth_towards(pointmap.from_depth(depth, K), displacement, 10.0)
    relative = (found - free.detach()).norm() / free.detach().norm()
    assert float(relative) < 1e-3
    # The spec's own formula, with world rays from the camera's centre.
    ray = pointmap.transform(T, pointmap.from_depth(torch.ones_like(depth), K)) - T[:3, 3]
    star = (ray * (wanted - T[:3, 3])).sum(-1) / (ray * ray).sum(-1)
    torch.testing.assert_close(found, star)


def test_depth_follows_its_ray_and_stays_within_its_bounds():
    K = intrinsics(6, 8)
    points = pointmap.from_depth(torch.full((6, 8), 2.0, dtype=torch.float64), K)
    points[0, 0] = torch.nan
    for share, expected in ((0.1, 2.2), (0.9, 2.5), (-0.9, 1.6)):
        found = pointmap.depth_towards(points, points * share, 0.25)
        assert bool(found[0, 0].isnan())
        torch.testing.assert_close(found[1:], torch.full((5, 8), expected).double())
    sideways = torch.linalg.cross(points, torch.ones_like(points))
    torch.testing.assert_close(
        pointmap.depth_towards(points, sideways, 0.25)[1:], points[1:, :, 2]
    )

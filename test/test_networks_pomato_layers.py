"""Slow twins of POMATO's layers, in float64 and written another way."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from pomato_fixtures import TINY, position_table, rule_net
from torch.nn import functional

from recon4d_ros.networks.pomato.blocks import CrossAttention, SelfAttention
from recon4d_ros.networks.pomato.dpt_head import Fusion, activate
from recon4d_ros.networks.pomato.motion_module import MotionModule, TemporalAttention, sinusoids
from recon4d_ros.networks.pomato.rope import rope_table, rotate

WIDTH, HEADS = 32, 2
HEAD_WIDTH = WIDTH // HEADS


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(module):
    """Random weights everywhere, also where training starts at zero."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.4 * randn(*parameter.shape, seed=number))
    return module.double().eval()


def turned(token, y, x):
    """One head's channels as complex numbers, turned by their place on the grid."""
    out = []
    for half, place in zip(np.split(token.numpy(), 2), (y, x), strict=True):
        planes = len(half) // 2
        z = half[:planes] + 1j * half[planes:]
        z = z * np.exp(1j * place * 100.0 ** (-2.0 * np.arange(planes) / len(half)))
        out += [z.real, z.imag]
    return torch.from_numpy(np.concatenate(out))


def all_turned(heads, grid):
    """Tokens (B, heads, N, d), one by one."""
    out = torch.empty_like(heads)
    for b, h, n in np.ndindex(*heads.shape[:3]):
        out[b, h, n] = turned(heads[b, h, n], *divmod(n, grid[1]))
    return out


def plain_attention(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def split(x):
    return torch.stack(x.split(HEAD_WIDTH, dim=-1), dim=1)


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (4, 2)])
@pytest.mark.parametrize("in_place", [False, True])
def test_rotation_is_a_product_of_complex_numbers(grid, in_place):
    heads = randn(2, HEADS, grid[0] * grid[1], HEAD_WIDTH)
    table = rope_table(grid, HEAD_WIDTH, heads)
    with torch.set_grad_enabled(not in_place):
        torch.testing.assert_close(rotate(heads, table), all_turned(heads, grid))


def test_logits_depend_on_relative_positions_only():
    grid = (6, 7)
    q, k = randn(HEAD_WIDTH, seed=1), randn(HEAD_WIDTH, seed=2)
    table = rope_table(grid, HEAD_WIDTH, q)
    every = [rotate(u.expand(1, 1, 42, -1), table)[0, 0].unflatten(0, grid) for u in (q, k)]
    near = every[0][1, 2] @ every[1][3, 5]
    far = every[0][3, 3] @ every[1][5, 6]
    torch.testing.assert_close(near, far)


def test_rotation_tables_are_precise_in_every_type():
    for dtype, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        like = torch.zeros(1, dtype=dtype)
        table = rope_table((40, 40), 64, like)
        assert table.cos.dtype == kept
        assert rotate(torch.ones(1, 1, 1600, 64, dtype=dtype), table).dtype == dtype
        assert table is rope_table((40, 40), 64, like)


def test_tables_made_in_inference_serve_in_training():
    with torch.inference_mode():
        table = rope_table((5, 9), HEAD_WIDTH, torch.zeros(1))
    heads = torch.ones(1, 1, 45, HEAD_WIDTH, requires_grad=True)
    rotate(heads, table).sum().backward()
    assert heads.grad is not None


@torch.no_grad()
def test_self_attention():
    layer, grid = seeded(SelfAttention(WIDTH, HEADS)), (2, 3)
    x = randn(2, 6, WIDTH)
    q, k, v = (split(part) for part in layer.qkv(x).split(WIDTH, dim=-1))
    out = plain_attention(all_turned(q, grid), all_turned(k, grid), v)
    expected = layer.proj(torch.cat(out.unbind(1), dim=-1))
    torch.testing.assert_close(layer(x, rope_table(grid, HEAD_WIDTH, x)), expected)


@torch.no_grad()
def test_cross_attention_between_two_grids():
    layer, grid_x, grid_y = seeded(CrossAttention(WIDTH, HEADS)), (2, 3), (3, 5)
    x, y = randn(2, 6, WIDTH), randn(2, 15, WIDTH, seed=1)
    q = all_turned(split(layer.projq(x)), grid_x)
    k, v = all_turned(split(layer.projk(y)), grid_y), split(layer.projv(y))
    expected = layer.proj(torch.cat(plain_attention(q, k, v).unbind(1), dim=-1))
    ropes = (rope_table(grid, HEAD_WIDTH, x) for grid in (grid_x, grid_y))
    torch.testing.assert_close(layer(x, y, *ropes), expected)


@pytest.mark.parametrize("num_frames", [4, 6, 12])
@torch.no_grad()
def test_temporal_attention_over_all_frames(num_frames):
    layer = seeded(TemporalAttention(WIDTH, num_frames))
    x = randn(5, num_frames, WIDTH)
    placed = x + layer.pos_encoder.pe
    q, k, v = (
        torch.stack(projection(placed).split(WIDTH // 8, dim=-1), dim=1)
        for projection in (layer.to_q, layer.to_k, layer.to_v)
    )
    expected = layer.to_out(torch.cat(plain_attention(q, k, v).unbind(1), dim=-1))
    torch.testing.assert_close(layer(x), expected)


def test_table_of_frame_positions():
    torch.testing.assert_close(sinusoids(12, 64)[None], position_table(12, 64))


@torch.no_grad()
def test_a_motion_module_sees_each_pixel_alone():
    """Beside the norm of a frame, only the same pixel of other frames changes a pixel."""
    module = seeded(MotionModule(WIDTH, 4))
    module.temporal_transformer.norm = torch.nn.Identity()
    maps = randn(8, WIDTH, 2, 3)
    changed = maps.clone()
    changed[2, :, 1, 2] += 1.0
    moved = (module(changed) - module(maps)).abs().amax(1) > 1e-9
    expected = torch.zeros(8, 2, 3, dtype=torch.bool)
    expected[:4, 1, 2] = True
    assert torch.equal(moved, expected)


@torch.no_grad()
def test_an_untrained_motion_module_changes_nothing():
    maps = torch.randn(8, WIDTH, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(MotionModule(WIDTH, 4)(maps), maps)


@torch.no_grad()
def test_norm_of_nearly_constant_maps_in_float32():
    """In channels-last memory torch's own norm keeps three digits here."""
    module = MotionModule(WIDTH, 2)
    maps = 1.0 + 1e-3 * randn(2, WIDTH, 2, 3)
    last = maps.float().contiguous(memory_format=torch.channels_last)
    norms = []
    transformer = module.temporal_transformer
    transformer.norm.register_forward_hook(lambda _, __, out: norms.append(out))
    module(last)
    module.double()(last.double())
    torch.testing.assert_close(norms[0].double(), norms[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 5), (2, 2), (1, 4)])
@torch.no_grad()
def test_projection_and_upsampling_commute(size):
    layer = seeded(Fusion(WIDTH))
    path, level = randn(2, WIDTH, *size), randn(2, WIDTH, *size, seed=1)
    for skip in (level, None):
        joined = path if skip is None else path + layer.resConfUnit1(skip)
        refined = layer.resConfUnit2(joined)
        large = functional.interpolate(
            refined, scale_factor=2, mode="bilinear", align_corners=True
        )
        torch.testing.assert_close(layer(path, skip), layer.out_conv(large))


def test_activation_of_a_ray():
    """Along a ray, the distance is expm1 of the raw length; the confidence starts at one."""
    raw = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    raw[0, :, 0, 0] = torch.tensor([0.0, 0.6, 0.8, 0.0])
    raw[0, :, 0, 1] = torch.tensor([0.0, 0.0, -3.0, 2.0])
    points, conf = activate(raw)
    unit = math.expm1(1.0)
    expected = [[0.0, 0.6 * unit, 0.8 * unit], [0.0, 0.0, -math.expm1(3.0)], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(points[0, 0], torch.tensor(expected, dtype=torch.float64))
    expected_conf = torch.tensor([2.0, 1.0 + math.exp(2.0), 2.0], dtype=torch.float64)
    torch.testing.assert_close(conf[0, 0], expected_conf)


def test_activation_leaves_half_precision():
    points, conf = activate(torch.full((1, 4, 1, 1), 12.0, dtype=torch.bfloat16))
    assert points.dtype == conf.dtype == torch.float32
    assert bool(points.isfinite().all() and conf.isfinite().all())


def test_every_part_passes_gradients_on():
    net = rule_net(dataclasses.replace(TINY, temporal_length=2))
    features = net.encode(torch.rand(2, 3, 32, 48) - 0.5)
    tokens1, tokens2 = net.decode(features, features)
    outputs = [net.head(number, tokens1 if number == 1 else tokens2) for number in (1, 2, 3)]
    sum(out.points.sum() + out.conf.sum() for out in outputs).backward()
    idle = {name for name, held in net.named_parameters() if held.grad is None}
    unused = {
        f"downstream_head{head}.dpt.scratch.refinenet4.resConfUnit1.conv{conv}.{kind}"
        for head in (1, 2, 3)
        for conv in (1, 2)
        for kind in ("weight", "bias")
    }
    assert idle == unused | {"mask_token"}

"""POMATO against arrays that the published implementation gave with small random weights."""

import numpy as np
import pytest
import torch
from pomato_fixtures import (
    PAIR_FIELDS,
    TINY,
    WINDOW_FIELDS,
    arrays,
    relative_l2,
    require,
    rule_tensor,
)

from recon4d_ros.networks.pomato import PomatoNet

# The arrays were computed in float64 and stored as float32.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 3e-7}
CASES = ("landscape", "portrait", "mixed", "square", "symmetrised")
MODES = ("tracking", "fast_recon", "video_depth")


@pytest.fixture(scope="module", params=TOLERANCE, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def pairwise(dtype):
    return PomatoNet.from_file(require("tiny_pairwise.safetensors"), 4, 4).to(dtype)


@pytest.fixture(scope="module")
def temporal(dtype):
    return PomatoNet.from_file(require("tiny_temporal.safetensors"), 4, 4).to(dtype)


def image(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).to(dtype)


@pytest.mark.parametrize("case", CASES)
def test_pairs(pairwise, dtype, case):
    held = arrays("tiny_pairwise_io.npz")
    images = (image(held[f"{case}/in_img{number}"], dtype) for number in (1, 2))
    out = pairwise.pair(*images)
    for ours, theirs in PAIR_FIELDS.items():
        assert getattr(out, ours).dtype == dtype
        error = relative_l2(getattr(out, ours), held[f"{case}/{theirs}"])
        assert error < TOLERANCE[dtype], (ours, error)


@pytest.mark.parametrize("mode", MODES)
def test_windows(temporal, dtype, mode):
    held = arrays("tiny_temporal_io.npz")
    out = temporal.window(image(held["in_clip"], dtype), mode)
    for ours, theirs in WINDOW_FIELDS.items():
        error = relative_l2(getattr(out, ours)[0], held[f"{mode}/{theirs}"])
        assert error < TOLERANCE[dtype], (ours, error)


def test_windows_of_two_clips(temporal, dtype):
    held = arrays("tiny_temporal_io.npz")
    out = temporal.window(image(held["batch2/in_clip"], dtype), "fast_recon")
    for ours, theirs in WINDOW_FIELDS.items():
        maps = getattr(out, ours)
        assert maps.shape[:2] == (2, 4)
        error = relative_l2(maps.flatten(0, 1), held[f"batch2/{theirs}"])
        assert error < TOLERANCE[dtype], (ours, error)


@torch.no_grad()
def test_activations(pairwise, dtype):
    expected = arrays("tiny_pairwise_acts.npz")
    held = arrays("tiny_pairwise_io.npz")
    ours, hooks = {}, []

    def keep(module, name):
        hooks.append(module.register_forward_hook(lambda _, __, out: ours.update({name: out})))

    keep(pairwise.patch_embed, "patch_tokens")
    keep(pairwise.enc_blocks[0], "enc_block0")
    for number in (1, 2):
        keep(pairwise.dec_blocks[number - 1], f"dec1_{number}")
        keep(pairwise.dec_blocks2[number - 1], f"dec2_{number}")
    features = []
    for number in (1, 2):
        features.append(pairwise.encode(image(held[f"landscape/in_img{number}"], dtype)))
        ours[f"enc_out_{number}"] = features[-1].tokens
        ours |= {f"{name}_{number}": ours.pop(name) for name in ("patch_tokens", "enc_block0")}
    tokens1, tokens2 = pairwise.decode(*features)
    ours["dec1_10"], ours["dec2_10"] = tokens1.levels[3], tokens2.levels[3]
    ours["head1_raw"] = pairwise.downstream_head1.dpt(tokens1)
    ours["head3_raw"] = pairwise.downstream_head3.dpt(tokens2)
    for hook in hooks:
        hook.remove()
    compared = expected.keys() - {"pos_1"}
    assert compared <= ours.keys()
    for name in compared:
        error = relative_l2(ours[name], expected[name])
        assert error < TOLERANCE[dtype], (name, error)


@torch.no_grad()
def test_a_motion_module_alone(temporal, dtype):
    held = arrays("tiny_motion_module0_head1.npz")
    module = temporal.downstream_head1.dpt.motion_modules[0]
    error = relative_l2(module(image(held["in_x"], dtype)), held["out"])
    assert error < TOLERANCE[dtype]


def test_the_rule_of_weights_gives_the_stored_ones():
    """So that full-size networks by the same rule mean something."""
    net = PomatoNet.from_file(require("tiny_pairwise.safetensors"), 4, 4)
    assert net.sizes == TINY
    for name, held in net.named_parameters():
        assert torch.equal(held, rule_tensor(name, tuple(held.shape))), name

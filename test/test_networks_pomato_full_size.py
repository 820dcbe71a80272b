"""The published sizes: names and shapes of every tensor, and two runs with weights by rule.

The runs take minutes and gigabytes: set RECON4D_FULL_SIZE=1 to have them.
"""

import dataclasses
import os

import pytest
import torch
from pomato_fixtures import (
    PAIR_FIELDS,
    WINDOW_FIELDS,
    arrays,
    relative_l2,
    require,
    rule_images,
    rule_net,
)

from recon4d_ros.networks.pomato import PomatoNet, PomatoSizes

PAIRWISE = PomatoSizes()
TEMPORAL = dataclasses.replace(PAIRWISE, temporal_length=12)
SIZE = (160, 224)
GRID = (..., slice(3, None, 8), slice(3, None, 8))

full_size = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("RECON4D_FULL_SIZE") != "1",
        reason="takes minutes and gigabytes; set RECON4D_FULL_SIZE=1",
    ),
]


@pytest.fixture(scope="module", params=[PAIRWISE, TEMPORAL], ids=["pairwise", "temporal"])
def meta_net(request):
    with torch.device("meta"):
        return PomatoNet(request.param)


def published_shapes(name):
    lines = require(name).read_text().splitlines()
    rows = (line.split("\t") for line in lines)
    return {key: tuple(int(length) for length in shape.split("x")) for key, shape in rows}


def test_names_and_shapes_are_those_of_the_published_models(meta_net):
    kind = "pairwise" if meta_net.temporal_length is None else "temporal"
    published = published_shapes(f"pomato_{kind}_keys.txt")
    ours = {name: tuple(held.shape) for name, held in meta_net.state_dict().items()}
    second_names = {
        f"downstream_head{head}.dpt.scratch.layer{level + 1}_rn.weight": ours[
            f"downstream_head{head}.dpt.scratch.layer_rn.{level}.weight"
        ]
        for head in (1, 2, 3)
        for level in range(4)
    }
    assert ours | second_names == published


def test_parameters_are_as_many_as_published(meta_net):
    count = sum(parameter.numel() for parameter in meta_net.parameters())
    assert count == (591_372_876 if meta_net.temporal_length is None else 678_009_420)


def test_hooks_are_the_published_ones():
    assert PAIRWISE.hooks == (0, 6, 9, 12)


class TestRuns:
    pytestmark = full_size

    def test_pairwise(self):
        expected = arrays("full_pairwise_224x160_grid.npz")
        net = rule_net(PAIRWISE)
        out = net.pair(rule_images((1, 3, *SIZE), 101), rule_images((1, 3, *SIZE), 102))
        errors = {}
        for ours, theirs in PAIR_FIELDS.items():
            maps = getattr(out, ours)
            maps = maps.movedim(-1, 1)[GRID].movedim(1, -1) if maps.ndim == 4 else maps[GRID]
            errors[ours] = relative_l2(maps, expected[theirs])
        print(errors)
        assert max(errors.values()) < 2e-5

    def test_temporal(self):
        expected = arrays("full_temporal12_tracking_224x160_grid.npz")
        net = rule_net(TEMPORAL)
        out = net.window(rule_images((1, 12, 3, *SIZE), 111), "tracking")
        errors = {}
        for ours, theirs in WINDOW_FIELDS.items():
            maps = getattr(out, ours)[0]
            maps = maps.movedim(-1, 1)[GRID].movedim(1, -1) if maps.ndim == 4 else maps[GRID]
            errors[ours] = relative_l2(maps, expected[theirs])
        print(errors)
        assert max(errors.values()) < 2e-5

"""What must not change POMATO's output, and what it refuses."""

import dataclasses

import pytest
import torch
from pomato_fixtures import TINY, rule_images, rule_net

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato import Features, HookTokens, PomatoNet, window_pairs

SIZE = (48, 80)


@pytest.fixture(scope="module")
def pairwise():
    return rule_net(TINY).double()


@pytest.fixture(scope="module", params=[6, 12])
def temporal(request):
    return rule_net(dataclasses.replace(TINY, temporal_length=request.param)).double()


def images(*shape, seed=7):
    return rule_images(shape, seed).double()


def maps_of(out):
    return {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}


def assert_same(ours, expected):
    """Equal up to the rounding of float64, which depends on the batch."""
    for name, maps in maps_of(expected).items():
        torch.testing.assert_close(getattr(ours, name), maps, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("size1", "size2"), [((48, 80), (48, 80)), ((80, 48), (16, 32)), ((16, 16), (48, 16))]
)
def test_sizes_of_the_outputs(pairwise, size1, size2):
    out = pairwise.pair(images(2, 3, *size1), images(2, 3, *size2))
    assert out.points_1.shape == (2, *size1, 3)
    assert out.conf_1.shape == (2, *size1)
    assert out.points_2_in_1.shape == out.matching_2_in_1.shape == (2, *size2, 3)
    assert out.conf_2.shape == out.conf_matching.shape == (2, *size2)
    for name, maps in maps_of(out).items():
        assert bool(maps.isfinite().all()) and not maps.requires_grad
        assert "conf" not in name or bool((maps > 1).all())


@pytest.mark.parametrize("size2", [(48, 80), (80, 48)])
def test_a_batch_is_its_items(pairwise, size2):
    first, second = images(3, 3, *SIZE), images(3, 3, *size2, seed=8)
    together = pairwise.pair(first, second)
    for item in range(3):
        alone = pairwise.pair(first[item, None], second[item, None])
        assert_same(
            alone, type(together)(*(maps[item, None] for maps in maps_of(together).values()))
        )


def test_chunks_do_not_matter(pairwise, temporal):
    first, second = images(3, 3, *SIZE), images(3, 3, *SIZE, seed=8)
    assert_same(pairwise.pair(first, second, chunk=1), pairwise.pair(first, second, chunk=2))
    clip = images(1, temporal.temporal_length, 3, 32, 48)
    small = temporal.window(clip, "tracking", chunk=1)
    assert_same(small, temporal.window(clip, "tracking", chunk=100))


def test_clips_do_not_see_each_other(temporal):
    clips = images(2, temporal.temporal_length, 3, 32, 48)
    together = temporal.window(clips, "fast_recon")
    for clip in range(2):
        alone = temporal.window(clips[clip, None], "fast_recon")
        assert_same(
            alone, type(together)(*(maps[clip, None] for maps in maps_of(together).values()))
        )


@pytest.mark.parametrize("mode", ["tracking", "fast_recon", "video_depth"])
def test_without_motion_a_window_is_its_pairs(pairwise, temporal, mode):
    num_frames = temporal.temporal_length
    still = rule_net(temporal.sizes)
    with torch.no_grad():
        for name, parameter in still.named_parameters():
            if "proj_out" in name:
                parameter.zero_()
    clip = images(1, num_frames, 3, 32, 48)
    out = still.double().window(clip, mode)
    views1, views2 = window_pairs(mode, num_frames)
    pairs = pairwise.pair(clip[0, views1], clip[0, views2])
    for ours, expected in zip(maps_of(out).values(), maps_of(pairs).values(), strict=True):
        torch.testing.assert_close(ours[0], expected, rtol=1e-8, atol=1e-10)


def test_frames_of_a_window_are_mixed(temporal):
    clip = images(1, temporal.temporal_length, 3, 32, 48)
    other = clip.clone()
    other[0, 1] = -other[0, 1]
    before, after = (temporal.window(c, "video_depth").view1_points for c in (clip, other))
    assert float((before - after)[0, 2:].abs().max()) > 1e-3


def test_heads_on_demand(temporal):
    clip = images(1, temporal.temporal_length, 3, 32, 48)
    every, some = temporal.window(clip, "tracking"), temporal.window(clip, "tracking", heads=(3,))
    assert some.view1_points is None and some.view2_conf is None
    assert torch.equal(some.matching_points, every.matching_points)


@torch.no_grad()
def test_streaming_from_caches_gives_the_window(temporal):
    """Each frame encoded once by itself, pairs decoded one by one, one frame of head 3 wanted."""
    num_frames = temporal.temporal_length
    clip = images(1, num_frames, 3, 32, 48)
    cache = [temporal.encode(clip[:, t]) for t in range(num_frames)]
    tokens = [temporal.decode(features, cache[0])[1] for features in cache]
    newest = temporal.head(3, HookTokens.cat(tokens), frames=[num_frames - 1, 0])
    out = temporal.window(clip, "tracking")
    for frame, points, conf in zip((-1, 0), newest.points, newest.conf, strict=True):
        torch.testing.assert_close(points, out.matching_points[0, frame], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(conf, out.matching_conf[0, frame], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_features_can_be_joined_and_picked(pairwise):
    both = pairwise.encode(images(2, 3, *SIZE))
    joined = Features.cat([both[1:], both[:1]])
    assert torch.equal(joined[[1, 0]].tokens, both.tokens)
    assert both.grid == (3, 5)
    with pytest.raises(ModelError, match=r"grids \[\(1, 1\), \(3, 5\)\]"):
        Features.cat([both, pairwise.encode(images(1, 3, 16, 16))])
    with pytest.raises(ModelError, match="2 first and 1 second"):
        pairwise.decode(both, both[:1])


def test_bfloat16_autocast_stays_near():
    net = rule_net(TINY)
    first, second = images(1, 3, *SIZE).float(), images(1, 3, *SIZE, seed=8).float()
    exact = net.pair(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.pair(first, second)
        features = net.encode(first)
    for name, maps in maps_of(exact).items():
        ours = getattr(rough, name)
        assert ours.dtype == torch.float32
        assert float((ours - maps).norm() / maps.norm()) < 0.1, name
    # Tokens from under autocast meet heads outside of it.
    with torch.no_grad():
        low = Features(features.tokens.bfloat16().float(), features.grid)
        tokens, _ = net.decode(low, low)
        low_tokens = HookTokens(tuple(level.bfloat16() for level in tokens.levels), tokens.grid)
        assert net.head(1, low_tokens).points.dtype == torch.float32


def test_fresh_networks_of_other_widths():
    sizes = dataclasses.replace(
        TINY, encoder_width=48, encoder_heads=2, encoder_hidden=80, decoder_depth=3
    )
    net = PomatoNet(sizes).eval()
    out = net.pair(images(1, 3, 32, 32), images(1, 3, 32, 32))
    assert bool(out.points_1.isfinite().all())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 48, 81), "multiples of 16"),
        (torch.zeros(3, 48, 80), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 48, 80), r"expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 48, 80), "none empty"),
        (torch.zeros(1, 3, 48, 80, dtype=torch.uint8), "expected floats"),
    ],
)
def test_unfit_images(pairwise, image, message):
    with pytest.raises(ModelError, match=message):
        pairwise.pair(image, image)


def test_the_wrong_model_is_named(pairwise, temporal):
    length, other = temporal.temporal_length, temporal.temporal_length + 1
    assert pairwise.temporal_length is None
    temporal.require_temporal(length)
    pairwise.require_pairwise()
    with pytest.raises(ModelError, match=f"a temporal model of {length} frames where a pairwise"):
        temporal.pair(images(1, 3, 32, 32), images(1, 3, 32, 32))
    with pytest.raises(ModelError, match=f"a pairwise model where a temporal model of {length}"):
        pairwise.require_temporal(length)
    with pytest.raises(ModelError, match=f"of {length} frames where a temporal model of {other}"):
        temporal.window(images(1, other, 3, 32, 32), "tracking")


def test_unknown_modes_and_heads(temporal):
    clip = images(1, temporal.temporal_length, 3, 16, 16)
    with pytest.raises(ModelError, match="tracking, fast_recon, video_depth"):
        temporal.window(clip, "backwards")
    with pytest.raises(ModelError, match="heads are"):
        temporal.window(clip, "tracking", heads=(4,))
    features = temporal.encode(clip[0])
    tokens, _ = temporal.decode(features, features)
    with pytest.raises(ModelError, match="tokens of 5 pairs"):
        temporal.head(1, tokens[:5])

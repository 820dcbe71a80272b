"""Fixed-lag alignment of a stream of pairs, against the truth of rendered scenes."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from recon4d_ros.alignment import pair_similarity, similarity
from recon4d_ros.alignment.fixed_lag import FixedLag
from recon4d_ros.alignment.pair_similarity import PairSamples
from recon4d_ros.config import FixedLagConfig
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import robust, sim3
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.pairs import NoisyPairs, RememberedPairs

WIDTH, FRAMES = 80, 60
# Of normal deviations along a direction and of lengths across it, over the standard deviation.
_MEDIANS = (robust.HALF_NORMAL_MEDIAN, robust.RAYLEIGH_MEDIAN, robust.RAYLEIGH_MEDIAN)


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small tensors: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=8)
def network(name: str, noise: bool = True) -> NoisyPairs:
    scene = scenes.named(name, FRAMES, WIDTH)
    return RememberedPairs(scene) if noise else NoisyPairs(scene, along=0.0, across_px=0.0)


@lru_cache(maxsize=1)
def long_network() -> NoisyPairs:
    """A camera that goes there and back without end."""
    return RememberedPairs(scenes.named("static_room", 20, 32), frame_of=_there_and_back)


def pairs_of(net, lag, index):
    """Those the aligner asks for, both ways round."""
    partners = lag.partners(index) if index > 1 else (0,)
    return [pair for k in partners for pair in (net.pair(index, k), net.pair(k, index))]


def stream(net, num_frames, change=None):
    """Poses when handed out and final ones, and the aligner."""
    lag, arrival, final = FixedLag(FixedLagConfig(), net.scene.intrinsics), {}, {}
    for index in range(1, num_frames):
        pairs = pairs_of(net, lag, index)
        moving = {pair.second: net.moving(pair.second) for pair in pairs}
        pairs = pairs if change is None else change(index, pairs)
        arrival[index] = lag.push(index, pairs, moving).T_map_cam
        final.update({number: frame.T_map_cam for number, frame in lag.frames.items()})
    return arrival, final, lag


def ate(net, poses) -> float:
    """RMSE of positions after a similarity, m."""
    found = torch.stack([poses[index][:3, 3] for index in poses])
    truth = torch.stack([net.T_world_cam(index)[:3, 3] for index in poses])
    S = sim3.fit(found, truth)
    return float((found @ S[:3, :3].mT + S[:3, 3] - truth).square().sum(-1).mean().sqrt())


def test_exact_pairs_of_any_unit_give_exact_poses_and_depth():
    net = network("static_room", noise=False)
    arrival, final, lag = stream(net, 20)
    assert ate(net, arrival) < 2e-5 and ate(net, final) < 2e-5
    newest = lag.frames[19]
    scale = float(sim3.split(sim3.fit(*_centres(net, final)))[0])
    truth = net.depth(19).float()
    assert torch.allclose(newest.depth_map() * scale, truth, rtol=1e-3)


def _centres(net, poses):
    found = torch.stack([poses[index][:3, 3] for index in poses])
    return found, torch.stack([net.T_world_cam(index)[:3, 3] for index in poses])


def test_noisy_pairs_with_movers_follow_the_camera():
    net = network("demo")
    arrival, final, _ = stream(net, 30)
    assert ate(net, arrival) < 0.002  # of 0.6 m path, at 0.7 % noise per pixel
    assert ate(net, final) < 0.0015


def test_movers_that_no_mask_names_are_outvoted():
    net = network("demo")
    lag = FixedLag(FixedLagConfig(), net.scene.intrinsics)
    poses = {}
    for index in range(1, 25):
        poses[index] = lag.push(index, pairs_of(net, lag, index)).T_map_cam
    assert ate(net, poses) < 0.004


def test_a_standing_camera_stands():
    net = network("standing_camera")
    _, final, _ = stream(net, 16)
    apart = torch.stack([T[:3, 3] for T in final.values()])
    assert float(torch.linalg.vector_norm(apart - apart[0], dim=1).max()) < 2e-3


def test_a_turning_camera_turns_on_the_spot():
    net = network("turning_camera")
    _, final, _ = stream(net, 16)
    for index in (5, 15):
        R = final[0][:3, :3].T @ final[index][:3, :3]
        truth = (net.T_world_cam(0)[:3, :3].T @ net.T_world_cam(index)[:3, :3]).numpy()
        apart = Rotation.from_matrix(R.numpy().T @ truth).magnitude()
        assert apart < np.deg2rad(0.1)
        assert float(torch.linalg.vector_norm(final[index][:3, 3])) < 0.01  # median depths


def test_what_is_final_never_changes():
    net, config = network("demo"), FixedLagConfig()
    lag, final = FixedLag(config, net.scene.intrinsics), {}
    for index in range(1, 25):
        lag.push(index, pairs_of(net, lag, index))
        for number, frame in lag.frames.items():
            if number <= index - config.lag:
                before = final.setdefault(number, frame.S_map_cam)
                assert torch.equal(before, frame.S_map_cam)


def test_the_newest_frame_knows_nothing_of_later_ones():
    net = network("demo")
    first, _, _ = stream(net, 12)

    other = NoisyPairs(net.scene, along=0.1, across_px=3.0, seed=9)

    def noise_later(index, pairs):
        return pairs if index < 12 else [other.pair(pair.first, pair.second) for pair in pairs]

    second, _, _ = stream(net, 14, change=noise_later)
    assert not torch.equal(second[12], first[11])
    assert all(torch.equal(first[index], second[index]) for index in first)


def test_memory_is_bounded_whatever_the_length():
    config = FixedLagConfig(size=8, num_keyframes=2, keyframe_interval=5)
    net, sizes = long_network(), []
    lag = FixedLag(config, net.scene.intrinsics)
    for index in range(1, 90):
        lag.push(index, pairs_of(net, lag, index))
        sizes.append((len(lag.frames), len(lag._links)))
    assert max(sizes[50:]) <= max(sizes[20:50])
    assert len(lag.frames) <= 8 + 2


def _there_and_back(index: int) -> int:
    phase = index % 38
    return phase if phase < 20 else 38 - phase


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, pairs: [] if i == 3 else pairs, "has no pair"),
        (lambda i, pairs: [_other(pairs[0], 40)] if i == 3 else pairs, "came with frame 3"),
        (lambda i, pairs: [_unsure(p) for p in pairs] if i == 3 else pairs, "confidence above 1"),
        (lambda i, pairs: [_nowhere(p) for p in pairs] if i == 3 else pairs, "static pixels"),
    ],
)
def test_unusable_pairs_are_refused_and_change_nothing(change, message):
    with pytest.raises(AlignmentError, match=message):
        stream(network("demo"), 5, change=change)


def _other(pair, first):
    return replace(pair, first=first)


def _unsure(pair):
    one = torch.full_like(pair.confidence_1, torch.nan)
    return replace(pair, confidence_1=one, confidence_2=one)


def _nowhere(pair):
    return replace(pair, points_2=torch.full_like(pair.points_2, torch.nan))


# ------------------------------------------------------------------ hard scenes
def test_scale_stays_over_a_long_stream():
    net = long_network()
    lag, ratios = FixedLag(FixedLagConfig(), net.scene.intrinsics), []
    for index in range(1, 120):
        depth = lag.push(index, pairs_of(net, lag, index)).depth_map()
        ratios.append(float((depth / net.depth(index).float()).median()))
    early, late = np.median(ratios[:30]), np.median(ratios[-30:])
    assert abs(np.log(late / early)) < 0.01  # each pair has a unit of its own, 30 % apart


def test_unsure_pixels_of_nan_confidence_are_left_out():
    net = network("static_room")
    random = torch.Generator().manual_seed(0)

    def spoilt(index, pairs):
        return [_half_unsure(pair, random) for pair in pairs]

    arrival, final, _ = stream(net, 14, change=spoilt)
    assert ate(net, arrival) < 0.003 and ate(net, final) < 0.002
    assert all(bool(T.isfinite().all()) for T in final.values())


def _half_unsure(pair, random):
    """NaN confidence, and points from nowhere, on half of the pixels."""
    bad = torch.rand(pair.confidence_1.shape, generator=random) < 0.5
    nowhere = 50 * torch.rand(pair.points_1.shape, generator=random)
    return replace(
        pair,
        confidence_1=pair.confidence_1.masked_fill(bad, torch.nan),
        confidence_2=pair.confidence_2.masked_fill(bad, torch.nan),
        points_1=torch.where(bad[..., None], nowhere, pair.points_1),
        points_2=torch.where(bad[..., None], nowhere, pair.points_2),
    )


def test_a_frame_full_of_movers_rests_on_its_background():
    net = network("static_room")
    shift = torch.tensor([0.4, 0.1, 0.3])

    def moved(index, pairs):
        return [_moved(pair, shift) for pair in pairs]

    lag, poses = FixedLag(FixedLagConfig(), net.scene.intrinsics), {}
    mask = torch.zeros(net.scene.intrinsics.size, dtype=torch.bool)
    mask[:, : int(0.8 * WIDTH)] = True
    for index in range(1, 14):
        pairs = pairs_of(net, lag, index)
        moving = {pair.second: mask for pair in pairs}
        poses[index] = lag.push(index, moved(index, pairs), moving).T_map_cam
    assert ate(net, poses) < 0.01


def _moved(pair, shift):
    """Four fifths of the pixels moved between the two times, all alike."""
    part = slice(None, int(0.8 * WIDTH))
    points = pair.points_2.clone()
    points[:, part] += shift * (pair.second - pair.first)
    return replace(pair, points_2=points)


def test_a_frame_without_a_static_pixel_is_refused():
    net = network("static_room")
    lag = FixedLag(FixedLagConfig(), net.scene.intrinsics)
    lag.push(1, [net.pair(1, 0), net.pair(0, 1)])
    everything = torch.ones(net.scene.intrinsics.size, dtype=torch.bool)
    with pytest.raises(AlignmentError, match="static pixels"):
        lag.push(2, [net.pair(2, 1), net.pair(1, 2)], {1: everything, 2: everything})
    assert sorted(lag.frames) == [0, 1]


def test_a_plane_places_the_camera():
    """Points fix the pose where epipolar geometry alone could not."""
    random = np.random.default_rng(3)
    source = np.concatenate([random.uniform(-2, 2, (300, 2)), np.full((300, 1), 4.0)], axis=1)
    S = np.eye(4)
    S[:3, :3] = 1.3 * Rotation.from_rotvec([0.05, 0.1, -0.03]).as_matrix()
    S[:3, 3] = [0.2, 0.1, -0.1]
    target = (source @ S[:3, :3].T + S[:3, 3]) * (1 + 0.002 * random.normal(size=(300, 1)))
    rows = (x.T.copy()[None] for x in (source, target))
    given = PairSamples(*rows, None, np.ones((1, 300)), 100.0)
    found = pair_similarity.measure(given, np.eye(4)[None])
    assert np.abs(found.S[0] - S).max() < 0.005
    assert np.linalg.eigvalsh(found.information[0]).min() > 0


# ------------------------------------------------------------------ one pair
def samples(count=200, seed=0, noise=0.01):
    """Points of one pair, the similarity between them and all but the scale of their noise."""
    random = np.random.default_rng(seed)
    source = random.uniform([-1, -1, 2], [1, 1, 5], (count, 3))
    S = np.eye(4)
    S[:3, :3] = 1.7 * Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix()
    S[:3, 3] = [0.3, -0.1, 0.2]
    target = source @ S[:3, :3].T + S[:3, 3]
    target = target * (1 + noise * random.normal(size=(count, 1)))
    matched = target[:, :2] / target[:, 2:] + 0.1 * noise * random.normal(size=(count, 2))
    as_rows = (x.T.copy()[None] for x in (source, target, matched))
    return PairSamples(*as_rows, np.ones((1, count)), 100.0), S


def residuals(given, S):
    """Rows of the only pair: along the ray (P, 1), across it (P, 3) and by matching (P, 2)."""
    source, target, matched = given.source[0].T, given.target[0].T, given.matched[0].T
    point = source @ S[:3, :3].T + S[:3, 3]
    distance = np.linalg.norm(target, axis=1, keepdims=True)
    ray = target / distance
    miss = (point - target) / distance
    along = (miss * ray).sum(axis=1, keepdims=True)
    return along, miss - along * ray, point[:, :2] / point[:, 2:] - matched


def whitened(given, S, noise):
    """Rows (P, 6) in standard deviations."""
    parts = zip(residuals(given, S), noise, strict=True)
    return np.concatenate([part / sigma for part, sigma in parts], axis=1)


def noise_of(given, S):
    """Standard deviations by the lower median of each part; one direction, or two alike."""
    lengths = [np.sort(np.linalg.norm(part, axis=1)) for part in residuals(given, S)]
    medians = [length[(len(length) - 1) // 2] for length in lengths]
    return [m / k for m, k in zip(medians, _MEDIANS, strict=True)]


def test_the_similarity_of_a_pair_is_the_robust_optimum_of_scipy():
    given, S = samples()
    found = pair_similarity.measure(given, S[None])
    noise, kernel = noise_of(given, found.S[0]), pair_similarity._KERNEL

    def lengths(d):
        square = (whitened(given, found.S[0] @ similarity.exp(d), noise) ** 2).sum(axis=1)
        return kernel * np.sqrt(np.log1p(square / kernel**2))

    best = least_squares(lengths, np.zeros(7), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert np.abs(best.x).max() < 2e-3  # a few steps; the noise itself is 1e-2
    assert np.abs(similarity.log(found.S[0]) - similarity.log(S)).max() < 0.01


def test_the_normal_equations_of_a_pair_equal_finite_differences():
    given, S = samples(count=40)
    S = S @ similarity.exp(np.full(7, 0.02))
    weight = np.random.default_rng(0).uniform(0.5, 1.5, (1, 40))
    weight *= 40 / weight.sum()
    H, g, agreement = pair_similarity.normal_equations(replace(given, weight=weight), S[None])
    noise = noise_of(given, S)

    def rows(d):
        return whitened(given, similarity.exp(d) @ S, noise)

    r = rows(np.zeros(7))
    J = np.stack([(rows(d) - rows(-d)) / 2e-6 for d in 1e-6 * np.eye(7)], axis=-1)
    square = (r**2).sum(axis=1)
    w = weight[0] / (1 + square / pair_similarity._KERNEL**2)
    expected = np.einsum("p,prk,prl->kl", w, J, J)
    assert np.allclose(H[0], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    slope = np.einsum("p,prk,pr->k", w, J, r)
    assert np.allclose(g[0], slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max())
    assert np.isclose(agreement[0], weight[0, square < 16].sum() / 40)


def test_a_far_off_guess_starts_anew_from_the_points():
    given, S = samples(noise=0.002)
    wrong = np.eye(4)
    wrong[:3, :3] = Rotation.from_rotvec([0, 2.5, 0]).as_matrix()
    found = pair_similarity.measure(given, wrong[None])
    assert found.agreement > 0.9
    assert np.abs(found.S[0] - S).max() < 0.01


def test_numpy_similarities_equal_the_checked_ones():
    random = torch.Generator().manual_seed(1)
    values = 0.5 * torch.randn(20, 7, generator=random, dtype=torch.float64)
    S = sim3.from_coordinates(values)
    assert np.allclose(similarity.exp(values.numpy()), S.numpy(), atol=1e-12)
    assert np.allclose(similarity.log(S.numpy()), sim3.coordinates(S).numpy(), atol=1e-9)
    assert np.allclose(similarity.inverse(S.numpy()), sim3.inverse(S).numpy(), atol=1e-12)
    assert np.allclose(similarity.exact(S.numpy()), S.numpy(), atol=1e-12)
    small = 1e-6 * torch.randn(20, 7, generator=random, dtype=torch.float64)
    left = similarity.exp((similarity.adjoint(S.numpy()) @ small.numpy()[..., None])[..., 0])
    assert np.allclose(S.numpy() @ similarity.exp(small.numpy()), left @ S.numpy(), atol=1e-10)
    assert np.allclose(similarity.log(np.eye(4)), 0.0)

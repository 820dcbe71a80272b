"""Smoothed tracks against the published equations in plain loops, and what must not happen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon4d_ros.config import Config, RefinementConfig
from recon4d_ros.errors import GeometryError
from recon4d_ros.refinement.track_history import Sights, TrackHistory
from recon4d_ros.refinement.trajectory_smoothing import smooth, smooth_clip, snap_static

seeds = st.integers(0, 10_000)
modes = st.sampled_from(["robust", "literal"])
STATIC, MOVING = torch.tensor([0.0]), torch.tensor([1.0])
DEPTH = 3.0


def config(mode: str = "robust", **changes: object) -> RefinementConfig:
    named = {"mode": mode, **changes}
    return Config().replaced({f"refinement.{k}": v for k, v in named.items()}).refinement


def smoothed(points: Tensor, mobility: Tensor, mode: str = "robust", **changes: object) -> Tensor:
    depths = torch.full((len(points),), DEPTH, dtype=torch.float64)
    return smooth(points, mobility, depths, config(mode, **changes))


def walk(seed: int, num_frames: int = 40, num_tracks: int = 6) -> Tensor:
    """Random walks with outliers and gaps, (T, N, 3) float64."""
    rng = np.random.default_rng(seed)
    points = 0.05 * rng.normal(size=(num_frames, num_tracks, 3)).cumsum(axis=0)
    points += 0.5 * rng.normal(size=points.shape) * (rng.random((*points.shape[:2], 1)) < 0.1)
    points[rng.random(points.shape[:2]) < 0.15] = np.nan
    return torch.from_numpy(points)


def line(num_frames: int, velocity: tuple[float, float, float]) -> Tensor:
    time = torch.arange(num_frames, dtype=torch.float64)
    return (time[:, None] * torch.tensor(velocity, dtype=torch.float64))[:, None]


def noise(seed: int, shape: tuple[int, ...], sigma: float = 0.02) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * sigma)


def rms(error: Tensor) -> float:
    return float((error**2).mean().sqrt())


def published(track: np.ndarray, sharpness: float, size: int = 5) -> np.ndarray:
    """Equations 1 to 5 for one track (T, 3) that is always seen."""
    steps = [np.linalg.norm(track[t] - track[t - 1]) for t in range(1, len(track))]
    w = [math.exp(-sharpness * step) for step in steps]
    weights = [w[0], *w]
    result = np.empty_like(track)
    for t in range(len(track)):
        taps = [s for s in range(t - size // 2, t + size // 2 + 1) if 0 <= s < len(track)]
        top = sum(weights[s] * track[s] / size for s in taps)
        result[t] = top / sum(weights[s] / size for s in taps)
    return result


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.0, 5.0), st.integers(1, 4))
def test_literal_mode_is_the_published_equations(seed, sharpness, radius):
    rng = np.random.default_rng(seed)
    tracks = rng.normal(size=(23, 4, 3))
    expected = np.stack([published(tracks[:, n], sharpness, 2 * radius + 1) for n in range(4)], 1)
    for mobility in (STATIC, MOVING):
        found = smoothed(
            torch.from_numpy(tracks), mobility, "literal", sharpness=sharpness, radius=radius
        )
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def robust_twin(track: np.ndarray, moving: bool, sharpness: float = 1.0) -> np.ndarray:
    """The robust form for one track (T, 3), frame by frame, with numpy's own line fit."""
    result = np.full_like(track, np.nan)
    seen = np.isfinite(track).all(axis=1)

    def step(a: int, b: int) -> float:
        inside = min(a, b) >= 0 and max(a, b) < len(track) and seen[a] and seen[b]
        return np.linalg.norm(track[a] - track[b]) / abs(a - b) if inside else math.nan

    for t in np.flatnonzero(seen):
        # Nothing before t - 5 or after t + 2 is looked at.
        near = [s for s in range(max(0, t - 5), min(len(track), t + 3)) if seen[s]]
        known = sorted(
            step(s, s - 1) for s in near if not math.isnan(step(s, s - 1)) and s > t - 5
        )
        usual = max(known[(len(known) - 1) // 2], 1e-3 * DEPTH) if known else math.inf
        taps = [s for s in near if abs(s - t) <= 2]
        own = []
        for s in taps:
            others = [step(s, o) for o in range(s - 2, s + 3) if o != s and t - 5 <= o <= t + 2]
            least = min((other for other in others if not math.isnan(other)), default=0.0)
            own.append(math.exp(-sharpness * least / usual))
        times = np.array(taps, np.float64) - t
        result[t] = np.average(track[taps], axis=0, weights=own)
        # Where one frame has all the weight there is no line, and the point stays.
        spread = np.cov(times, aweights=own, ddof=0) if len(taps) > 1 else 0.0
        if moving and spread > 1e-6:
            fit = np.polynomial.polynomial.polyfit(times, track[taps], 1, w=np.sqrt(own))
            result[t] = fit[0]
        elif moving:
            result[t] = track[t]
    return result


@settings(max_examples=25, deadline=None)
@example(204, True)  # a neighbour has nearly all the weight
@given(seeds, st.booleans())
def test_robust_mode_equals_a_slow_twin(seed, moving):
    points = walk(seed, 30, 3)
    found = smoothed(points, MOVING if moving else STATIC).numpy()
    expected = np.stack([robust_twin(points[:, n].numpy(), moving) for n in range(3)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(modes, st.floats(-100, 100), st.booleans())
def test_a_constant_track_is_unchanged(mode, place, moving):
    points = torch.full((30, 1, 3), place, dtype=torch.float64)
    assert torch.equal(smoothed(points, MOVING if moving else STATIC, mode), points)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(-2, 2)] * 3))
def test_a_straight_moving_track_is_unchanged_even_at_its_ends(velocity):
    points = line(25, velocity)
    torch.testing.assert_close(smoothed(points, MOVING), points, atol=1e-9, rtol=0)


@settings(max_examples=25, deadline=None)
@given(modes, st.tuples(*[st.floats(-2, 2)] * 3))
def test_a_mean_leaves_the_interior_of_a_straight_track(mode, velocity):
    points = line(25, velocity)
    inner = slice(3, -3)  # the first step decides about the frame after it too
    found = smoothed(points, STATIC, mode)
    torch.testing.assert_close(found[inner], points[inner], atol=1e-9, rtol=0)


@pytest.mark.parametrize("place", [0, 1, 2, 12, 22, 23, 24])
@pytest.mark.parametrize("mobility", [STATIC, MOVING])
def test_a_single_outlier_is_reduced_by_more_than_70_percent(place, mobility):
    truth = line(25, (0.03, 0.01, 0.0)) if mobility is MOVING else torch.zeros(25, 1, 3).double()
    points = truth + noise(1, truth.shape, 0.002)
    points[place] += 0.4
    found = smoothed(points, mobility)
    assert rms(found[place] - truth[place]) < 0.3 * 0.4
    assert rms(found - truth) < 0.3 * rms(points - truth)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(1e-3, 1e3), st.booleans())
def test_robust_mode_does_not_know_the_unit_of_the_world(seed, scale, moving):
    points, mobility = walk(seed), MOVING if moving else STATIC
    depths = torch.full((len(points),), DEPTH).double()
    once = smooth(points, mobility, depths, config())
    found = smooth(points * scale, mobility, depths * scale, config())
    torch.testing.assert_close(found, once * scale, equal_nan=True, rtol=1e-6, atol=1e-9 * scale)


def test_literal_mode_depends_on_the_unit_of_the_world_as_published():
    points = walk(0)
    found = smoothed(points * 10, STATIC, "literal")
    off = (found - 10 * smoothed(points, STATIC, "literal")).abs()
    assert float(off.nan_to_num(0.0).max()) > 0.1


def test_steps_far_too_large_for_exp_give_no_nan():
    points = noise(0, (30, 5, 3), 1e5)
    for mode in ("literal", "robust"):
        assert bool(smoothed(points, STATIC, mode).isfinite().all())


@settings(max_examples=30, deadline=None)
@given(seeds, modes, st.integers(1, 45), st.integers(1, 4))
def test_windows_and_stream_give_the_values_of_the_whole_clip(seed, mode, num_frames, radius):
    points = walk(seed, num_frames)
    rng = np.random.default_rng(seed)
    mobility = torch.from_numpy(rng.random(points.shape[:2]))
    depths = torch.from_numpy(rng.uniform(1, 5, num_frames))
    how = config(mode, radius=radius)
    whole = smooth(points, mobility, depths, how)
    windowed = smooth_clip(points, mobility, depths, how)
    torch.testing.assert_close(windowed, whole, equal_nan=True, rtol=0, atol=1e-12)
    streamed = stream(points, mobility, depths, how)
    torch.testing.assert_close(streamed, whole, equal_nan=True, rtol=0, atol=1e-12)


def stream(points: Tensor, mobility: Tensor, depths: Tensor, how: RefinementConfig) -> Tensor:
    history, done = TrackHistory(how), []
    for t in range(len(points)):
        # Hidden tracks are now and then not even named, and others come before them.
        ids = torch.arange(points.shape[1]) * 3 + 7
        named = points[t].isfinite().all(dim=-1) | (ids % 2 == t % 2)
        still = torch.zeros(int(named.sum()), dtype=torch.bool)
        sights = Sights(
            ids[named],
            points[t][named],
            mobility[t][named].float(),
            mobility[t][named] >= 0.5,
            still,
            float(depths[t]),
        )
        found = history.push(sights)
        assert (found is None) == (t < how.radius)
        done += [found] if found else []
    done += history.finish()
    assert len(done) == len(points) and history.finish() == ()
    result = torch.full_like(points, torch.nan)
    for t, found in enumerate(done):
        result[t, (found.sights.ids - 7) // 3] = found.points
    return result


def test_a_track_grows_older_while_it_is_named_and_the_memory_is_bounded():
    history = TrackHistory(config())
    ages = []
    for t in range(40):
        ids = torch.tensor([1, 5] if t != 20 else [5])
        points = torch.zeros(len(ids), 3).double()
        if t % 3 == 0:
            points[-1] = torch.nan  # hidden
        flags = torch.zeros(len(ids), dtype=torch.bool)
        found = history.push(Sights(ids, points, torch.zeros(len(ids)), flags, flags, 1.0))
        ages += [found.age.tolist()] if found else []
        assert len(history._frames) <= 8
    assert ages[19:23] == [[19, 19], [20], [0, 21], [1, 22]]


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_noise_falls_and_no_moving_track_gets_worse_not_even_at_its_ends(share):
    """Circles of 0.1 per frame: the spec's measurements, noise 0.02, outliers of 0.3."""
    time = torch.arange(60, dtype=torch.float64)[:, None, None] / 15
    phase = torch.linspace(0, 6.28, 400, dtype=torch.float64)[None, :, None]
    circle = [1.5 * torch.cos(time + phase), 1.5 * torch.sin(time + phase), 0 * (time + phase)]
    truth = torch.cat(circle, dim=-1)
    wrong = torch.from_numpy(np.random.default_rng(3).random((60, 400, 1)) < share)
    points = truth + noise(0, truth.shape) + wrong * noise(1, truth.shape, 0.3)
    before, after = points - truth, smoothed(points, MOVING) - truth
    assert rms(after[5:-5]) < 0.5 * rms(before[5:-5])
    for end in (0, 1, -2, -1):
        assert rms(after[end]) < rms(before[end])
    assert bool(((after**2).mean(dim=(0, 2)) < (before**2).mean(dim=(0, 2))).all())
    still = smoothed(before, STATIC)
    assert rms(still) < 0.6 * rms(before) and rms(still[5:-5]) < 0.5 * rms(before[5:-5])


def test_a_hidden_frame_stays_hidden_and_a_lone_one_stays_where_it_is():
    points = noise(0, (20, 2, 3))
    points[5:15, 0] = torch.nan
    points[10, 0] = 1.0
    for mobility in (STATIC, MOVING):
        found = smoothed(points, mobility)
        assert torch.equal(found.isnan(), points.isnan())
        assert torch.equal(found[10, 0], points[10, 0])


def test_static_tracks_can_be_snapped_to_one_place():
    truth = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    points = truth + noise(0, (31, 2, 3), 0.01)
    points[4, 0], points[7] = 100.0, torch.nan
    weight = torch.ones(31, 2, dtype=torch.float64)
    found = snap_static(points, weight, torch.tensor([0.0, 0.9]))
    seen = points.isfinite()
    assert torch.equal(found.isfinite(), seen)
    assert torch.equal(found[:, 1][seen[:, 1]], points[:, 1][seen[:, 1]])
    assert len(found[:, 0][seen[:, 0]].unique()) == 3
    expected = points[seen[:, 0, 0], 0].numpy()
    np.testing.assert_allclose(found[0, 0].numpy(), np.median(expected, axis=0), atol=1e-3)


def test_wrong_shapes_and_depths_are_errors():
    points, depths = torch.zeros(9, 2, 3), torch.ones(9)
    with pytest.raises(GeometryError, match="9 frames"):
        smooth(points, STATIC, torch.ones(8), config())
    with pytest.raises(GeometryError, match="above zero"):
        smooth(points, STATIC, depths * 0, config())
    with pytest.raises(GeometryError, match="points"):
        smooth(points[..., :2], STATIC, depths, config())
    assert smooth_clip(points[:0], STATIC, depths[:0], config()).shape == (0, 2, 3)

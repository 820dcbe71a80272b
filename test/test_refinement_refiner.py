"""A stream of noisy depth and exact tracks of a room goes in; steadier depth comes out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.noisy_stream import Noise, NoisyStream, abs_rel, noisy_stream, refined_points
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Reconstruction
from recon4d_ros.errors import GeometryError
from recon4d_ros.geometry import se3
from recon4d_ros.refinement.lifting import lift, lift_tracks
from recon4d_ros.refinement.refiner import Refiner
from recon4d_ros.refinement.trajectory_smoothing import smooth_clip

torch.set_num_threads(1)

LENGTH, WIDTH = 14, 128


@cache
def stream(smooth: float = 0.03, seed: int = 0) -> NoisyStream:
    return noisy_stream("demo", LENGTH, WIDTH, Noise(smooth, smooth / 3), seed)


def refiner(mode: str = "robust", **changes: object) -> Refiner:
    named = {f"refinement.{k}": v for k, v in {"mode": mode, **changes}.items()}
    return Refiner(Config().replaced(named).refinement)


def pushed(one: Refiner, indices: range, known: NoisyStream | None = None):
    known = known or stream()
    return [one.push(known.reconstruction(i), known.tracks(i)) for i in indices]


def same(a: Reconstruction, b: Reconstruction) -> bool:
    return torch.equal(a.depth.nan_to_num(), b.depth.nan_to_num()) and torch.equal(
        a.tracks.points, b.tracks.points
    )


@pytest.mark.parametrize("mode", ["robust", "literal"])
def test_flicker_is_halved_and_depth_gets_no_worse(mode):
    noisy = stream()
    refined = torch.stack([one.depth for one in noisy.refined(mode)])
    assert noisy.flicker(refined).flicker < 0.5 * noisy.flicker(noisy.depth).flicker
    assert noisy.flicker(noisy.truth).flicker < 1e-3
    everywhere = torch.ones_like(noisy.masks)
    for selected in (everywhere, noisy.masks, ~noisy.masks):
        before = abs_rel(noisy.depth, noisy.truth, selected)
        assert abs_rel(refined, noisy.truth, selected) < before


@pytest.mark.parametrize("smooth", [0.03, 0.005])
def test_no_moving_track_is_made_worse_first_and_last_frames_included(smooth):
    before, after = [], []
    for seed in range(4):
        noisy = stream(smooth, seed)
        movers = noisy.moving.any(dim=0)
        for points, errors in (
            (noisy.raw_points(), before),
            (refined_points(noisy, noisy.refined()), after),
        ):
            errors.append(torch.linalg.vector_norm(points - noisy.points, dim=-1)[:, movers])
    before, after = torch.stack(before, 1), torch.stack(after, 1)  # (T, seeds, N)
    known = before.isfinite()
    assert torch.equal(after.isfinite(), known)

    def rms(errors, dim):
        return ((errors.nan_to_num() ** 2).sum(dim) / known.sum(dim)).sqrt()

    by_frame = rms(after, (1, 2)) / rms(before, (1, 2))
    assert bool((by_frame < 1).all()), by_frame
    often = known.sum(dim=(0, 1)) >= 5
    by_track = (rms(after, (0, 1)) / rms(before, (0, 1)))[often]
    # One seen in single frames only is handed on as it is, in float32.
    assert bool((by_track < 1 + 1e-6).all()), by_track.max()


def test_depth_without_noise_hardly_changes():
    exact = replace(stream(), depth=stream().truth)
    refined = torch.stack([one.depth for one in exact.refined()])
    assert abs_rel(refined, exact.truth, torch.ones_like(exact.masks)) < 2e-3


def test_frames_come_back_in_order_at_the_lag_and_tracks_are_those_of_the_clip():
    noisy, one = stream(), refiner()
    steps = pushed(one, range(LENGTH))
    assert [len(step) for step in steps] == [0, 0] + [1] * (LENGTH - 2)
    done = [each for step in steps for each in step] + list(one.finish())
    assert [each.frame.index for each in done] == list(range(LENGTH))
    assert one.finish() == ()
    depths = noisy.depth.flatten(1).median(dim=1).values.double()
    mobility = torch.stack([noisy.tracks(i).mobility[0] for i in range(LENGTH)])
    on_mask = torch.stack(
        [lift_tracks(noisy.tracks(i), noisy.reconstruction(i), 0.5).masked for i in range(LENGTH)]
    )
    config = Config().refinement
    whole = smooth_clip(noisy.raw_points(), torch.maximum(mobility, on_mask), depths, config)
    found = refined_points(noisy, tuple(done))
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6, equal_nan=True)
    first = done[9].tracks
    assert first.age.min() == first.age.max() == 9
    assert first.ids.dtype == first.age.dtype == torch.int64
    assert torch.equal(first.mobility, mobility[9][first.ids])


def test_what_comes_out_does_not_depend_on_what_comes_later_than_the_lag():
    noisy, other = stream(), stream(seed=1)
    one, two = refiner(), refiner()
    pushed(one, range(8), noisy)
    pushed(two, range(8), noisy)
    (a,), (b,) = (
        one.push(noisy.reconstruction(8), noisy.tracks(8)),
        two.push(noisy.reconstruction(8), noisy.tracks(8)),
    )
    assert same(a, b)
    # Frame 6 came out above; noise from frame 9 on reaches frame 7 and no earlier one.
    (c,), (d,) = (
        one.push(noisy.reconstruction(9), noisy.tracks(9)),
        two.push(other.reconstruction(9), other.tracks(9)),
    )
    assert c.frame.index == d.frame.index == 7 and not same(c, d)


def test_frames_without_tracks_pose_or_depth_pass_unchanged():
    noisy, one = stream(), refiner()
    frames = [noisy.reconstruction(i) for i in range(9)]
    frames[3] = replace(frames[3], T_map_cam=None)
    frames[4] = replace(frames[4], depth=torch.full_like(frames[4].depth, torch.nan))
    tracks = [noisy.tracks(i) if i != 5 else None for i in range(9)]
    steps = [one.push(frame, track) for frame, track in zip(frames, tracks, strict=True)]
    done = [each for step in steps for each in step] + list(one.finish())
    for index in (3, 4, 5):
        assert done[index] is frames[index]
    for index in (0, 1, 2, 6, 7, 8):
        assert bool(done[index].depth.isfinite().all())
        assert not torch.equal(done[index].depth, frames[index].depth)


def test_mode_off_gives_every_frame_back_at_once():
    one, frame = refiner("off"), stream().reconstruction(0)
    assert one.lag == 0 and refiner(radius=3).lag == 3
    assert one.push(frame, stream().tracks(0)) == (frame,)
    assert one.finish() == ()


def test_submaps_share_no_gauge():
    noisy, one, alone = stream(), refiner(), refiner()
    far = se3.exp(torch.tensor([50.0, 0, 0, 0, 0, 1.0], dtype=torch.float64))
    first = [each for step in pushed(one, range(6)) for each in step]
    shifted = [
        replace(frame, submap=1, T_map_cam=far @ frame.T_map_cam)
        for frame in (noisy.reconstruction(i) for i in range(6, 12))
    ]
    steps = [one.push(frame, noisy.tracks(i + 6)) for i, frame in enumerate(shifted)]
    assert [len(step) for step in steps] == [2, 0, 1, 1, 1, 1]
    first += steps[0]
    expected = [each for step in pushed(alone, range(6)) for each in step] + list(alone.finish())
    assert all(same(a, b) for a, b in zip(first, expected, strict=True))
    second = [each for step in steps[1:] for each in step] + list(one.finish())
    fresh = pushed(alone, range(6, 12))
    expected = [each for step in fresh for each in step] + list(alone.finish())
    for a, b in zip(second, expected, strict=True):
        torch.testing.assert_close(a.depth, b.depth)
        moved = se3.transform(far, b.tracks.points.double()).float()
        torch.testing.assert_close(a.tracks.points, moved)


def test_reset_forgets_and_what_is_kept_is_bounded():
    one, fresh = refiner(), refiner()
    for _ in range(3):
        pushed(one, range(LENGTH))
        assert (len(one._waiting), len(one._history._frames), len(one._history._ages)) == (2, 8, 3)
    one.reset()
    assert all(
        same(a, b)
        for a, b in zip(
            (each for step in pushed(one, range(5)) for each in step),
            (each for step in pushed(fresh, range(5)) for each in step),
            strict=True,
        )
    )


def test_tracks_are_lifted_from_the_pixels_of_the_depth_image():
    noisy = stream()
    exact = replace(noisy.reconstruction(4), depth=noisy.truth[4])
    sights = lift_tracks(noisy.tracks(4), exact, 0.5)
    error = torch.linalg.vector_norm(sights.points - noisy.points[4], dim=-1)
    known = error.isfinite()
    assert float(known.float().mean()) > 0.7
    assert float(error[known].quantile(0.9)) < 0.02
    # A tracker works on larger images: pixel (u + 0.5) 2 - 0.5 of the frame is u of the depth.
    rgb = torch.zeros(192, 256, 3, dtype=torch.uint8)
    larger = replace(exact, frame=replace(exact.frame, rgb=rgb))
    tracks = noisy.tracks(4)
    found = lift_tracks(replace(tracks, uv=(tracks.uv + 0.5) * 2 - 0.5), larger, 0.5)
    torch.testing.assert_close(found.points, sights.points, equal_nan=True, atol=1e-4, rtol=0)


def test_outlines_borrowed_depth_and_hidden_tracks_give_no_point():
    noisy = stream()
    frame, tracks = noisy.reconstruction(4), noisy.tracks(4)
    depth = torch.ones(96, 128)
    depth[:, 80:] = 2.0
    uv = torch.tensor([[78.5, 60.0], [79.5, 60.0], [80.5, 60.0], [-1.0, 60.0], [torch.nan] * 2])
    found = lift(uv, depth, frame.intrinsics, torch.eye(4, dtype=torch.float64))
    assert found[:, 2].nan_to_num(-1.0).tolist() == [1.0, -1.0, 2.0, -1.0, -1.0]
    borrowed = replace(frame, filled=torch.ones_like(frame.filled))
    assert bool(lift_tracks(tracks, borrowed, 0.5).points.isnan().all())
    hidden = replace(tracks, visibility=tracks.visibility * 0.4)
    assert bool(lift_tracks(hidden, frame, 0.5).points.isnan().all())


def test_ids_in_any_order_and_a_window_instead_of_a_frame():
    noisy = stream()
    frame, tracks = noisy.reconstruction(4), noisy.tracks(4)
    order = torch.randperm(len(tracks.ids), generator=torch.Generator().manual_seed(0))
    mixed = replace(
        tracks,
        ids=tracks.ids[order],
        uv=tracks.uv[:, order],
        visibility=tracks.visibility[:, order],
        mobility=tracks.mobility[:, order],
    )
    a, b = lift_tracks(tracks, frame, 0.5), lift_tracks(mixed, frame, 0.5)
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.points.nan_to_num(), b.points.nan_to_num())
    with pytest.raises(GeometryError, match="T = 1"):
        lift_tracks(replace(tracks, uv=tracks.uv.expand(2, -1, -1)), frame, 0.5)

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


def rows(noisy: NoisyStream, indices: range):
    return [(noisy.reconstruction(i), noisy.tracks(i)) for i in indices]


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


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_tracks_are_those_of_the_clip_however_many_frames_settle_at_once(stride):
    noisy = stream()
    done = noisy.through(refiner(), range(LENGTH), stride)
    assert [each.frame.index for each in done] == list(range(LENGTH))
    depths = noisy.depth.flatten(1).median(dim=1).values.double()
    mobility = torch.stack([noisy.tracks(i).mobility[0] for i in range(LENGTH)])
    on_mask = torch.stack(
        [lift_tracks(noisy.tracks(i), noisy.reconstruction(i), 0.5).masked for i in range(LENGTH)]
    )
    config = Config().refinement
    whole = smooth_clip(noisy.raw_points(), torch.maximum(mobility, on_mask), depths, config)
    found = refined_points(noisy, done)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6, equal_nan=True)
    first = done[9].tracks
    assert first.age.min() == first.age.max() == 9
    assert first.ids.dtype == first.age.dtype == torch.int64
    assert torch.equal(first.mobility, mobility[9][first.ids])


def test_two_later_frames_count_and_no_more():
    noisy, other = stream(), stream(seed=1)
    settled = rows(noisy, range(7))
    near = rows(noisy, range(7, 9))
    far = near + rows(noisy, range(9, 10)), near + rows(other, range(9, 10))
    a, b = (refiner().refine(settled, ahead) for ahead in far)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    c = refiner().refine(settled, near[:1] + rows(other, range(8, 9)))
    assert same(a[5], c[5]) and not same(a[6], c[6])


def test_what_was_ahead_is_forgotten():
    noisy, other = stream(), stream(seed=1)
    one = refiner()
    first = one.refine(rows(noisy, range(6)), rows(other, range(6, 8)))
    second = one.refine(rows(noisy, range(6, 10)), ())
    whole = refiner().refine(rows(noisy, range(10)), ())
    assert all(same(x, y) for x, y in zip(first[:4] + second, whole[:4] + whole[6:], strict=True))


def test_frames_without_tracks_pose_or_depth_pass_unchanged():
    noisy = stream()
    frames = [noisy.reconstruction(i) for i in range(9)]
    frames[3] = replace(frames[3], T_map_cam=None)
    frames[4] = replace(frames[4], depth=torch.full_like(frames[4].depth, torch.nan))
    tracks = [noisy.tracks(i) if i != 5 else None for i in range(9)]
    done = refiner().refine(list(zip(frames, tracks, strict=True)), ())
    for index in (3, 4, 5):
        assert done[index] is frames[index]
    for index in (0, 1, 2, 6, 7, 8):
        assert bool(done[index].depth.isfinite().all())
        assert not torch.equal(done[index].depth, frames[index].depth)


def test_tracks_seen_in_one_frame_alone_leave_its_depth_as_it_was():
    noisy = stream()
    (done,) = refiner().refine(rows(noisy, range(1)), ())
    assert torch.equal(done.depth, noisy.depth[0]) and len(done.tracks.ids) > 0


def test_mode_off_changes_nothing():
    frame = stream().reconstruction(0)
    assert refiner("off").refine([(frame, stream().tracks(0))], ()) == (frame,)


def test_submaps_share_no_gauge():
    noisy = stream()
    far = se3.exp(torch.tensor([50.0, 0, 0, 0, 0, 1.0], dtype=torch.float64))
    shifted = [
        (replace(frame, submap=1, T_map_cam=far @ frame.T_map_cam), tracks)
        for frame, tracks in rows(noisy, range(6, 12))
    ]
    one = refiner()
    done = one.refine(rows(noisy, range(6)) + shifted[:3], shifted[3:])
    done += one.refine(shifted[3:], ())
    expected = refiner().refine(rows(noisy, range(6)), ())
    assert all(same(a, b) for a, b in zip(done[:6], expected, strict=True))
    expected = refiner().refine(rows(noisy, range(6, 12)), ())
    for a, b in zip(done[6:], expected, strict=True):
        torch.testing.assert_close(a.depth, b.depth)
        moved = se3.transform(far, b.tracks.points.double()).float()
        torch.testing.assert_close(a.tracks.points, moved)


def test_reset_forgets_and_what_is_kept_is_bounded():
    one = refiner()
    for _ in range(3):
        stream().through(one, range(LENGTH))
        assert (len(one._history._frames), len(one._history._ages)) == (8, 3)
        assert one._num_known <= 2
    one.reset()
    found, fresh = (stream().through(each, range(5)) for each in (one, refiner()))
    assert all(same(a, b) for a, b in zip(found, fresh, strict=True))


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

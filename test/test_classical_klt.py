"""The tracker without a network: exact tracks of rendered scenes are the oracle."""

import time
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
from real_sequence import require
from rendered_stream import frames, rendered, windows

from recon4d_ros.datatypes import Frame, Tracks, Window
from recon4d_ros.errors import PredictorError
from recon4d_ros.predictors.classical.tracks import follow
from recon4d_ros.predictors.interface import PointTracker
from recon4d_ros.predictors.klt import KltTracker
from recon4d_ros.predictors.mobility import UNKNOWN, mobility
from recon4d_ros.synthetic import correspondence, scenes

LENGTH = 20


def tracked(stream: tuple[Frame, ...], tracker: PointTracker | None = None) -> list[Tracks]:
    tracker = tracker or KltTracker()
    return [tracker.track(window) for window in windows(stream)]


@lru_cache(maxsize=4)
def followed(name: str) -> list[Tracks]:
    return tracked(frames(name, LENGTH))


def sights(found: list[Tracks]) -> dict[int, dict[int, torch.Tensor]]:
    """Track id, frame, position."""
    out: dict[int, dict[int, torch.Tensor]] = {}
    for window, tracks in zip(windows(frames("demo", LENGTH)), found, strict=True):
        for row, index in enumerate(window.indices):
            for column in torch.nonzero(tracks.visibility[row] > 0).squeeze(-1).tolist():
                track = out.setdefault(int(tracks.ids[column]), {})
                track[index] = tracks.uv[row, column]
    return out


def same(first: Tracks, second: Tracks) -> bool:
    names = ("ids", "uv", "visibility", "mobility")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) for a, b in pairs)


def test_positions_agree_with_exact_tracks():
    scene = scenes.named("demo", 60, 320)
    by_birth: dict[int, list[dict[int, torch.Tensor]]] = {}
    for track in sights(followed("demo")).values():
        by_birth.setdefault(min(track), []).append(track)
    errors = []
    for birth, group in by_birth.items():
        start = torch.stack([track[birth] for track in group]).double()
        indices = tuple(range(birth, LENGTH))
        exact = correspondence.tracks(scene, birth, start, indices)
        for column, track in enumerate(group):
            rows = [i for i in track if i > birth and exact.visible[i - birth, column]]
            errors += [(track[i] - exact.uv[i - birth, column]).norm().item() for i in rows]
    assert len(errors) > 2000
    assert np.median(errors) < 0.15
    assert np.mean(np.array(errors) < 2.0) > 0.9


def labelled(stream_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mobility, and whether the thing at the last position moves, of the last window's tracks."""
    tracks = followed(stream_name)[-1]
    moves = rendered(stream_name, LENGTH - 1).dynamic_mask
    judged = (tracks.visibility[-1] > 0) & (tracks.mobility[-1] != UNKNOWN)
    column, row = tracks.uv[-1, judged].round().long().unbind(-1)
    return tracks.mobility[-1, judged].numpy(), moves[row, column].numpy()


def test_mobility_tells_things_from_the_room():
    """At this size a window shows some things move by less than the noise of a track."""
    score, moves = labelled("demo")
    above = (score[moves][:, None] > score[~moves][None]).mean()
    print(f"area under the curve {above:.3f}, {moves.sum()} moving of {len(moves)}")
    assert above > 0.75
    assert (score[~moves] < 0.5).mean() > 0.85


def test_mobility_of_a_standing_camera():
    score, moves = labelled("standing_camera")
    # Points beside a moving outline are dragged along by it.
    assert (score[~moves] < 0.5).mean() > 0.85
    assert (score[moves] > 0.5).mean() > 0.7


def test_nothing_moves_where_nothing_moves():
    score, moves = labelled("turning_camera")
    assert not moves.any()
    assert (score < 0.5).mean() > 0.95


def test_mobility_without_enough_tracks_is_unknown():
    assert (mobility(np.zeros((4, 5, 2)), 640) == UNKNOWN).all()
    assert (mobility(np.full((1, 80, 2), 3.0), 640) == UNKNOWN).all()


def test_ids_and_past_positions_are_stable():
    found, all_windows = followed("demo"), windows(frames("demo", LENGTH))
    for (a, first), (b, second) in zip(
        zip(all_windows, found, strict=True),
        list(zip(all_windows, found, strict=True))[1:],
        strict=False,
    ):
        shared = np.intersect1d(first.ids, second.ids)
        assert len(shared) > 0.5 * len(first.ids)
        columns = [torch.isin(tracks.ids, torch.from_numpy(shared)) for tracks in (first, second)]
        for index in set(a.indices) & set(b.indices):
            before = first.uv[a.indices.index(index), columns[0]]
            after = second.uv[b.indices.index(index), columns[1]]
            assert torch.equal(before.nan_to_num(-1.0), after.nan_to_num(-1.0))


def test_every_new_frame_has_live_tracks_over_the_whole_image():
    for tracks in followed("demo"):
        cells = (tracks.uv[-1, tracks.visibility[-1] > 0] / 80).long()
        assert len({tuple(cell) for cell in cells.tolist()}) == 4 * 3


def test_visibility_mobility_and_positions_are_in_range():
    for tracks in followed("demo"):
        assert tracks.uv.shape[:2] == tracks.visibility.shape == tracks.mobility.shape
        assert bool(((tracks.visibility >= 0) & (tracks.visibility <= 1)).all())
        assert bool(((tracks.mobility >= 0) & (tracks.mobility <= 1)).all())
        assert torch.equal(tracks.uv[..., 0].isfinite(), tracks.visibility > 0)
        assert len(tracks.ids.unique()) == len(tracks.ids)


def test_the_number_of_tracks_is_bounded_and_they_end():
    tracker = KltTracker(max_points=60)
    stream = frames("demo", LENGTH)
    for tracks in tracked(stream, tracker):
        assert len(tracks.ids) <= 60
    grey = torch.full((240, 320, 3), 100, dtype=torch.uint8)
    blind = tuple(replace(stream[0], index=LENGTH + i, rgb=grey) for i in range(16))
    assert len(tracker.track(Window(blind[:12], 9)).ids) > 0
    assert len(tracker.track(Window(blind[4:], 13)).ids) == 0


def test_a_hidden_point_is_found_again():
    stream = list(frames("standing_still", 8))
    before = KltTracker().track(Window(tuple(stream), 5))
    stream[3] = replace(stream[3], rgb=torch.zeros_like(stream[3].rgb))
    tracks = KltTracker().track(Window(tuple(stream), 5))
    old = tracks.ids < len(before.ids)
    assert not bool(tracks.visibility[3].any())
    found = tracks.visibility[-1, old] > 0
    assert found.float().mean() > 0.7
    shift = tracks.uv[-1, old][found] - tracks.uv[0, old][found]
    assert float(shift.norm(dim=-1).nanmedian()) < 0.1


def test_same_input_same_tracks_and_reset_forgets():
    tracker = KltTracker()
    stream = frames("demo", 12)
    first = tracked(stream, tracker)
    tracker.reset()
    for again in (tracked(stream, tracker), tracked(stream)):
        assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_tracks_do_not_know_the_future():
    stream = frames("demo", 12)
    other = tuple(replace(f, rgb=255 - f.rgb) if f.index >= 8 else f for f in stream)
    for a, b in list(zip(tracked(stream), tracked(other), strict=True))[:2]:
        assert same(a, b)


def test_a_frame_of_another_size_is_refused_and_changes_nothing():
    stream = frames("demo", 12)
    tracker = KltTracker()
    good = tracked(stream)
    tracker.track(windows(stream)[0])
    odd = replace(stream[4], rgb=stream[4].rgb[:-1])
    with pytest.raises(PredictorError, match="size"):
        tracker.track(Window((*stream[:4], odd), 2))
    with pytest.raises(PredictorError, match="order"):
        tracker.track(Window(stream[:2], 0))
    assert same(tracker.track(windows(stream)[1]), good[1])


@pytest.fixture(scope="module")
def walkers() -> tuple[Frame, ...]:
    folder = require("rendered/room_walkers") / "rgb"
    images = (cv2.imread(str(path)) for path in sorted(folder.iterdir())[:32])
    return tuple(
        Frame(i, i, torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
        for i, image in enumerate(images)
    )


@pytest.mark.data
def test_mobility_of_walkers(walkers):
    """Measured: 0.77 of the moving and 0.96 of the static tracks are told right."""
    folder = require("rendered/room_walkers")
    masks = [cv2.imread(str(p), 0) > 127 for p in sorted((folder / "masks").iterdir())[:32]]
    tracker, scores, shares, seconds = KltTracker(), [], [], []
    for window in windows(walkers):
        start = time.process_time()
        tracks = tracker.track(window)
        seconds.append((time.process_time() - start) / 4)  # of the window's frames are new
        shares.append(moving_share(window, tracks, masks))
        scores.append(tracks.mobility[-1].numpy())
    score, share = np.concatenate(scores), np.concatenate(shares)
    moving, static = (score[(share == s) & (score != UNKNOWN)] for s in (1.0, 0.0))
    recall, specificity = (moving > 0.5).mean(), (static < 0.5).mean()
    print(f"recall {recall:.3f}, specificity {specificity:.3f}, {1e3 * min(seconds):.1f} ms")
    assert 0.5 * (recall + specificity) > 0.82
    assert min(seconds) < 0.05  # processor time; 20 to 25 ms on a quiet core


def moving_share(window: Window, tracks: Tracks, masks: list[np.ndarray]) -> np.ndarray:
    """Share of a track's sights that lie on a moving body; NaN unless seen in the last frame."""
    uv = tracks.uv.numpy()
    seen = np.isfinite(uv[..., 0])
    column, row = np.rint(np.where(seen[..., None], uv, 0)).astype(int).transpose(2, 0, 1)
    hits = np.stack([masks[i][r, c] for i, r, c in zip(window.indices, row, column, strict=True)])
    share = (hits & seen).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return np.where(seen[-1], share, np.nan)


@pytest.mark.data
def test_positions_of_exact_points_of_walkers(walkers):
    """Measured: 0.08 px after three frames."""
    exact = np.load(require("rendered/room_walkers") / "tracks.npz")
    grey = [cv2.cvtColor(frame.rgb.numpy(), cv2.COLOR_RGB2GRAY) for frame in walkers[:12]]
    for first, last in ((0, 3), (8, 11)):
        seen = exact["visible"][first] & exact["visible"][last] & ~exact["mobile"]
        start, end = (exact["tracks"][i][seen].astype(float) for i in (first, last))
        found, good = follow(grey[first], grey[last], start, start, 1.0)
        assert good.mean() > 0.8
        assert np.median(np.linalg.norm(found - end, axis=1)[good]) < 0.12

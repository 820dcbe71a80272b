"""The tracker around DynPT: windows, memory and coordinates, with a network that knows it all."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from recon4d_ros.config import Config, TrackerConfig
from recon4d_ros.datatypes import Frame, Tracks, Window
from recon4d_ros.errors import ConfigError, ModelError, PredictorError
from recon4d_ros.networks.dynpt import (
    DynPT,
    DynPTConfig,
    FeatureMaps,
    QuerySupport,
    TrackState,
    checkpoint,
)
from recon4d_ros.pipeline.factory import build_tracker
from recon4d_ros.predictors.dynpt.loading import load_tracker
from recon4d_ros.predictors.dynpt.tracker import DynPTTracker
from recon4d_ros.predictors.interface import PointTracker
from recon4d_ros.predictors.klt import KltTracker

# Frames are twice as large as what the network sees.
SIZE, SETTINGS = (96, 128), TrackerConfig(name="dynpt", long_side=64, max_points=80, iterations=2)
VELOCITY = torch.tensor([0.5, -0.25])  # px of the network's images per frame
SURE = 10.0
NARROW = dataclasses.replace(
    DynPTConfig.named("tiny"), trunk_widths=(8, 8, 8, 8), context_width=8, layers=1, hidden=32
)


class KnowingNetwork:
    """Everything moves with one velocity; what happens is written down."""

    config = NARROW
    device = torch.device("cpu")

    def __init__(self, visible: bool = True) -> None:
        self.visible = visible
        self.encoded: list[int] = []
        self.initials: list[TrackState | None] = []
        self.queries: list[torch.Tensor] = []

    def encode(self, rgb: torch.Tensor) -> FeatureMaps:
        assert tuple(rgb.shape[-2:]) == (48, 64) and rgb.min() >= -1 and rgb.max() <= 1
        self.encoded.append(rgb.shape[1])
        return FeatureMaps((rgb.movedim(2, -1),), None)

    def support(self, maps: FeatureMaps, queries: torch.Tensor) -> QuerySupport:
        assert maps.num_frames == 1 and bool((queries[..., 0] == 0).all())
        return QuerySupport((queries[..., None, 1:],), None)

    def refine(self, maps, support, queries, *, iterations, initial, valid):
        assert iterations == SETTINGS.iterations and valid.shape == (1, 80)
        torch.testing.assert_close(support.patches[0][0, :, 0][valid[0]], queries[0, valid[0], 1:])
        self.initials.append(initial)
        self.queries.append(queries)
        frames = torch.arange(maps.num_frames)[None, :, None, None]
        uv = queries[:, None, :, 1:] + (frames - queries[:, None, :, :1]) * VELOCITY
        sure = torch.full(uv.shape[:3], SURE)
        seen = sure if self.visible else -sure
        return (TrackState(uv, seen, sure, -sure),)


def frame(index: int, size: tuple[int, int] = SIZE) -> Frame:
    rgb = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
    return Frame(index, index, torch.from_numpy(rgb))


def window(first: int, length: int) -> Window:
    return Window(tuple(frame(index) for index in range(first, first + length)), length)


def sliding(first: int, length: int) -> Window:
    """A smooth picture that slides by twice `VELOCITY`, as the tests' network says."""
    noise = np.random.default_rng(3).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 2.0)

    def at(index: int) -> Frame:
        x, y = (-2 * VELOCITY * index).tolist()
        shift = np.array([[1, 0, 60 + x], [0, 1, 60 + y]])
        options = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        rgb = cv2.warpAffine(picture, shift, SIZE[::-1], flags=options)
        return Frame(index, index, torch.from_numpy(rgb))

    return Window(tuple(at(index) for index in range(first, first + length)), length)


def by_id(tracks: Tracks) -> dict[int, int]:
    return {int(track): column for column, track in enumerate(tracks.ids)}


def test_tracks_come_in_pixels_of_the_frames_and_keep_their_ids() -> None:
    network = KnowingNetwork()
    tracker = DynPTTracker(network, SETTINGS)
    assert isinstance(tracker, DynPTTracker)
    first, second = tracker.track(window(0, 8)), tracker.track(window(4, 8))
    shared = sorted(by_id(first).keys() & by_id(second).keys())
    assert len(shared) > 20
    for track in shared:
        uv = second.uv[:, by_id(second)[track]]
        # Twice the network's velocity, since the frames are twice as large.
        torch.testing.assert_close(uv[1:] - uv[:-1], (2 * VELOCITY).expand(7, 2))
        before = first.uv[:, by_id(first)[track]]
        known = before.isfinite().all(dim=-1)
        torch.testing.assert_close(uv[:4][known[4:]], before[4:][known[4:]])
    assert (second.ids[1:] > second.ids[:-1]).all()
    assert second.visibility.shape == second.mobility.shape == second.uv.shape[:2]


def test_new_points_are_known_in_the_newest_frame_alone_until_the_next_window() -> None:
    tracker = DynPTTracker(KnowingNetwork(visible=False), SETTINGS)
    first = tracker.track(window(0, 4))
    fresh = first.uv[0].isnan().all(dim=-1)
    assert fresh.any() and not fresh.all()
    assert first.uv[-1].isfinite().all()
    assert (first.visibility[-1, fresh] == 1).all() and (first.visibility[:-1, fresh] == 0).all()
    assert (first.mobility[:, fresh] == 0.5).all()
    again = tracker.track(window(4, 4))
    columns = [by_id(again)[int(track)] for track in first.ids[fresh]]
    assert again.uv[:, columns].isfinite().all()


def test_frames_are_encoded_once_and_windows_start_from_the_last_result() -> None:
    network = KnowingNetwork()
    tracker = DynPTTracker(network, SETTINGS)
    tracker.track(window(0, 8))
    tracker.track(window(4, 8))
    assert network.encoded == [8, 4]
    start = network.initials[1]
    assert start is not None
    old = torch.isfinite(network.queries[0]).all(dim=-1)[0] & (network.queries[1][0, :, 0] < 0)
    expected = (
        network.queries[1][:, None, old, 1:]
        + (
            torch.arange(8).clamp(max=3)[None, :, None, None]
            - network.queries[1][:, None, old, :1]
        )
        * VELOCITY
    )
    torch.testing.assert_close(start.uv[:, :, old], expected)
    assert (start.visibility_logit[:, :, old] == SURE).all()


def test_tracks_start_where_flow_leads_them() -> None:
    network = KnowingNetwork()
    network.config = dataclasses.replace(NARROW, start="flow")
    tracker = DynPTTracker(network, SETTINGS)
    tracker.track(sliding(0, 6))
    tracker.track(sliding(4, 6))
    for initial, queries in zip(network.initials, network.queries, strict=True):
        assert initial is not None
        frames = torch.arange(6)[None, :, None, None]
        expected = queries[:, None, :, 1:] + (frames - queries[:, None, :, :1]) * VELOCITY
        inside = ((expected > 6) & (expected < torch.tensor([57.0, 41.0]))).all(-1).all(1)
        assert inside.sum() > 5
        off = (initial.uv - expected)[0, :, inside[0]].norm(dim=-1)
        # The picture is tiny; standing still would be off by 2.8 px at the far end.
        assert off.median() < 0.25 and (off < 0.5).float().mean() > 0.9
        assert (initial.visibility_logit[0, :, inside[0]] > 0).float().mean() > 0.9


def test_a_repeated_window_gives_the_same_and_asks_nothing() -> None:
    network = KnowingNetwork()
    tracker = DynPTTracker(network, SETTINGS)
    assert tracker.track(window(0, 4)) is tracker.track(window(0, 4))
    assert network.encoded == [4]
    assert tracker.track(window(0, 1 + 4)).uv.shape[0] == 5
    assert network.encoded == [4, 1]


def test_points_that_stay_hidden_end_and_the_table_is_bounded() -> None:
    tracker = DynPTTracker(KnowingNetwork(visible=False), SETTINGS)
    first = tracker.track(window(0, 4))
    later = [tracker.track(window(start, 4)) for start in range(4, 24, 4)]
    born_first = set(first.ids[first.uv[0].isfinite().all(dim=-1)].tolist())
    assert born_first <= set(later[1].ids.tolist())  # frame 11: hidden for 11 frames
    assert not born_first & set(later[2].ids.tolist())  # frame 15
    assert all(len(tracks.ids) <= SETTINGS.max_points for tracks in later)
    assert len(set(later[-1].ids.tolist())) == len(later[-1].ids)


def test_images_without_texture_give_no_tracks() -> None:
    flat = Frame(0, 0, torch.full((*SIZE, 3), 90, dtype=torch.uint8))
    tracks = DynPTTracker(KnowingNetwork(), SETTINGS).track(Window((flat,), 1))
    assert tracks.uv.shape == (1, 0, 2) and len(tracks.ids) == 0


def test_frames_that_do_not_fit_leave_the_tracker_as_it_was() -> None:
    network = KnowingNetwork()
    tracker = DynPTTracker(network, SETTINGS)
    tracker.track(window(4, 4))
    for other in (frame(8, (64, 64)), frame(2)):
        with pytest.raises(PredictorError, match="reset"):
            tracker.track(Window((other,), 1))
    assert network.encoded == [4]
    tracker.reset()
    assert tracker.track(window(0, 2)).uv.shape[0] == 2


def test_the_configuration_names_the_tracker(tmp_path) -> None:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "a.safetensors", DynPT(NARROW), {})
    settings = dataclasses.replace(SETTINGS, model=str(tmp_path / "a.safetensors"), device="cpu")
    tracker: PointTracker = build_tracker(dataclasses.replace(Config(), tracker=settings))
    assert isinstance(tracker, DynPTTracker)
    first, second = tracker.track(window(0, 4)), tracker.track(window(2, 4))
    assert first.uv[0].isfinite().any() and second.uv.isfinite().any()
    assert isinstance(build_tracker(Config()), KltTracker)


def test_models_and_parameters_that_do_not_fit_are_refused(tmp_path) -> None:
    def load(**changes: object) -> None:
        load_tracker(
            dataclasses.replace(Config(), tracker=dataclasses.replace(SETTINGS, **changes))
        )

    with pytest.raises(ModelError, match="tracker\\.model is empty"):
        load(runtime="onnx")
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, DynPT(dataclasses.replace(NARROW, context="tokens")), {})
    with pytest.raises(ModelError, match="needs the tokens"):
        load(model=str(path), device="cpu")
    with pytest.raises(ConfigError, match="set it to 48"):
        load(model=str(path), device="cpu", long_side=50)
    with pytest.raises(ConfigError, match="tracker\\.device='tpu' is refused"):
        load(model=str(path), device="tpu")

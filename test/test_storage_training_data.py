"""Readers of training data on small files of their layouts, whose geometry is exact."""

import numpy as np
import pytest
import torch
from training_files import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    Plates,
    as_numpy,
    example,
    kubric_features,
    write_point_odyssey,
    write_records,
    write_tartanair,
)

from recon4d_ros.datatypes import Clips
from recon4d_ros.errors import FrameError, SourceError
from recon4d_ros.storage.training_data.kubric import KubricReader
from recon4d_ros.storage.training_data.point_odyssey import PointOdysseyReader
from recon4d_ros.storage.training_data.shape import ClipShape, Framing, evenly
from recon4d_ros.storage.training_data.solids import MobilityRule
from recon4d_ros.storage.training_data.sources import (
    SOURCES,
    MixedReader,
    Share,
    open_mixture,
)
from recon4d_ros.storage.training_data.tartanair import TartanAirReader

WHOLE = ClipShape(NUM_FRAMES, (HEIGHT, WIDTH), 60)
MOVI = Plates(35 / 32 * WIDTH)
STILL = Plates(WIDTH / 2, is_still=True, pace=3.0)
ODYSSEY = Plates(60.0)


@pytest.fixture(scope="module")
def movi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movi_e")
    record = example(kubric_features(MOVI))
    write_records(folder / "movi_e-train.tfrecord-00000-of-00001", [record, record])
    return folder


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tartanair")
    write_tartanair(folder / "office" / "Easy" / "P000", STILL)
    return folder


@pytest.fixture(scope="module")
def odyssey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odyssey")
    write_point_odyssey(folder / "train" / "walk", ODYSSEY)
    return folder


def equal(first: Clips, second: Clips) -> bool:
    names = ("rgb", "queries", "tracks", "visibility", "moves_in_frame", "object_ids")
    pairs = ((getattr(first, name), getattr(second, name)) for name in names)
    return all(torch.equal(torch.nan_to_num(a, -1), torch.nan_to_num(b, -1)) for a, b in pairs)


def check_exact(clip: Clips, plates: Plates, tolerance_px: float) -> None:
    """Tracks where the scene's own geometry has them, seen where a ray finds their body."""
    queries = as_numpy(clip.queries[0])
    body = np.array([plates.cast(q[None, 1:], int(q[0]))[1][0] for q in queries])
    uv, shown = plates.tracks(queries, body)
    error = np.linalg.norm(as_numpy(clip.tracks[0]) - uv, axis=-1)
    assert error.max() < tolerance_px
    inside = ((uv > -0.5) & (uv < [WIDTH - 0.5, HEIGHT - 0.5])).all(-1)
    told = clip.visibility[0].numpy()
    assert not told[~inside].any()
    # Within a pixel of an outline the four pixels around a point show more than one body.
    around = [shown == plates_at(plates, uv + shift) for shift in shifts()]
    clear = inside & np.all(around, axis=0)
    assert clear.mean() > 0.5 and (shown != body)[clear].any()
    assert (told == (shown == body))[clear].all()


def shifts() -> np.ndarray:
    return np.array([[x, y] for x in (-1.0, 0, 1) for y in (-1.0, 0, 1)])


def plates_at(plates: Plates, uv: np.ndarray) -> np.ndarray:
    return np.stack([plates.cast(uv[frame], frame)[1] for frame in range(NUM_FRAMES)])


def test_kubric_tracks_are_exact(movi):
    clip = KubricReader(movi, WHOLE).clips(0, 1)
    check_exact(clip, MOVI, 0.02)  # depth is stored in 65536 steps
    body = clip.object_ids[0]
    assert torch.bincount(body).tolist() == [15, 15, 15, 15]  # as equal as it can be
    queries = as_numpy(clip.queries[0])
    truth = [MOVI.cast(q[None, 1:], int(q[0]))[1][0] for q in queries]
    assert body.tolist() == truth
    rgb, z, _ = MOVI.maps(2)
    np.testing.assert_array_equal(clip.rgb[0, 2].numpy(), rgb)
    np.testing.assert_allclose(clip.depth[0, 2], z, rtol=2e-4)
    np.testing.assert_allclose(clip.K[0], MOVI.K)
    np.testing.assert_allclose(clip.T_world_cam[0, 4], MOVI.T_world_cam(4), atol=1e-6)


def test_kubric_mobility_follows_the_rule(movi):
    for rule, moving in ((MobilityRule(), {1, 2}), (MobilityRule(turn_deg=None), {1})):
        clip = KubricReader(movi, WHOLE, rule=rule).clips(0, 1)
        body, moves = clip.object_ids[0], clip.moves_in_clip[0]
        assert set(body[moves].tolist()) == moving and clip.is_judged.all()
        assert torch.equal(moves.expand(NUM_FRAMES, -1), clip.moves_in_frame[0])
        expected = np.isin(MOVI.maps(3)[2], list(moving))
        np.testing.assert_array_equal(clip.dynamic_mask[0, 3], expected)
    high = KubricReader(movi, WHOLE, rule=MobilityRule(0.4, None)).clips(0, 1)
    assert not high.moves_in_clip.any()  # the plate slides 0.304 a frame


def test_tartanair_tracks_are_exact_and_nothing_moves(flights):
    clip = TartanAirReader(flights, ClipShape(NUM_FRAMES, (HEIGHT, WIDTH), 200)).clips(0, 1)
    check_exact(clip, STILL, 2e-3)
    assert not clip.moves_in_frame.any() and not clip.dynamic_mask.any()
    np.testing.assert_allclose(clip.T_world_cam[0, 3], STILL.T_world_cam(3), atol=1e-9)
    np.testing.assert_allclose(clip.K[0], STILL.K)


def test_point_odyssey_tracks_are_exact(odyssey):
    clip = PointOdysseyReader(odyssey, WHOLE).clips(0, 1)
    queries = as_numpy(clip.queries[0])
    at = clip.tracks[0][clip.queries[0, :, 0].long(), torch.arange(60)]
    assert torch.equal(at, clip.queries[0, :, 1:])
    seen = clip.visibility[0][clip.queries[0, :, 0].long(), torch.arange(60)]
    assert seen.all() and len(set(queries[:, 0])) > 2
    body = np.array([ODYSSEY.cast(q[None, 1:], int(q[0]))[1][0] for q in queries])
    uv, _ = ODYSSEY.tracks(queries, body)
    known = np.isfinite(as_numpy(clip.tracks[0])).all(-1)
    assert known.mean() > 0.99
    error = np.linalg.norm(as_numpy(clip.tracks[0]) - uv, axis=-1)[known]
    assert np.quantile(error, 0.9) < 0.01  # a float32 query on an outline may hit the wall
    moves = clip.moves_in_clip[0].numpy()
    assert 20 <= moves.sum() <= 30 and set(body[moves]) <= {1, 2} and (body[~moves] != 1).all()
    np.testing.assert_allclose(clip.T_world_cam[0, 2], ODYSSEY.T_world_cam(2), atol=2e-5)


def test_point_odyssey_reads_compressed_archives_alike(odyssey, tmp_path):
    source = next(odyssey.rglob("anno.npz"))
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "rgbs").symlink_to(source.parent / "rgbs")
    with np.load(source) as stored:
        np.savez_compressed(tmp_path / "walk" / "anno.npz", **stored)
    shape = ClipShape(3, (HEIGHT, WIDTH), 20)
    first, second = (PointOdysseyReader(f, shape).clips(0, 3) for f in (odyssey, tmp_path))
    assert equal(first, second)


@pytest.mark.parametrize("kind", ["movi", "flights", "odyssey"])
def test_equal_numbers_give_equal_clips_of_the_shape_asked_for(kind, request):
    shape = ClipShape(4, (30, 30), 20)
    readers = {"movi": KubricReader, "flights": TartanAirReader, "odyssey": PointOdysseyReader}
    reader = readers[kind](request.getfixturevalue(kind), shape, seed=3)
    batch = reader.clips(5, 3)
    assert batch.rgb.shape == (3, 4, 30, 30, 3) and batch.tracks.shape == (3, 4, 20, 2)
    assert equal(batch, Clips.joined([reader.clips(5, 2), reader.clips(7, 1)]))
    assert not equal(reader.clips(5, 1), reader.clips(6, 1))
    known = torch.isfinite(batch.tracks).all(-1)
    x, y = batch.tracks[batch.visibility & known].unbind(-1)
    assert (x > -0.5).all() and (x < 29.5).all() and (y > -0.5).all() and (y < 29.5).all()
    frame, uv = batch.queries[..., 0].long(), batch.queries[..., 1:]
    at = batch.tracks.gather(1, frame[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    torch.testing.assert_close(at, uv, atol=2e-3, rtol=0)


def test_the_middle_of_an_image_keeps_its_camera():
    framing = Framing.middle((48, 64), (24, 24))
    assert (framing.box.left, framing.box.width, framing.box.height) == (8, 48, 48)
    K = torch.from_numpy(MOVI.K)
    point = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    uv, uv_clip = K @ point, framing.K(K) @ point
    torch.testing.assert_close(framing.uv(uv[:2]), uv_clip[:2])
    inside = framing.contains(torch.tensor([[7.4, 5], [7.6, 5], [55.4, 5], [55.6, 5]]))
    assert inside.tolist() == [False, True, True, False]


def test_drawing_is_even_over_groups_of_any_size():
    groups = torch.tensor([5] * 50 + [2] * 3 + [9] * 20)
    drawn = groups[evenly(groups, 23, np.random.default_rng(0), "x")]
    assert sorted(torch.bincount(drawn)[[2, 5, 9]].tolist()) == [3, 10, 10]
    with pytest.raises(SourceError, match="fewer tracks"):
        evenly(groups, 74, np.random.default_rng(0), "x")


def test_folders_without_data_and_clips_that_are_too_long_are_refused(tmp_path, movi, flights):
    for reader in (KubricReader, TartanAirReader, PointOdysseyReader):
        with pytest.raises(SourceError, match="expected"):
            reader(tmp_path, WHOLE)
    for reader, folder in ((KubricReader, movi), (TartanAirReader, flights)):
        with pytest.raises(SourceError, match="shorter clips"):
            reader(folder, ClipShape(7, (HEIGHT, WIDTH), 8)).clips(0, 1)
    with pytest.raises(SourceError, match="2 frames or more"):
        ClipShape(1, (8, 8), 4)


def test_damaged_folders_are_told(tmp_path):
    flight, walk = tmp_path / "air" / "P000", tmp_path / "odyssey" / "walk"
    write_tartanair(flight, STILL)
    for name in (
        "depth_left/000002_left_depth.npy",
        "image_left/000003_left.png",
        "pose_left.txt",
    ):
        whole = (flight / name).read_bytes()
        (flight / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises((SourceError, FrameError), match="P000"):
            TartanAirReader(tmp_path, WHOLE).clips(0, 1)
        (flight / name).write_bytes(whole)
    write_point_odyssey(walk, ODYSSEY)
    whole = (walk / "anno.npz").read_bytes()
    (walk / "anno.npz").write_bytes(whole[:-200])
    with pytest.raises(SourceError, match="walk"):
        PointOdysseyReader(tmp_path, WHOLE).clips(0, 1)
    np.savez(walk / "anno.npz", trajs_2d=np.zeros((NUM_FRAMES, 3, 2)))
    with pytest.raises(SourceError, match="trajs_3d"):
        PointOdysseyReader(tmp_path, WHOLE).clips(0, 1)


class Numbered:
    """A reader whose clips are a picture of their number; some cannot be read."""

    def __init__(self, clip: Clips, colour: int, is_bad=lambda number: False) -> None:
        self._clip, self._colour, self._is_bad = clip, colour, is_bad

    def clips(self, first: int, count: int) -> Clips:
        assert count == 1
        if self._is_bad(first):
            raise SourceError("half written")
        fields = {**vars(self._clip), "rgb": torch.full_like(self._clip.rgb, self._colour)}
        return Clips(**fields)


@pytest.fixture(scope="module")
def small(flights):
    return TartanAirReader(flights, ClipShape(2, (8, 8), 4)).clips(0, 1)


def test_a_mixture_keeps_its_ratios_and_repeats(small):
    parts = {"a": Share(Numbered(small, 1), 3.0), "b": Share(Numbered(small, 2), 1.0)}
    mixed = MixedReader(parts, seed=1)
    colours = mixed.clips(0, 600).rgb[:, 0, 0, 0, 0]
    # Binomial: 450 of 600 within four standard deviations.
    assert abs(int((colours == 1).sum()) - 450) < 4 * np.sqrt(600 * 0.25 * 0.75)
    assert mixed.num_read == {"a": int((colours == 1).sum()), "b": int((colours == 2).sum())}
    again = MixedReader(parts, seed=1).clips(100, 50).rgb[:, 0, 0, 0, 0]
    assert torch.equal(again, colours[100:150])
    other = MixedReader(parts, seed=2).clips(0, 600).rgb[:, 0, 0, 0, 0]
    assert not torch.equal(other, colours)


def test_unreadable_clips_are_replaced_and_counted_up_to_one_per_cent(small):
    rare = Numbered(small, 1, lambda number: number % 400 == 0)
    mixed = MixedReader({"a": Share(rare, 1.0)})
    assert len(mixed.clips(0, 1500).rgb) == 1500
    assert 1 <= mixed.num_unreadable["a"] <= 12
    often = Numbered(small, 1, lambda number: number % 20 == 0)
    with pytest.raises(SourceError, match=r"2 of \d+ training clips .*'a': 2.*half written"):
        MixedReader({"a": Share(often, 1.0)}).clips(0, 400)


def test_a_half_written_shard_stops_a_mixture(movi, flights, tmp_path):
    for name, share in (("0", 1.0), ("1", 0.7)):
        content = next(movi.iterdir()).read_bytes()
        (tmp_path / f"movi_f.tfrecord-{name}").write_bytes(content[: int(share * len(content))])
    mixed = open_mixture({"movi_f": tmp_path, "tartanair": flights}, WHOLE)
    with pytest.raises(SourceError, match="ends within a record"):
        mixed.clips(0, 40)
    assert mixed.num_unreadable == {"movi_f": 2}


def test_the_registry_names_ratios_and_licences():
    shares = {name: source.ratio for name, source in SOURCES.items()}
    assert (shares["point_odyssey"], shares["tartanair"]) == (57.1, 14.3)
    assert all(source.licence for source in SOURCES.values())
    with pytest.raises(SourceError, match=r"unknown \['carla'\]"):
        open_mixture({"carla": None}, WHOLE)
    with pytest.raises(SourceError, match="above 0"):
        MixedReader({})

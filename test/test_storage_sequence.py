"""Sequence folders: what is written is read, real ones open, half-written ones are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recordings import CAMERA, HEIGHT, PERIOD_NS, START_NS, WIDTH, picture, samples, write_folder

from recon4d_ros.datatypes import Intrinsics
from recon4d_ros.errors import FrameError, OutputError, SourceError
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.recording import FrameSource
from recon4d_ros.storage.rectification import CameraModel, DistortionModel, Rectifier
from recon4d_ros.storage.sequence_writer import write_sequence

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FISHEYE = CameraModel(CAMERA.intrinsics, DistortionModel.EQUIDISTANT, (0.03, -0.01, 0.0, 0.0))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", 4)
    frames = list(folder)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.stamp_ns for frame in frames] == [START_NS + i * PERIOD_NS for i in range(4)]
    for frame, sample in zip(frames, samples(4), strict=True):
        assert torch.equal(frame.rgb, sample.rgb)
        assert frame.intrinsics == CAMERA.intrinsics
        depth, mask = folder.truth.depth(frame.stamp_ns), folder.truth.mask(frame.stamp_ns)
        assert depth is not None and sample.depth is not None
        torch.testing.assert_close(depth, sample.depth, equal_nan=True, atol=2e-4, rtol=0)
        assert mask is not None and torch.equal(mask, sample.mask)
    trajectory = folder.truth.trajectory()
    assert trajectory is not None
    assert trajectory.T_world_cam[:, 0, 3].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("camera", [None, CAMERA, FISHEYE])
def test_the_camera_comes_back(tmp_path: Path, camera: CameraModel | None) -> None:
    assert write_folder(tmp_path / "s", 2, camera=camera).camera == camera


def test_frames_of_a_distorted_camera_are_rectified(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", 2, camera=FISHEYE)
    expected = Rectifier(FISHEYE, (HEIGHT, WIDTH)).rectify(picture(0))
    assert torch.equal(next(iter(folder)).rgb, expected)


def test_truth_may_be_absent(tmp_path: Path) -> None:
    bare = [replace(s, depth=None, mask=None, T_world_cam=None) for s in samples(2)]
    truth = write_sequence(tmp_path / "s", CAMERA, bare).truth
    assert (truth.depth(START_NS), truth.mask(START_NS), truth.trajectory()) == (None,) * 3
    assert (truth.has_depth, truth.has_masks, truth.trajectory_path) == (False, False, None)


def test_depth_of_another_clock_is_the_nearest_within_20_ms(tmp_path: Path) -> None:
    truth = write_folder(tmp_path / "s", 3).truth
    near, exact = truth.depth(START_NS + PERIOD_NS + 5_000_000), truth.depth(START_NS + PERIOD_NS)
    assert near is not None and exact is not None
    assert torch.equal(near.nan_to_num(), exact.nan_to_num())
    assert truth.depth(START_NS - 21_000_000) is None


def test_writing_refuses_a_full_folder_and_no_samples(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", 1)
    with pytest.raises(OutputError, match="not empty"):
        write_folder(tmp_path / "s", 1)
    with pytest.raises(OutputError, match="no sample"):
        write_sequence(tmp_path / "t", CAMERA, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        write_folder(tmp_path / "file" / "s", 1)


def cut_last_image(folder: Path) -> None:
    path = sorted((folder / "rgb").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-40])


def describe(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "intrinsics.json").read_text())
    (folder / "intrinsics.json").write_text(json.dumps(content | changes))


def edit_index(folder: Path, old: str, new: str) -> None:
    path = folder / "rgb.txt"
    path.write_text(path.read_text().replace(old, new))


HALF_WRITTEN = {
    "no index": (lambda f: (f / "rgb.txt").unlink(), "rgb.txt"),
    "empty index": (lambda f: (f / "rgb.txt").write_text("# timestamp filename\n"), "nothing"),
    "cut index": (lambda f: edit_index(f, " rgb/000003.png\n", ""), "line 5"),
    "no stamp": (lambda f: edit_index(f, f"{START_NS // 10**9}.", "x."), "line 2"),
    "missing image": (lambda f: (f / "rgb" / "000002.png").unlink(), "image 3 of 4"),
    "empty image": (lambda f: (f / "rgb" / "000001.png").write_bytes(b""), "0 bytes"),
    "cut image": (cut_last_image, "image 4 of 4"),
    "no camera": (lambda f: (f / "intrinsics.json").unlink(), "intrinsics.json"),
    "cut camera": (lambda f: (f / "intrinsics.json").write_text('{"width": 64'), "intrinsics"),
    "camera is a list": (lambda f: (f / "intrinsics.json").write_text("[]"), "no object"),
    "no cx": (lambda f: describe(f, cx=None), "expected numbers"),
    "NaN focal": (lambda f: describe(f, fx=float("nan")), "finite"),
    "bad distortion": (lambda f: describe(f, distortion=[1, 2, 3]), "3 distortion"),
}


@pytest.mark.parametrize("case", HALF_WRITTEN)
def test_half_written_folders_are_refused_at_once(tmp_path: Path, case: str) -> None:
    damage, word = HALF_WRITTEN[case]
    folder = write_folder(tmp_path / "s", 4).path
    damage(folder)
    with pytest.raises(SourceError, match=word):
        SequenceFolder(folder)


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text("a1-", max_size=3),
    st.just([1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["fx", "fy", "cx", "cy", "width", "height", "distortion", "depth_scale"]),
        NUMBERS,
        max_size=2,
    )
)
@example(changes={"width": math.inf})
@example(changes={"fx": 10**400})
@example(changes={"depth_scale": 10**400})
@example(changes={"depth_scale": 1e300})
def test_any_camera_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cameras"
    if not folder.exists():
        write_folder(folder, 1)
    pristine = (folder / "intrinsics.json").read_text()
    try:
        describe(folder, **changes)
        sequence = SequenceFolder(folder)
        frame = next(iter(sequence))
        sequence.truth.depth(frame.stamp_ns)
        assert frame.intrinsics is None or frame.intrinsics.fx > 0
    except SourceError:
        pass
    finally:
        (folder / "intrinsics.json").write_text(pristine)


def test_a_camera_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", 2)
    describe(folder.path, width=128, height=96)
    with pytest.raises(SourceError, match="calibration is for 128x96"):
        FrameSource(SequenceFolder(folder.path))


def stamps_of(folder: Path, *seconds: str) -> SequenceFolder:
    """The folder with other stamps."""
    lines = [f"{text} rgb/{number:06d}.png\n" for number, text in enumerate(seconds)]
    (folder / "rgb.txt").write_text("".join(lines))
    return SequenceFolder(folder)


def test_bad_stamps_stop_a_strict_source_and_are_counted_by_a_lenient_one(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "s", 5).path
    folder = stamps_of(path, "1.0", "1.1", "1.1", "0.5", "1.2")
    with pytest.raises(FrameError, match=r"1\.100000000 s: its stamp repeats.*--skip-bad-frames"):
        list(FrameSource(folder))
    source = FrameSource(folder, skip_bad_frames=True)
    frames = list(source)
    assert [frame.stamp_ns // 10**8 for frame in frames] == [10, 11, 12]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert ["repeats" in source.drops[0], "older" in source.drops[1]] == [True, True]
    list(source)
    assert len(source.drops) == 2


def test_an_image_of_another_size_in_mid_stream(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", 3)
    other = np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8)
    cv2.imwrite(str(folder.path / "rgb" / "000001.png"), other)
    with pytest.raises(FrameError, match="66x48 in a stream of 64x48"):
        list(FrameSource(folder))
    source = FrameSource(folder, skip_bad_frames=True)
    assert [frame.stamp_ns for frame in source] == [START_NS, START_NS + 2 * PERIOD_NS]
    assert len(source.drops) == 1


REAL = {
    "icl_livingroom1": (211, True, False),
    "tum_fr3_walking_halfsphere_clip": (50, True, False),
    "tum_fr2_desk_clip20": (20, False, False),
    "kitti_odo_a": (51, False, False),
    "davis16_dev/dog": (40, False, True),
    "rendered/room_walkers": (60, True, True),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_sequences_open(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not there: put the real sequences into ../shared/data")
    num_frames, has_depth, has_masks = REAL[name]
    folder = SequenceFolder(DATA / name)
    frame = next(iter(folder))
    assert (len(folder), folder.truth.has_depth, folder.truth.has_masks) == REAL[name]
    assert frame.size == folder.size
    assert (frame.intrinsics is None) == name.startswith("davis")
    assert isinstance(frame.intrinsics, (Intrinsics, type(None)))
    assert (folder.truth.depth(frame.stamp_ns) is not None) == has_depth
    assert (folder.truth.mask(frame.stamp_ns) is not None) == has_masks
    assert num_frames == sum(1 for _ in folder.images())

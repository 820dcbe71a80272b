"""Bags and videos: the same frames as the folder they were made from, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from recordings import (
    CAMERA,
    PERIOD_NS,
    START_NS,
    camera_info,
    compressed_message,
    header,
    image_message,
    make,
    picture,
    write_folder,
    write_messages,
)
from rosbags.rosbag2 import StoragePlugin

from recon4d_ros.errors import FrameError, OutputError, SourceError
from recon4d_ros.storage.bag_writer import OPTICAL_FRAME, open_bag, write_bag
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.rectification import CameraModel, DistortionModel
from recon4d_ros.storage.source import open_source

STORAGES = pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
DISTORTED = CameraModel(
    CAMERA.intrinsics, DistortionModel.PLUMB_BOB, (-0.1, 0.02, 0.001, 0.0, 0.003)
)


@STORAGES
@pytest.mark.parametrize("camera", [None, CAMERA, DISTORTED])
def test_a_bag_gives_the_frames_of_its_folder(
    tmp_path: Path, storage: str, camera: CameraModel | None
) -> None:
    folder = write_folder(tmp_path / "s", 3, camera=camera)
    assert list(write_bag(folder, tmp_path / "bag", storage=storage)) == [1, 2, 3]
    source = open_source(tmp_path / "bag")
    assert source.num_frames == 3
    assert source.recording.camera == camera
    for ours, theirs in zip(source, folder, strict=True):
        assert (ours.index, ours.stamp_ns) == (theirs.index, theirs.stamp_ns)
        assert ours.intrinsics == theirs.intrinsics
        assert torch.equal(ours.rgb, theirs.rgb)


@STORAGES
def test_a_single_file_of_a_bag_is_enough(tmp_path: Path, storage: str) -> None:
    list(write_bag(write_folder(tmp_path / "s", 2), tmp_path / "bag", storage=storage))
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix in (".mcap", ".db3"))
    assert len(list(open_source(file))) == 2


def test_ros_reads_what_we_write(tmp_path: Path) -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="needs the ROS 2 messages")
    serialization = pytest.importorskip("rclpy.serialization", reason="needs rclpy")
    from rosbags.rosbag2 import Reader

    list(write_bag(write_folder(tmp_path / "s", 1, camera=DISTORTED), tmp_path / "bag"))
    kinds = {"Image": sensor_msgs.Image, "CameraInfo": sensor_msgs.CameraInfo}
    with Reader(tmp_path / "bag") as reader:
        found = {
            connection.topic: serialization.deserialize_message(
                bytes(content), kinds[connection.msgtype.rpartition("/")[2]]
            )
            for connection, _, content in reader.messages()
        }
    image, info = found["/camera/image_raw"], found["/camera/camera_info"]
    assert image.header == info.header
    assert image.header.frame_id == OPTICAL_FRAME
    assert image.header.stamp.sec * 10**9 + image.header.stamp.nanosec == START_NS
    assert bytes(image.data) == picture(0).numpy().tobytes()
    assert tuple(info.d) == DISTORTED.coefficients
    assert info.distortion_model == "plumb_bob"
    assert info.k[0] == info.p[0] == CAMERA.intrinsics.fx


def test_writing_a_bag_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with pytest.raises(OutputError, match="exists"), open_bag(tmp_path / "bag", None):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), open_bag(tmp_path / "file" / "b", None):
        pass


def compressed(number: int) -> object:
    content = cv2.imencode(".png", picture(number).numpy()[..., ::-1])[1].tobytes()
    return compressed_message(content, "rgb8; png compressed bgr8", START_NS + number * PERIOD_NS)


def raw(number: int, stamp_ns: int | None = None) -> object:
    stamp = START_NS + number * PERIOD_NS if stamp_ns is None else stamp_ns
    return image_message(picture(number).numpy(), "rgb8", stamp_ns=stamp)


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_compressed_images_with_the_camera_info_beside_them(
    tmp_path: Path, storage: StoragePlugin
) -> None:
    info = camera_info(width=64, height=48, k=[60, 0, 31, 0, 61, 24, 0, 0, 1], d=[])
    far = camera_info(width=64, height=48, k=[90, 0, 31, 0, 91, 24, 0, 0, 1], d=[])
    messages = [("/other/camera_info", far), ("/cam/camera_info", info)]
    messages += [("/cam/image_raw/compressed", compressed(number)) for number in range(3)]
    source = open_source(write_messages(tmp_path / "bag", messages, storage))
    frames = list(source)
    assert [torch.equal(frame.rgb, picture(i)) for i, frame in enumerate(frames)] == [True] * 3
    assert frames[0].intrinsics is not None
    assert frames[0].intrinsics.fx == 60.0


def test_no_image_topic_lists_what_there_is(tmp_path: Path) -> None:
    messages = [("/cam/camera_info", camera_info()), ("/clock_like", header())]
    write_messages(tmp_path / "bag", messages)
    with pytest.raises(SourceError, match=r"/cam/camera_info \(sensor_msgs/msg/CameraInfo\)"):
        open_source(tmp_path / "bag")


def test_two_image_topics_ask_which(tmp_path: Path) -> None:
    bag = write_messages(tmp_path / "bag", [("/left", raw(0)), ("/right", raw(1))])
    with pytest.raises(SourceError, match=r"/left, /right; choose one .*--image-topic"):
        open_source(bag)
    assert torch.equal(next(iter(open_source(bag, "/right"))).rgb, picture(1))
    with pytest.raises(SourceError, match=r"no image topic '/up'; image topics: /left, /right"):
        open_source(bag, "/up")


def test_an_absurd_camera_info_is_refused(tmp_path: Path) -> None:
    info = camera_info(width=64, height=48, k=[float("nan")] * 9)
    bag = write_messages(tmp_path / "bag", [("/camera_info", info), ("/image", raw(0))])
    with pytest.raises(SourceError, match=r"/camera_info: .*not finite"):
        open_source(bag)


def bad_images() -> list[tuple[str, object]]:
    truncated = raw(2)
    truncated.data = truncated.data[:-5]  # type: ignore[attr-defined]
    larger = image_message(picture(3, 50, 70).numpy(), "rgb8", stamp_ns=START_NS + 3 * PERIOD_NS)
    images = [raw(0), raw(1), truncated, larger, raw(4, START_NS), raw(5, START_NS + PERIOD_NS)]
    return [("/image", image) for image in [*images, raw(6)]]


def test_bad_images_stop_a_strict_source_and_are_counted_by_a_lenient_one(tmp_path: Path) -> None:
    bag = write_messages(tmp_path / "bag", bad_images())
    strict = iter(open_source(bag))
    assert [next(strict).index, next(strict).index] == [0, 1]
    with pytest.raises(FrameError, match="image data of 9211 bytes"):
        next(strict)
    lenient = open_source(bag, skip_bad_frames=True)
    assert [frame.stamp_ns - START_NS for frame in lenient] == [0, PERIOD_NS, 6 * PERIOD_NS]
    words = ("truncated", "70x50", "older", "repeats")
    assert [word in drop for word, drop in zip(words, lenient.drops, strict=True)] == [True] * 4


def test_a_bag_whose_first_image_is_bad(tmp_path: Path) -> None:
    messages = bad_images()
    bag = write_messages(tmp_path / "bag", [messages[2], messages[-1]])
    with pytest.raises(SourceError, match="no usable image"):
        open_source(bag)
    lenient = open_source(bag, skip_bad_frames=True)
    assert len(list(lenient)) == len(lenient.drops) == 1


def test_an_image_topic_without_images(tmp_path: Path) -> None:
    bag = write_messages(tmp_path / "bag", [("/image", raw(0))])
    metadata = (bag / "metadata.yaml").read_text()
    assert "/image" in metadata
    unusable = write_messages(
        tmp_path / "other", [("/image", make_unusable()), ("/image", make_unusable())]
    )
    with pytest.raises(SourceError, match="zero size"):
        open_source(unusable)


def make_unusable() -> object:
    return make(
        "sensor_msgs/msg/Image",
        header=header(),
        height=0,
        width=0,
        encoding="rgb8",
        is_bigendian=0,
        step=0,
        data=np.empty(0, np.uint8),
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.9])
@STORAGES
def test_broken_bags_are_refused(tmp_path: Path, storage: str, share: float) -> None:
    list(write_bag(write_folder(tmp_path / "s", 8), tmp_path / "bag", storage=storage))
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix in (".mcap", ".db3"))
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for path in (file, tmp_path / "bag"):
        with pytest.raises(SourceError, match="cannot read the bag"):
            list(open_source(path))


def test_a_broken_mcap_can_be_used_up_to_the_break(tmp_path: Path) -> None:
    # Large images, so that the bag has several chunks.
    pictures = [picture(number, 300, 400) for number in range(8)]
    stamps = [START_NS + number * PERIOD_NS for number in range(8)]
    images = [
        image_message(rgb.numpy(), "rgb8", stamp_ns=stamp)
        for rgb, stamp in zip(pictures, stamps, strict=True)
    ]
    write_messages(tmp_path / "bag", [("/image", image) for image in images])
    file = tmp_path / "bag" / "bag.mcap"
    content = file.read_bytes()
    file.write_bytes(content[: 2 * len(content) // 3])
    with pytest.raises(SourceError, match="--skip-bad-frames uses an mcap up to the break"):
        open_source(tmp_path / "bag")
    source = open_source(tmp_path / "bag", skip_bad_frames=True)
    frames = list(source)
    assert 2 <= len(frames) < 8
    for frame, rgb in zip(frames, pictures, strict=False):
        assert torch.equal(frame.rgb, rgb)
    assert "breaks off" in source.drops[-1]
    file.write_bytes(b"no mcap at all, but long enough for a header")
    with pytest.raises(SourceError, match="cannot read the bag"):
        open_source(file, skip_bad_frames=True)


def test_damage_inside_a_bag_is_refused(tmp_path: Path) -> None:
    list(write_bag(write_folder(tmp_path / "s", 8), tmp_path / "bag"))
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    # The file ends as it should, but its first chunk has a nonsensical length.
    chunk = 8 + 9 + int.from_bytes(content[9:17], "little")
    content[chunk + 1 : chunk + 40] = b"\xff" * 39
    file.write_bytes(bytes(content))
    with pytest.raises(SourceError, match="cannot read the bag"):
        list(open_source(tmp_path / "bag"))


@STORAGES
def test_flipped_bytes_give_frames_or_a_clear_error(tmp_path: Path, storage: str) -> None:
    list(write_bag(write_folder(tmp_path / "s", 2), tmp_path / "bag", storage=storage))
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix in (".mcap", ".db3"))
    content = np.frombuffer(file.read_bytes(), np.uint8)
    generator = np.random.default_rng(7)
    num_refused = 0
    for _ in range(40):
        damaged = content.copy()
        # Both ends of the file, where its structure is, rather than pixels.
        places = generator.integers(-4000, 4000, size=generator.integers(1, 20))
        damaged[places] = generator.integers(0, 256, size=len(places))
        file.write_bytes(damaged.tobytes())
        try:
            assert len(list(open_source(file))) == 2
        except (FrameError, SourceError):
            num_refused += 1
    assert num_refused > 0


def test_a_bag_folder_without_metadata_or_files(tmp_path: Path) -> None:
    list(write_bag(write_folder(tmp_path / "s", 2), tmp_path / "bag"))
    (tmp_path / "bag" / "bag.mcap").unlink()
    with pytest.raises(SourceError, match="missing"):
        open_source(tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(SourceError, match="cannot read the bag"):
        open_source(tmp_path / "bag")


def write_video(path: Path, num_frames: int, codec: str) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 20.0, (64, 48))
    assert writer.isOpened()
    for number in range(num_frames):
        writer.write(np.ascontiguousarray(picture(number).numpy()[..., ::-1]))
    writer.release()
    return path


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "MJPG"), (".mp4", "mp4v")])
def test_a_video_gives_its_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    source = open_source(write_video(tmp_path / f"v{suffix}", 6, codec))
    frames = list(source)
    assert source.num_frames == len(frames) == 6
    assert [frame.stamp_ns for frame in frames] == [i * 50_000_000 for i in range(6)]
    assert frames[0].intrinsics is None
    for number, frame in enumerate(frames):
        difference = np.abs(frame.rgb.numpy().astype(int) - picture(number).numpy())
        assert difference.mean() < 15


def test_broken_videos_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 20, "MJPG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(SourceError, match="of the 20 images"):
        list(open_source(path))
    lenient = open_source(path, skip_bad_frames=True)
    assert 0 < len(list(lenient)) < 20
    assert "of the 20 images" in lenient.drops[-1]
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="cannot open the video"):
        open_source(path)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SourceError, match="unknown kind"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match=r"rgb\.txt"):
        open_source(tmp_path)
    folder = write_folder(tmp_path / "s", 1)
    assert isinstance(open_source(folder.path).recording, SequenceFolder)
    with pytest.raises(SourceError, match="is no bag"):
        open_source(folder.path, "/image")

"""Which images may enter, and what the camera is taken to be."""

import math

import pytest
from ros_support import SIZE, START_NS, camera_info_message, image_message

from recon4d_ros.config import InputConfig
from recon4d_ros.ros.intake import DropCause, DroppedImageError, Intake

SECOND = 10**9


class Stream:
    """An intake whose images all have a good camera_info, unless told otherwise."""

    def __init__(self, info=True, **config):
        self.notes = []
        settings = {"camera_info_timeout": 0.0, **config}
        note = lambda kind, text: self.notes.append(kind)  # noqa: E731
        self.intake = Intake(InputConfig(**settings), note, is_rectified=False)
        if info:
            self.intake.set_camera_info(camera_info_message())

    def take(self, seconds, **changes):
        message = image_message(START_NS + round(seconds * SECOND), **changes)
        admitted = self.intake.admit(message)
        if admitted.restart:
            self.intake.restart()
        self.intake.commit(admitted)
        return admitted

    def refuse(self, seconds, **changes):
        with pytest.raises(DroppedImageError) as error:
            self.take(seconds, **changes)
        return error.value.cause


def test_frames_are_numbered_and_stamped():
    stream = Stream()
    frames = [stream.take(0.1 * n).frame for n in range(3)]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.stamp_ns - START_NS for frame in frames] == [0, SECOND // 10, SECOND // 5]
    assert frames[0].size == SIZE
    assert frames[0].intrinsics.fx == 60.0


def test_duplicates_and_small_steps_back_are_dropped():
    stream = Stream()
    stream.take(1.0)
    assert stream.refuse(1.0) is DropCause.DUPLICATE_STAMP
    assert stream.refuse(0.9) is DropCause.OUT_OF_ORDER
    assert stream.take(1.1).frame.index == 1


def test_a_jump_back_starts_anew():
    stream = Stream()
    stream.take(5.0)
    admitted = stream.take(0.0)
    assert "back by 5.000 s" in admitted.restart
    assert admitted.frame.index == 0
    assert stream.take(0.1).restart is None


def test_a_single_odd_image_is_dropped_and_a_changed_camera_starts_anew():
    stream = Stream(change_after=3)
    stream.take(0.0)
    odd = {"size": (24, 32)}
    assert stream.refuse(0.1, **odd) is DropCause.CHANGED_CAMERA
    assert stream.take(0.2).restart is None
    assert [stream.refuse(0.3 + 0.1 * n, **odd) for n in range(2)] == [
        DropCause.CHANGED_CAMERA
    ] * 2
    admitted = stream.take(0.5, **odd)
    assert "64x48" in admitted.restart and "32x24" in admitted.restart
    assert admitted.frame.index == 0
    assert stream.take(0.6, **odd).restart is None


def test_another_frame_id_is_another_camera():
    stream = Stream(change_after=2)
    stream.take(0.0)
    assert stream.refuse(0.1, frame_id="other") is DropCause.CHANGED_CAMERA
    assert "other" in stream.take(0.2, frame_id="other").restart


def test_nothing_is_remembered_of_a_refused_image():
    stream = Stream()
    stream.take(0.0)
    assert stream.refuse(0.1, step=1) is DropCause.UNDECODABLE
    assert stream.take(0.1).frame.index == 1


def test_the_intrinsics_are_unknown_without_camera_info_and_said_so():
    stream = Stream(info=False)
    assert stream.take(0.0).frame.intrinsics is None
    assert stream.take(0.1).frame.intrinsics is None
    assert stream.notes == ["camera_info_missing"]


def test_a_late_camera_info_starts_anew():
    stream = Stream(info=False)
    stream.take(0.0)
    stream.intake.set_camera_info(camera_info_message())
    admitted = stream.take(0.1)
    assert "camera_info changed" in admitted.restart
    assert admitted.frame.intrinsics.fx == 60.0
    assert admitted.frame.index == 0


def test_an_uncalibrated_camera_is_estimated_without_waiting():
    stream = Stream(info=False, camera_info_timeout=60.0)
    stream.intake.set_camera_info(camera_info_message(k=[0.0] * 9))
    assert stream.take(0.0).frame.intrinsics is None
    assert stream.notes == ["camera_info_uncalibrated"]


@pytest.mark.parametrize(
    "changes",
    [
        {"k": [math.nan] * 9},
        {"k": [-60.0, 0.0, 31.5, 0.0, -60.0, 23.5, 0.0, 0.0, 1.0]},
        {"k": [1e9, 0.0, 31.5, 0.0, 1e9, 23.5, 0.0, 0.0, 1.0]},
        {"d": [math.nan] * 5},
        {"d": [1.0], "distortion_model": "magic"},
        {"width": 640},
    ],
)
def test_an_unusable_camera_info_is_refused_counted_and_reported_once(changes):
    stream = Stream()
    stream.take(0.0)
    for n in range(1, 4):
        stream.intake.set_camera_info(camera_info_message(**changes))
        admitted = stream.take(0.1 * n)
        assert admitted.restart is None
        assert admitted.frame.intrinsics.fx == 60.0
    assert stream.intake.num_refused_camera_infos == 3
    assert stream.notes == ["camera_info_refused"]


def test_a_new_calibration_starts_anew_and_an_equal_one_does_not():
    stream = Stream()
    stream.take(0.0)
    stream.intake.set_camera_info(camera_info_message())
    assert stream.take(0.1).restart is None
    stream.intake.set_camera_info(camera_info_message(focal=70.0))
    admitted = stream.take(0.2)
    assert "camera_info changed" in admitted.restart
    assert admitted.frame.intrinsics.fx == 70.0


def test_a_camera_info_ahead_of_its_images_serves_when_they_come():
    stream = Stream(change_after=1)
    stream.take(0.0)
    stream.intake.set_camera_info(camera_info_message(size=(24, 32), focal=30.0))
    assert stream.take(0.1).frame.intrinsics.fx == 60.0
    admitted = stream.take(0.2, size=(24, 32))
    assert admitted.frame.intrinsics.fx == 30.0


def test_distortion_is_taken_out_and_masks_go_back():
    stream = Stream(info=False)
    stream.intake.set_camera_info(camera_info_message(d=[-0.3, 0.1, 0.0, 0.0, 0.0]))
    admitted = stream.take(0.0)
    mask = admitted.frame.rgb.sum(dim=2) > 0
    assert admitted.rectifier.mask_to_input(mask).shape == SIZE
    plain = Stream().take(0.0)
    assert not admitted.frame.rgb.equal(plain.frame.rgb)

"""Real images that are hard to follow: wide steps, fast pans, few points, changing exposure."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pytest
import torch
from real_sequence import RealSequence, exposed, require
from stream_run import ate

from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Reconstruction, TrackingState
from recon4d_ros.geometry import image_grid
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.storage.dataset import SequenceFolder

pytestmark = pytest.mark.data


def in_order(frames: Sequence[Frame]) -> list[Frame]:
    """The frames with numbers and stamps that ascend, a step being that of a 24 Hz camera."""
    return [
        replace(frame, index=index, stamp_ns=index * 41_666_667)
        for index, frame in enumerate(frames)
    ]


def posed(frames: Sequence[Frame]) -> list[Reconstruction]:
    """On arrival, with adjustments but without depth and masks."""
    reconstructor, found = build_reconstructor(Config()), []
    for frame in frames:
        tracked = reconstructor.track(frame, dense=False)
        found.append(tracked.pose)
        reconstructor.map(tracked)
    return found


def test_a_full_table_of_points_takes_new_ones_of_a_fast_car() -> None:
    """Every second image of a drive: 2.4 m and some 200 new points each.

    Measured over 40 m, from the first adjustment on: 0.14 m. When the table was full no new point
    was taken, and the last images were posed by 20 old ones: 1.1 m, with steps of twice their
    length.
    """
    folder = SequenceFolder(require("kitti_odo_a"))
    frames = in_order(list(islice(folder, 0, None, 2)))
    truth = list(folder.truth.trajectory().T_world_cam[::2])
    found = posed(frames)[8:]
    assert ate(found, truth) < 0.3


def test_frames_before_the_first_structure_are_held_by_its_points() -> None:
    """Every third image of a drive, 3.6 m apart: depth is first known from the third and fourth.

    Measured: the first four steps agree within 0.003; without the points' earlier sights the first
    two are 0.83 and 0.49 of the third.
    """
    folder = SequenceFolder(require("kitti_odo_a"))
    frames = in_order(list(islice(folder, 0, 36, 3)))
    reconstructor = build_reconstructor(Config())
    outputs = [reconstructor.map(reconstructor.track(f, dense=False)) for f in frames]
    final = [result.T_map_cam[:3, 3] for output in outputs for result in output.final]
    truth = folder.truth.trajectory().T_world_cam[::3, :3, 3]
    taken, true = (
        torch.stack(list(places)).diff(dim=0).norm(dim=1)[:4] for places in (final, truth)
    )
    ratio = taken / true
    assert (ratio / ratio[2]).tolist() == pytest.approx([1, 1, 1, 1], abs=0.1)


def test_a_fast_pan_of_an_unknown_camera_starts_within_the_first_images() -> None:
    """50 px per image, after a scooter that stays in the middle.

    Measured: the fourth. Refused structures had left their focal length behind, with which the
    rotations so far made no sense: the eighth image, or none, and lost, where stamps were rounded.
    """
    frames = list(SequenceFolder(require("davis16_dev/scooter-black")))
    found = posed(in_order(frames[:-17:-1]))
    assert TrackingState.LOST not in [pose.state for pose in found]
    moved = [bool(pose.T_map_cam[:3, 3].norm() > 0) for pose in found]
    assert moved.index(True) < 6


def test_a_small_image_starts_by_points_born_at_any_keyframe() -> None:
    """Half the size of car-shadow: its first image's 200 points are gone before 2 px of parallax.

    Points seen in both images count, wherever they were born; else it was lost at the 14th image.
    """
    frames = list(islice(SequenceFolder(require("davis16_dev/car-shadow")), 24))
    small = [
        replace(frame, rgb=image_grid.resize_image(frame.rgb, (frame.rgb.shape[0] // 2, 427)))
        for frame in frames
    ]
    found = posed(in_order(small))
    assert TrackingState.LOST not in [pose.state for pose in found]
    assert found[-1].T_map_cam[:3, 3].norm() > 0


def test_depth_waits_until_the_focal_length_no_longer_bends_it() -> None:
    """Nothing moves, the first focal length is 1.5 times the right one.

    Measured: each frame's depth within 0.027, from the ninth on. With depth from the first
    structure on, the first four were 0.25 to 0.33 off.
    """
    sequence = RealSequence("rendered/static_scene", list(range(18)))
    reconstructor, final = build_reconstructor(Config()), []
    for number in range(18):
        frame = replace(sequence.frame(number), intrinsics=None)
        final += reconstructor.step(frame).final
    final += reconstructor.finish()[0]
    ratios = [sequence.depths[result.frame.index] / result.depth for result in final]
    known = [ratio[ratio.isfinite()] for ratio in ratios]
    scale = torch.cat(known).median()
    errors = [float((scale / each - 1).abs().mean()) for each in known if len(each)]
    print([round(error, 3) for error in errors], len(errors))
    assert 8 <= len(errors) < len(final)
    assert max(errors) < 0.06
    is_known = [bool(len(each)) for each in known]
    assert is_known == sorted(is_known)
    tracking = [result.state is TrackingState.TRACKING for result in final]
    assert all(known for known, told in zip(is_known, tracking, strict=True) if told)


def test_a_camera_that_adapts_is_followed_as_one_that_does_not() -> None:
    """Brightness swings by a quarter, up to five hundredths per image.

    Measured: 0.0004 m. With grey levels taken for constant: 0.0028 m.
    """
    sequence = RealSequence("rendered/room_walkers", list(range(30)))
    gains = [1 + 0.25 * math.sin(0.2 * i) for i in range(30)]
    sequence.rgb = [exposed(rgb, gain) for rgb, gain in zip(sequence.rgb, gains, strict=True)]
    found = posed([sequence.frame(i) for i in range(30)])
    start = [pose.state for pose in found].index(TrackingState.TRACKING)
    error = ate(found[start:], list(sequence.poses))
    assert error < 0.002

"""Depth and mask figures against direct sums, and whole runs against a written truth."""

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.cli import evaluate as evaluate_command
from recon4d_ros.errors import EvaluationError, OutputError, SourceError
from recon4d_ros.evaluation.depth import DepthFrame, evaluate_depth, resize_nearest
from recon4d_ros.evaluation.masks import MaskFrame, evaluate_masks
from recon4d_ros.evaluation.report import evaluate_run

SHAPE = (12, 16)
POSES = 8


def random_depth_frames(seed: int, count: int) -> list[DepthFrame]:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        truth = rng.uniform(0.5, 8, SHAPE).astype(np.float32)
        estimate = (truth * rng.uniform(0.2, 0.6, SHAPE)).astype(np.float32)
        truth[rng.random(SHAPE) < 0.2] = np.nan
        estimate[rng.random(SHAPE) < 0.3] = np.nan
        frames.append(DepthFrame(truth, estimate, rng.random(SHAPE) < 0.8))
    return frames


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_depth_figures_equal_direct_sums(seed, count):
    frames = random_depth_frames(seed, count)
    truth = np.concatenate([frame.truth.ravel() for frame in frames]).astype(np.float64)
    estimate = np.concatenate([frame.estimate.ravel() for frame in frames]).astype(np.float64)
    selected = np.concatenate([frame.selected.ravel() for frame in frames])
    both = selected & np.isfinite(truth) & np.isfinite(estimate)
    scale = np.median(truth[both] / estimate[both])
    error = np.abs(scale * estimate[both] - truth[both]) / truth[both]
    report = evaluate_depth(lambda: frames)
    # An even count lets the median lie anywhere between its two middle values.
    assert report.scale == pytest.approx(scale, rel=0.05)
    same = replace_scale(truth[both], estimate[both], report.scale)
    assert (report.abs_rel, report.delta_125) == pytest.approx(same, rel=1e-5)
    assert report.abs_rel == pytest.approx(error.mean(), rel=0.05)
    assert report.valid_share == both.sum() / (selected & np.isfinite(truth)).sum()


def replace_scale(truth, estimate, scale) -> tuple[float, float]:
    ratio = scale * estimate / truth
    return np.abs(ratio - 1).mean(), (np.maximum(ratio, 1 / ratio) < 1.25).mean()


def test_median_ratio_of_many_pixels_is_exact_to_a_ten_thousandth():
    truth = np.random.default_rng(1).lognormal(0, 1, (400, 500)).astype(np.float32)
    frame = DepthFrame(truth, np.ones_like(truth), np.ones(truth.shape, bool))
    report = evaluate_depth(lambda: [frame])
    assert report.scale == pytest.approx(np.median(truth), rel=1e-4)


def test_one_scale_serves_the_whole_sequence():
    truth = np.full(SHAPE, 2.0, np.float32)
    selected = np.ones(SHAPE, bool)
    frames = [DepthFrame(truth, truth * factor, selected) for factor in (1, 1, 2)]
    report = evaluate_depth(lambda: frames)
    assert report.scale == pytest.approx(1, rel=1e-4)
    assert report.abs_rel == pytest.approx(1 / 3, rel=1e-3)
    assert report.delta_125 == pytest.approx(2 / 3)


def test_a_frame_without_estimate_lowers_the_valid_share():
    truth, selected = np.full(SHAPE, 2.0, np.float32), np.ones(SHAPE, bool)
    frames = [DepthFrame(truth, truth, selected), DepthFrame(truth, None, selected)]
    assert evaluate_depth(lambda: frames).valid_share == 0.5
    with pytest.raises(EvaluationError, match="belong together"):
        evaluate_depth(lambda: frames[1:])


@pytest.mark.parametrize("size", [(6, 8), (12, 16), (8, 32), (24, 64)])
def test_nearest_resize_equals_opencv_at_pixel_centres(size):
    image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(resize_nearest(image, size), expected)


def test_mask_figures_by_hand():
    truth = np.zeros((2, 4), bool)
    truth[0] = True
    half = np.zeros_like(truth)
    half[:, :2] = True
    report = evaluate_masks([MaskFrame(truth, half), MaskFrame(truth, truth)])
    assert report.iou == pytest.approx((2 / 6 + 1) / 2)
    assert report.recall == pytest.approx(0.75)
    assert report.precision == pytest.approx(0.75)
    assert report.iou_recall == 0.5
    assert report.flagged_share == 0.5


def test_empty_masks_agree_a_false_alarm_does_not_and_missing_ones_flag_nothing():
    empty, full = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    agreed = evaluate_masks([MaskFrame(empty, empty)])
    assert agreed.iou == 1
    assert np.isnan(agreed.recall)
    one_pixel = empty.copy()
    one_pixel[0, 0] = True
    assert evaluate_masks([MaskFrame(empty, one_pixel)]).iou == 0
    missing = evaluate_masks([MaskFrame(full, None)])
    assert (missing.iou, missing.recall, missing.flagged_share) == (0, 0, 0)
    with pytest.raises(EvaluationError, match="masks"):
        evaluate_masks([])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mask_figures_are_bounded_and_ordered(seed):
    rng = np.random.default_rng(seed)
    truth, estimate = rng.random((2, *SHAPE)) < rng.uniform(0.1, 0.9, (2, 1, 1))
    report = evaluate_masks([MaskFrame(truth, estimate)])
    assert 0 <= report.iou <= min(report.recall, report.precision) <= 1


def pose_rows(scale: float, stamps) -> str:
    rows = (f"{t:.6f} {scale * t:.6f} {scale * t * t:.6f} 0 0 0 0 1" for t in stamps)
    return "\n".join(rows) + "\n"


def write_images(folder: Path, names, images) -> None:
    folder.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        assert cv2.imwrite(str(folder / name), image)


@pytest.fixture
def sequence_and_run(tmp_path):
    """Eight frames; the run has everything right in another scale but lacks one frame."""
    stamps = np.arange(POSES) / 10
    depth = np.random.default_rng(0).integers(1000, 4000, (POSES, *SHAPE)).astype(np.uint16)
    masks = np.zeros((POSES, *SHAPE), np.uint8)
    masks[:, 3:6, 4:9] = 255
    sequence, run = tmp_path / "sequence", tmp_path / "run"
    names = [f"{index:06d}.png" for index in range(POSES)]
    write_images(sequence / "rgb", names, masks)
    write_images(sequence / "depth", names, depth)
    write_images(sequence / "masks", names, masks)
    for kind in ("rgb", "depth"):
        rows = [f"{stamp:.6f} {kind}/{name}" for stamp, name in zip(stamps, names, strict=True)]
        (sequence / f"{kind}.txt").write_text("# comment\n" + "\n".join(rows) + "\n")
    (sequence / "intrinsics.json").write_text(json.dumps({"fx": None, "depth_scale": 1000.0}))
    (sequence / "groundtruth.txt").write_text(pose_rows(1, stamps))
    outputs = [f"{round(stamp * 1e9)}.png" for stamp in stamps][:-1]
    wrong_where_moving = np.where(masks > 0, 60000, depth * 2).astype(np.uint16)
    write_images(run / "depth", outputs, wrong_where_moving[:-1])
    write_images(run / "masks", outputs, masks[:-1])
    (run / "intrinsics.json").write_text(json.dumps({"depth_scale": 500.0}))
    (run / "trajectory.tum").write_text(pose_rows(0.25, stamps[:-1]))
    (run / "trajectory_provisional.tum").write_text(pose_rows(0.25, stamps[:-1]))
    return sequence, run


def test_a_perfect_run_in_another_scale(sequence_and_run):
    sequence, run = sequence_and_run
    report = evaluate_run(run, sequence)
    for poses in (report.final, report.final_interpolated, report.provisional):
        assert poses.ate.rmse < 1e-5
        assert poses.scale == pytest.approx(4, rel=1e-4)
        assert (poses.num_posed, poses.num_frames) == (POSES - 1, POSES)
    assert report.masks.iou == pytest.approx(1 - 1 / POSES)
    assert set(report.depth) == {"all", "static", "outside_own_mask"}
    assert report.depth["static"].abs_rel < 1e-3
    assert report.depth["static"].scale == pytest.approx(0.25, rel=1e-4)
    assert report.depth["static"].valid_share == pytest.approx(1 - 1 / POSES)
    assert report.depth["all"].abs_rel > 0.1
    assert json.loads(report.to_json())["masks"]["recall"] == pytest.approx(1 - 1 / POSES)


def test_undefined_figures_are_null_in_json(sequence_and_run):
    sequence, run = sequence_and_run
    report = evaluate_run(run, sequence)
    report = replace(report, masks=replace(report.masks, recall=float("nan")))
    assert json.loads(report.to_json())["masks"]["recall"] is None


def cut_png(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def write(text: str):
    return partial(Path.write_text, data=text)


# File of the sequence or the run, what happens to it, and what the message must say.
BROKEN = {
    "no rgb.txt": ("sequence/rgb.txt", Path.unlink, "rgb.txt"),
    "row too short": ("sequence/rgb.txt", write("0.0\n"), "line 1"),
    "no time": ("sequence/rgb.txt", write("soon rgb/0.png\n"), "line 1"),
    "binary text": (
        "sequence/groundtruth.txt",
        partial(Path.write_bytes, data=b"\xff\xfe\xfd"),
        "groundtruth",
    ),
    "word for a number": ("sequence/groundtruth.txt", write("0 a 0 0 0 0 0 1\n"), "line 1"),
    "no unit quaternion": ("sequence/groundtruth.txt", write("0 0 0 0 0 0 0 2\n"), "norm"),
    "stamps go back": (
        "sequence/groundtruth.txt",
        write("1 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n"),
        "line 2",
    ),
    "cut depth": ("sequence/depth/000000.png", cut_png, "damaged"),
    "missing depth": ("sequence/depth/000001.png", Path.unlink, "000001"),
    "no trajectory": ("run/trajectory.tum", Path.unlink, "trajectory.tum"),
    "no depth scale": ("run/intrinsics.json", write("{}"), "depth_scale"),
    "depth scale 0": ("run/intrinsics.json", write('{"depth_scale": 0}'), "positive"),
    "cut mask": ("run/masks/0.png", cut_png, "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_truth_is_refused(sequence_and_run, name):
    sequence, run = sequence_and_run
    file, damage, message = BROKEN[name]
    damage(sequence.parent / file)
    with pytest.raises(SourceError, match=message):
        evaluate_run(run, sequence)


def test_a_folder_that_is_no_run_is_refused(sequence_and_run, tmp_path):
    sequence, run = sequence_and_run
    with pytest.raises(SourceError, match="no folder"):
        evaluate_run(tmp_path / "nothing", sequence)
    for path in (run / "depth").glob("*.png"):
        path.unlink()
    with pytest.raises(EvaluationError, match="belong together"):
        evaluate_run(run, sequence)


def test_a_sequence_without_truth_is_refused(sequence_and_run):
    sequence, run = sequence_and_run
    for path in (sequence / "groundtruth.txt", sequence / "depth.txt"):
        path.unlink()
    shutil.rmtree(sequence / "masks")
    with pytest.raises(EvaluationError, match="no ground truth"):
        evaluate_run(run, sequence)


def test_the_command_prints_and_writes_the_figures(sequence_and_run, tmp_path, capsys):
    sequence, run = sequence_and_run
    out = tmp_path / "figures.json"
    arguments = argparse.Namespace(run_dir=run, sequence=sequence, json=out, slice=None)
    assert evaluate_command.run(arguments) == 0
    printed = capsys.readouterr().out
    assert "ATE 0.0000" in printed
    assert "depth, static" in printed
    assert json.loads(out.read_text()) == json.loads(evaluate_run(run, sequence).to_json())
    arguments.json = tmp_path / "no folder" / "figures.json"
    with pytest.raises(OutputError, match="cannot write"):
        evaluate_command.run(arguments)

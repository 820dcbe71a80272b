"""Baselines on clips whose motion is known, and the tables of whole evaluations."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_line import error_line, recon4d
from real_sequence import require
from recordings import write_folder

from recon4d_ros.datatypes import CameraMotion, Clips
from recon4d_ros.errors import EvaluationError, SourceError
from recon4d_ros.evaluation.clips import LabelledClips, evaluate_clips
from recon4d_ros.evaluation.trackers import baselines, chained_flow, klt_tracks, zero_motion
from recon4d_ros.networks.dynpt import DynPT, checkpoint
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.storage.track_truth import TrackSequence

NUM_FRAMES, SIDE, STEP = 8, 96, np.array([2.0, -1.0])
PATCH = 30


def picture(seed: int, side: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return cv2.normalize(smooth, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def sliding() -> torch.Tensor:
    """A picture that slides by STEP px a frame, over which a patch stands still."""
    big, patch = picture(0, 2 * SIDE), picture(1, PATCH)
    frames = []
    for frame in range(NUM_FRAMES):
        x, y = (SIDE // 2 - STEP * frame).astype(int)
        image = big[y : y + SIDE, x : x + SIDE].copy()
        image[:PATCH, :PATCH] = patch
        frames.append(image)
    return torch.from_numpy(np.stack(frames))


def grid(frames: tuple[int, ...]) -> torch.Tensor:
    x, y = np.meshgrid(np.arange(40, 68, 4), np.arange(44, 72, 4))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    frame = np.resize(frames, len(xy))
    return torch.from_numpy(np.concatenate([frame[:, None], xy], axis=1)).float()


def truth(queries: torch.Tensor) -> torch.Tensor:
    since = torch.arange(NUM_FRAMES)[:, None] - queries[:, 0]
    return queries[:, 1:] + since[..., None] * torch.from_numpy(STEP)


@pytest.mark.parametrize("track", [chained_flow, klt_tracks])
def test_points_of_any_frame_are_followed_both_ways(track):
    rgb, queries = sliding(), grid((0, 3, 7))
    tracks = track(rgb, queries)
    seen, error = tracks.seen, torch.linalg.vector_norm(tracks.uv - truth(queries), dim=-1)
    assert seen.float().mean() > 0.95
    assert error[seen].median() < 0.1 and error[seen].quantile(0.95) < 0.5
    assert torch.equal(
        tracks.uv[queries[:, 0].long(), torch.arange(len(queries))].float(), queries[:, 1:]
    )
    assert (tracks.mobility <= 0.5).all()


def test_a_point_that_leaves_the_image_is_not_seen_there():
    rgb, queries = sliding(), torch.tensor([[0.0, 90.0, 50.0], [0.0, 50.0, 50.0]])
    for track in (chained_flow, klt_tracks):
        seen = track(rgb, queries).seen
        assert not seen[4:, 0].any() and seen[:, 1].all()


def test_zero_motion_stays():
    tracks = zero_motion(sliding(), grid((2,)))
    assert torch.equal(tracks.uv, grid((2,))[:, 1:].double().expand(NUM_FRAMES, -1, -1))
    assert tracks.seen.all() and not tracks.mobility.any()


def test_what_stands_in_a_sliding_picture_moves_against_it():
    corner = torch.tensor([[0.0, x, y] for x in (10, 14, 18) for y in (10, 14, 18)])
    x, y = torch.meshgrid(torch.arange(36, 78, 6), torch.arange(16, 90, 6), indexing="xy")
    wide = torch.stack([torch.zeros_like(x), x, y], dim=-1).reshape(-1, 3)
    queries = torch.cat([wide, corner])
    found = baselines(sliding(), queries)
    moving = found["homography residual"].mobility > 0.5
    assert moving[-9:].all() and not moving[:-9].any()
    # A point that stands still lies on every epipolar line of a camera that only slides.
    assert not found["epipolar residual"].mobility[-9:].gt(0.5).any()


@pytest.mark.parametrize("query", [[-1.0, 5, 5], [8.0, 5, 5], [0.0, 96, 5], [0.0, 5, -1]])
def test_queries_outside_the_clip_are_an_error(query):
    with pytest.raises(EvaluationError, match="lie outside 8 frames of 96 x 96"):
        baselines(sliding(), torch.tensor([query]))


def test_a_clip_without_points_gives_no_tracks():
    found = baselines(sliding(), torch.zeros(0, 3))
    assert all(tracks.uv.shape == (NUM_FRAMES, 0, 2) for tracks in found.values())


def clip(motion: CameraMotion, moves: bool) -> Clips:
    queries = grid((0,))
    labels = torch.full((1, len(queries)), moves)
    return Clips(
        rgb=sliding()[None],
        queries=queries[None],
        tracks=truth(queries).float()[None],
        visibility=torch.ones(1, NUM_FRAMES, len(queries), dtype=torch.bool),
        moves_in_clip=labels,
        moves_in_frame=labels[:, None].expand(-1, NUM_FRAMES, -1),
        is_judged=torch.ones_like(labels),
        object_ids=torch.zeros_like(labels, dtype=torch.int64),
        camera_motion=(motion,),
    )


def test_kinds_of_clips_are_told_apart():
    clips = [
        LabelledClips(clip(CameraMotion.STANDING, True)),
        LabelledClips(clip(CameraMotion.LATERAL, False)),
        LabelledClips(clip(CameraMotion.UNKNOWN, False), "walk"),
    ]
    unjudged = torch.zeros_like(clips[2].clips.is_judged)
    clips[2] = replace(clips[2], clips=replace(clips[2].clips, is_judged=unjudged))
    reports = evaluate_clips(clips, lambda rgb, queries: {"zero": zero_motion(rgb, queries)})
    report = reports["zero"]
    assert list(report.positions) == ["all", "standing", "parallax", "lateral", "walk"]
    assert [p.num_clips for p in report.positions.values()] == [3, 1, 1, 1, 1]
    accuracies = {kind: figures.accuracy for kind, figures in report.mobility.items()}
    assert accuracies == {"all": 0.5, "standing": 0.0, "parallax": 1.0, "lateral": 1.0}
    # 2.24 px a frame in 96 px is 5.3 px in the raster (7 frames): hand-counted shares.
    step = float(np.hypot(*STEP)) * 256 / SIDE
    within = np.mean([np.mean(step * np.arange(1, 8) < limit) for limit in (1, 2, 4, 8, 16)])
    assert report.positions["all"].share_within == pytest.approx(within)
    with pytest.raises(EvaluationError, match="no clip"):
        evaluate_clips([], baselines)


def write_tracks(path: Path, num_frames: int, **changes) -> None:
    uv = np.tile(np.array([[10, 12], [20, 22], [30, 8]], np.float32), (num_frames, 1, 1))
    visible = np.ones((num_frames, 3), bool)
    visible[0, 1], visible[:-1, 2] = False, False
    moving = np.zeros((num_frames, 3), bool)
    moving[1, 1] = True
    arrays = {"tracks": uv, "visible": visible, "mobile_frame": moving, **changes}
    np.savez(path / "tracks.npz", **arrays)


def test_a_folder_is_cut_into_clips(tmp_path):
    folder = write_folder(tmp_path / "s", 5)
    write_tracks(folder.path, 5)
    sequence = TrackSequence(folder.path, 2, 1000)
    assert sequence.num_clips == 2
    first, second = sequence.clip(0), sequence.clip(1)
    assert torch.equal(first.queries, torch.tensor([[[0.0, 10, 12]]]))  # seen before the last
    assert torch.equal(second.queries, torch.tensor([[[0.0, 10, 12], [0.0, 20, 22]]]))
    assert first.moves_in_clip.tolist() == [[False]] and first.is_judged.all()
    half = TrackSequence(folder.path, 5, max(folder.size) // 2).clip(0)
    torch.testing.assert_close(
        half.queries[0, :, 1:] * 2 + 0.5, torch.tensor([[10.0, 12], [20, 22]])
    )
    assert half.queries[0, :, 0].tolist() == [0, 1] and half.moves_in_clip.tolist() == [
        [False, True]
    ]
    assert half.rgb.shape[2] == folder.size[0] // 2


def test_folders_without_usable_tracks_are_refused(tmp_path):
    folder = write_folder(tmp_path / "s", 3)
    with pytest.raises(SourceError, match="has no tracks"):
        TrackSequence(folder.path, 2, 64)
    write_tracks(folder.path, 4)
    with pytest.raises(SourceError, match=r"do not fit|of 3 frames"):
        TrackSequence(folder.path, 2, 64)
    (folder.path / "tracks.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(SourceError, match="restore the file"):
        TrackSequence(folder.path, 2, 64)
    write_tracks(folder.path, 3)
    with pytest.raises(SourceError, match="shorter clips"):
        TrackSequence(folder.path, 4, 64)


def test_commands_print_tables_and_write_figures(tmp_path, capsys):
    folder = write_folder(tmp_path / "s", 4)
    write_tracks(folder.path, 4)
    figures = tmp_path / "figures.json"
    assert recon4d("eval-tracks", folder.path, "--frames", 4, "--json", figures) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["all", "AJ", "<d_avg", "OA", "clips"]
    assert [line[:14].strip() for line in lines[1:4]] == ["zero motion", "chained flow", "klt"]
    stored = json.loads(figures.read_text())
    assert stored["zero motion"]["positions"]["all"]["share_within"] == 1.0
    assert stored["zero motion"]["mobility"]["all"]["auroc"] == 0.5
    assert recon4d("eval-mobility", folder.path, "--frames", 4) == 0
    table = capsys.readouterr().out
    assert "homography residual" in table and "majority" in table and "s  " in table
    assert recon4d("eval-tracks") == 2
    assert "no clip to evaluate" in error_line(capsys)


@pytest.mark.parametrize("size", ["tiny", "lean"])
def test_rendered_clips_and_a_network_stand_in_the_table(tmp_path, capsys, size):
    torch.manual_seed(0)
    path = tmp_path / "untrained.safetensors"
    checkpoint.save(path, DynPT(DynPTConfig.named(size)), {})
    words = ("--synthetic", 1, "--frames", 4, "--model", path, "--device", "cpu")
    assert recon4d("eval-mobility", *words, "--json", tmp_path / "f.json") == 0
    assert "untrained" in capsys.readouterr().out
    stored = json.loads((tmp_path / "f.json").read_text())["untrained"]
    kinds = {motion.value for motion in CameraMotion} | {"all", "parallax"}
    assert "all" in stored["positions"] and set(stored["positions"]) <= kinds
    assert recon4d("eval-tracks", *words[:-1], "abacus") == 2
    assert "'abacus' is refused" in error_line(capsys)


def test_hand_labelled_joints_are_read():
    sequence = TrackSequence(require("davis16_dev") / "dog", 40, 256)
    clip = sequence.clip(0)
    assert clip.rgb.shape == (1, 40, 144, 256, 3) and not clip.is_judged.any()
    labelled = torch.isfinite(clip.tracks[0]).all(-1).any(-1).nonzero().squeeze(-1)
    assert labelled.tolist() == [3, 8, 13, 18, 19, 24, 29, 34]


def test_masks_of_runs_are_compared(tmp_path, capsys):
    run, folder = tmp_path / "run", write_folder(tmp_path / "s", 3)
    assert recon4d("eval-masks", run, folder.path) == 2
    assert "no masks/" in error_line(capsys)
    (run / "masks").mkdir(parents=True)
    truth = (folder.path / "masks").glob("*.png")
    stamps = [entry.stamp_ns for entry in folder.entries]
    for stamp, path in zip(stamps, sorted(truth), strict=True):
        (run / "masks" / f"{stamp}.png").write_bytes(path.read_bytes())
    figures = tmp_path / "figures.json"
    assert recon4d("eval-masks", run, folder.path, "--json", figures) == 0
    assert "IoU 1.000" in capsys.readouterr().out
    assert json.loads(figures.read_text())[str(run)]["iou"] == 1.0
    assert recon4d("eval-masks", run) == 2
    assert "1 folders" in error_line(capsys)

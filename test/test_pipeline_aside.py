"""Tracking that runs ahead of mapping: what the live node does on two threads."""

import threading
from collections import deque
from functools import cache

import pytest
import torch
from rendered_stream import frames, rendered
from stream_run import SMALL, ate, run

from recon4d_ros.datatypes import Frame, Reconstruction, TrackedFrame, Window, WindowPrediction
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.pipeline.mailbox import Mailbox
from recon4d_ros.pipeline.reconstructor import Reconstructor

LENGTH, STEP, WAIT_S = 22, 2, 60.0


def truth() -> list[torch.Tensor]:
    return [rendered("demo", STEP * index).T_world_cam for index in range(LENGTH)]


def stream() -> tuple[Frame, ...]:
    return frames("demo", LENGTH, step=STEP)


@cache
def together() -> list[Reconstruction]:
    return run(build_reconstructor(SMALL), stream()).finals()


def behind(num_ahead: int, reconstructor: Reconstructor | None = None) -> list[Reconstruction]:
    """Final results when mapping is always `num_ahead` frames behind, in one thread."""
    reconstructor = reconstructor or build_reconstructor(SMALL)
    waiting, final = deque(), []
    for frame in stream():
        waiting.append(reconstructor.track(frame, dense=frame.index % 2 == 0))
        if len(waiting) > num_ahead:
            final += reconstructor.map(waiting.popleft()).final
    final += [each for tracked in waiting for each in reconstructor.map(tracked).final]
    return final + list(reconstructor.finish()[0])


@pytest.mark.parametrize("num_ahead", [1, SMALL.window.stride + 1])
def test_results_are_as_good_when_mapping_is_behind(num_ahead):
    late = behind(num_ahead)
    assert [r.frame.index for r in late] == list(range(LENGTH))
    assert ate(late, truth()) < 1.5 * ate(together(), truth()) + 1e-3
    seen = [float(r.depth.isfinite().float().mean()) for r in late[8:] if r.is_dense]
    assert len(seen) == LENGTH / 2 - 4  # the first ones come before depth is known
    assert min(seen) > 0.5


def test_a_window_that_is_mapped_late_has_all_its_poses(monkeypatch):
    reconstructor, posed = build_reconstructor(SMALL), []
    predict = reconstructor._predictor.predict

    def watched(window: Window) -> WindowPrediction:
        prediction = predict(window)
        posed.append(prediction.T_key_cam.isfinite().all(dim=(1, 2)).tolist())
        return prediction

    monkeypatch.setattr(reconstructor._predictor, "predict", watched)
    behind(SMALL.window.stride + 1, reconstructor)
    assert len(posed[-2]) == SMALL.window.size
    assert all(all(window) for window in posed)


def test_a_step_is_tracking_and_mapping():
    whole, halves = build_reconstructor(SMALL), build_reconstructor(SMALL)
    for frame in stream()[:9]:
        a, b = whole.step(frame), halves.map(halves.track(frame))
        assert torch.equal(a.provisional.T_map_cam, b.provisional.T_map_cam)
        assert torch.equal(a.provisional.dynamic_mask, b.provisional.dynamic_mask)
        assert [r.frame.index for r in a.final] == [r.frame.index for r in b.final]


def test_a_tracked_frame_has_its_pose_and_nothing_else_yet():
    reconstructor = build_reconstructor(SMALL)
    tracked = [reconstructor.track(frame) for frame in stream()[:7]]
    assert [each.window is not None for each in tracked] == 6 * [False] + [True]
    for each in tracked:
        assert each.pose.T_map_cam is not None
        assert not each.pose.is_dense
        assert not bool(each.pose.depth.isfinite().any())
        assert not bool(each.pose.dynamic_mask.any())


def test_two_threads_at_once():
    """Poses are handed out under the lock that windows are taken in with; nothing is lost."""
    reconstructor = build_reconstructor(SMALL)
    box = Mailbox(SMALL.window.stride, lossless=True)
    lock, final, failed = threading.Lock(), [], []

    def map_all() -> None:
        try:
            while box.is_open or len(box):
                tracked = box.take(0.1)
                if tracked is not None:
                    final.extend(reconstructor.map(tracked, exclusive=lock).final)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=map_all)
    thread.start()
    for frame in stream():
        tracked = reconstructor.track(frame, dense=frame.index % 3 == 0, exclusive=lock)
        box.put(tracked)
    box.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not failed
    final += reconstructor.finish()[0]
    assert [r.frame.index for r in final] == list(range(LENGTH))
    assert ate(final, truth()) < 0.03


def test_the_lock_is_held_to_place_a_frame_and_not_to_find_its_pose(monkeypatch):
    reconstructor, lock, held = build_reconstructor(SMALL), threading.Lock(), []
    for room, method in ((reconstructor._predictor, "track"), (reconstructor._aligner, "locate")):
        work = getattr(room, method)

        def watched(*args, work=work, method=method):
            held.append((method, lock.locked()))
            return work(*args)

        monkeypatch.setattr(room, method, watched)
    given = []

    def hand_out(tracked: TrackedFrame) -> None:
        held.append(("on_pose", lock.locked()))
        given.append(tracked)

    tracked = reconstructor.track(stream()[0], hand_out, exclusive=lock)
    assert given == [tracked]
    assert held == [("track", False), ("locate", True), ("on_pose", True)]
    assert not lock.locked()


def test_a_frame_whose_mapping_fails_keeps_its_pose_and_harms_no_later_one(monkeypatch):
    reconstructor: Reconstructor = build_reconstructor(SMALL)
    final = []
    for frame in stream():
        tracked = reconstructor.track(frame)
        if frame.index == 9:
            with monkeypatch.context() as broken, pytest.raises(MemoryError):
                broken.setattr(reconstructor._segmenter, "segment_frame", _out_of_memory)
                reconstructor.map(tracked)
            continue
        final += reconstructor.map(tracked).final
    final += reconstructor.finish()[0]
    assert [r.frame.index for r in final] == list(range(LENGTH))
    assert not final[9].is_dense
    assert final[9].T_map_cam is not None


def _out_of_memory(*_: object) -> None:
    raise MemoryError

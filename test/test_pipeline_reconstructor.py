"""The whole reconstruction as a machine: what comes out when, of what, and what stays inside."""

from dataclasses import fields, is_dataclass, replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from rendered_stream import frames
from stream_run import SMALL, Run, run, same
from threadpoolctl import threadpool_info

from recon4d_ros.config import Config
from recon4d_ros.datatypes import EventKind, Frame, TrackingState
from recon4d_ros.errors import AlignmentError, PredictorError, Recon4DError
from recon4d_ros.geometry.image_grid import resize_intrinsics
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.pipeline.window import SlidingWindow

LENGTH = 26
PERIOD = 38  # of the swaying stream


def stream(count: int = LENGTH) -> tuple[Frame, ...]:
    return frames("demo", count, step=2)


def noise(frame: Frame) -> Frame:
    generator = torch.Generator().manual_seed(frame.index)
    rgb = torch.randint(0, 255, frame.rgb.shape, generator=generator, dtype=torch.uint8)
    return replace(frame, rgb=rgb)


@cache
def reference(stride: int = 4) -> Run:
    """A plain run over the stream."""
    config = SMALL.replaced({"window.stride": stride})
    return run(build_reconstructor(config), stream())


def check_same(first: Run, second: Run, until: int = LENGTH) -> None:
    for a, b in zip(first.provisional[:until], second.provisional[:until], strict=True):
        assert same(a, b), f"provisional result of frame {a.frame.index}"
    for (step_a, a), (step_b, b) in zip(first.final, second.final, strict=True):
        assert (step_a, a.frame.index) == (step_b, b.frame.index)
        assert same(a, b), f"final result of frame {a.frame.index}"


# ------------------------------------------------------------------ what comes when
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_frame_is_final_once_in_order_and_in_time(stride):
    done = reference(stride)
    assert [r.frame.index for r in done.provisional] == list(range(LENGTH))
    assert not any(r.is_final for r in done.provisional)
    assert [r.frame.index for r in done.finals()] == list(range(LENGTH))
    assert all(r.is_final for r in done.finals())
    lag = Config().window.final_lag
    assert max(step - r.frame.index for step, r in done.final if step < LENGTH) <= lag


def test_the_scene_was_reconstructed_at_all():
    done = reference()
    assert done.provisional[-1].state is TrackingState.TRACKING
    assert done.provisional[-1].depth.isfinite().float().mean() > 0.6
    assert done.final[-1][1].depth.isfinite().float().mean() > 0.6
    assert [event.kind for event in done.events] == [EventKind.INITIALISED]
    for result in (*done.provisional, *done.finals()):
        assert result.T_map_cam is not None
        assert torch.equal(result.confidence > 0, result.depth.isfinite())
        assert bool((result.depth[result.depth.isfinite()] > 0).all())
        assert result.depth.shape == result.dynamic_mask.shape == result.intrinsics.size


def test_the_provisional_result_is_handed_over_before_the_step_ends():
    reconstructor = build_reconstructor(SMALL)
    early = []
    for frame in stream(5):
        out = reconstructor.step(frame, early.append)
        assert early[-1] is out.provisional
        assert {"track", "segment", "locate"} <= set(out.stage_seconds)
    assert len(early) == 5


def test_frames_in_a_hurry_have_a_pose_and_nothing_else():
    reconstructor = build_reconstructor(SMALL)
    arrived, final = [], []
    for frame in stream():
        out = reconstructor.step(frame, dense=frame.index % 3 == 0)
        arrived.append(out.provisional)
        final += out.final
    final += reconstructor.finish()[0]
    assert [r.frame.index for r in final] == list(range(LENGTH))
    for result in (*arrived, *final):
        assert result.is_dense == (result.frame.index % 3 == 0)
        assert result.T_map_cam is not None
        if not result.is_dense:
            assert not bool(result.depth.isfinite().any())
            assert not bool(result.dynamic_mask.any())
    assert final[24].depth.isfinite().float().mean() > 0.5
    for a, b in zip(arrived, reference().provisional, strict=True):
        assert torch.equal(a.T_map_cam, b.T_map_cam)


def test_finish_gives_the_rest_once():
    reconstructor = build_reconstructor(SMALL)
    assert reconstructor.finish() == ((), ())
    done = run(reconstructor, stream(6), finish=False)
    rest = [r.frame.index for r in reconstructor.finish()[0]]
    assert [r.frame.index for r in done.finals()] + rest == list(range(6))
    assert reconstructor.finish() == ((), ())


def test_windows_make_every_frame_final_in_time():
    window = SlidingWindow(SMALL.window)
    given = [window.push(frame) for frame in stream(20)]
    # Of the first four frames each waits for as many as may follow it; then they come by fours.
    assert [i for i in range(20) if given[i] is not None] == [6, 7, 8, 9, 10, 14, 18]
    windows = [entry for entry in given if entry is not None]
    assert [entry.settled_before for entry in windows] == [1, 2, 3, 4, 8, 12, 16]
    assert [len(entry.frames) for entry in windows] == [7, 8, 9, 10, 11, 12, 12]
    assert windows[-1].indices == tuple(range(7, 19))
    window.reset()
    assert [window.push(frame) is not None for frame in stream(7)] == 6 * [False] + [True]


# ------------------------------------------------------------------ causality and determinism
@pytest.mark.parametrize("cut", [17, 20])
def test_the_future_does_not_change_the_past(cut):
    other = tuple(noise(f) if f.index >= cut else f for f in stream())
    changed = run(build_reconstructor(SMALL), other)
    for a, b in zip(reference().provisional[:cut], changed.provisional[:cut], strict=True):
        assert same(a, b)
    lag = SMALL.window.final_lag
    settled = [r for r in reference().finals() if r.frame.index + lag < cut]
    assert len(settled) == cut - lag
    for a, b in zip(settled, changed.finals(), strict=False):
        assert same(a, b), f"final result of frame {a.frame.index}"
    assert not same(reference().provisional[cut], changed.provisional[cut])


@cache
def side_by_side() -> tuple[Run, Reconstructor]:
    """A run beside another reconstructor, which sees the stream mirrored; and that one."""
    one, other = build_reconstructor(SMALL), build_reconstructor(SMALL)
    mirrored = [replace(f, rgb=f.rgb.flip(1)) for f in stream()]
    done = Run()
    for frame, disturbance in zip(stream(), mirrored, strict=True):
        other.step(disturbance)
        done.step(one, frame)
    done.final += [(LENGTH, each) for each in one.finish()[0]]
    return done, other


def test_two_runs_are_equal_to_the_bit_and_do_not_meet_in_one_process():
    done, _ = side_by_side()
    check_same(reference(), done)


def test_reset_starts_anew():
    _, reconstructor = side_by_side()
    assert reconstructor.num_keyframes > 0
    event = reconstructor.reset()
    assert event.kind is EventKind.RESET
    assert reconstructor.num_keyframes == 0
    assert len(reconstructor.static_map().points) == 0
    check_same(reference(), run(reconstructor, stream()))


def test_reset_reaches_every_part_that_remembers(monkeypatch):
    """What a part keeps of the stream before shows in few results, and late."""
    reconstructor = build_reconstructor(SMALL)
    parts = {name: part for name, part in vars(reconstructor).items() if hasattr(part, "reset")}
    assert {"_predictor", "_segmenter", "_aligner", "_refiner", "_map"} <= parts.keys()
    told: list[str] = []
    for name, part in parts.items():
        monkeypatch.setattr(part, "reset", partial(told.append, name))
    reconstructor.reset()
    assert sorted(told) == sorted(parts)


# ------------------------------------------------------------------ bad input
def test_a_frame_of_another_size_changes_nothing():
    reconstructor, done = build_reconstructor(SMALL), Run()
    for frame in stream():
        if frame.index in (1, 10, 19):  # alone, before the depth is known, and after
            with pytest.raises(Recon4DError, match="160"):
                reconstructor.step(replace(frame, rgb=frame.rgb[::2, ::2], intrinsics=None))
        done.step(reconstructor, frame)
    done.final += [(LENGTH, each) for each in reconstructor.finish()[0]]
    check_same(reference(), done)


def test_a_missing_frame_number_is_no_harm():
    some = [frame for frame in stream() if frame.index != 13]
    done = run(build_reconstructor(SMALL), some)
    assert [r.frame.index for r in done.finals()] == [f.index for f in some]
    assert done.provisional[-1].state is TrackingState.TRACKING


FAULTS = {
    14: ("_predictor", "predict", PredictorError),
    22: ("_aligner", "align", AlignmentError),
}


def test_a_stage_that_fails_leaves_the_map_untouched(monkeypatch):
    """Two windows fail, far enough apart for the next one to cover what each lost."""
    reconstructor, done = build_reconstructor(SMALL), Run()
    for frame in stream():
        if frame.index in FAULTS:
            fail_in(reconstructor, frame, monkeypatch)
        else:
            done.step(reconstructor, frame)
    done.final += [(LENGTH, each) for each in reconstructor.finish()[0]]
    assert [r.frame.index for r in done.finals()] == list(range(LENGTH))
    assert done.provisional[-1].state is TrackingState.TRACKING


def fail_in(reconstructor, frame, monkeypatch):
    part, method, error = FAULTS[frame.index]
    before = reconstructor.static_map()
    assert len(before.points) > 100

    def fail(*_: object) -> None:
        raise error("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(reconstructor, part), method, fail)
        with pytest.raises(error, match="on purpose"):
            reconstructor.step(frame)
    after = reconstructor.static_map()
    for name in ("points", "rgb", "confidence", "num_observations"):
        assert torch.equal(getattr(before, name), getattr(after, name))


# ------------------------------------------------------------------ memory
def kept_bytes(root: object) -> int:
    """Bytes of all arrays and tensors that can be reached from an object."""
    seen: set[int] = set()
    total, pending = 0, [root]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (type, str, bytes, int, float)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
        elif isinstance(item, np.ndarray):
            total += item.nbytes
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif is_dataclass(item):
            pending += [getattr(item, f.name) for f in fields(item)]
        elif isinstance(item, (list, tuple, set, frozenset)) or type(item).__name__ == "deque":
            pending += list(item)
        elif type(item).__module__.startswith("recon4d_ros"):
            pending.append(vars(item))
    return total


def swaying(count: int) -> list[Frame]:
    """The stream there and back again, for as long as wanted, at a quarter of the pixels."""
    small = [f.rgb[::2, ::2].contiguous() for f in stream(20)]
    there = [*range(20), *range(18, 0, -1)]
    assert len(there) == PERIOD
    camera = resize_intrinsics(stream(1)[0].intrinsics, (120, 160))
    picks = [there[i % len(there)] for i in range(count)]
    return [Frame(i, 33_000_000 * (i + 1), small[pick], camera) for i, pick in enumerate(picks)]


def test_nothing_grows_without_bound():
    config = SMALL.replaced(
        {
            "image.dense_max_side": 80,
            "map.max_voxels": 2000,
            "odometry.max_points": 250,
            "odometry.num_keyframes": 3,
            "odometry.iterations": 1,
            "odometry.cell_px": 8,
            "alignment.max_keyframes": 3,
            "alignment.max_landmarks": 300,
        }
    )
    reconstructor = build_reconstructor(config)
    early, late = PERIOD + 15, 3 * PERIOD + 15  # the same view and phase of the windows
    sizes, states = {}, []
    for frame in swaying(late + 1):
        states.append(reconstructor.step(frame).provisional.state)
        if frame.index in (early, late):
            sizes[frame.index] = kept_bytes(reconstructor)
    assert states.count(TrackingState.TRACKING) > 0.8 * late
    assert sizes[early] > 1e6
    assert sizes[late] < 1.02 * sizes[early]
    assert reconstructor.num_keyframes == 3
    assert 100 < len(reconstructor.static_map().points) <= 2000


def test_the_parts_are_named_by_the_configuration():
    assert isinstance(build_reconstructor(SMALL), Reconstructor)
    assert torch.get_num_threads() == SMALL.compute.torch_threads
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert pools and {pool["num_threads"] for pool in pools} == {SMALL.compute.torch_threads}

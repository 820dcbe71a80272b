"""The command line in this process, with a core that knows the truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from recordings import (
    CAMERA,
    HEIGHT,
    WIDTH,
    samples,
)

from recon4d_ros.cli.main import main
from recon4d_ros.datatypes import (
    EventKind,
    Frame,
    IntrinsicsSource,
    MapEvent,
    PointCloud,
    Reconstruction,
    StepOutput,
    TrackingState,
)
from recon4d_ros.geometry.image_grid import resize_intrinsics

DENSE = (HEIGHT // 2, WIDTH // 2)
LAG = 2


class FakeReconstructor:
    """Says what is true of `recordings.samples`, final two frames later.

    Frame 1 has no pose; `on_frame` is called before each step.
    """

    def __init__(self, on_frame: Callable[[Frame], None] = lambda _: None) -> None:
        self._on_frame = on_frame
        self._waiting: list[Reconstruction] = []

    def step(
        self, frame: Frame, on_provisional: Callable[[Reconstruction], None] | None = None
    ) -> StepOutput:
        self._on_frame(frame)
        provisional = self._result(frame, is_final=False)
        if on_provisional is not None:
            on_provisional(provisional)
        self._waiting.append(self._result(frame, is_final=True))
        ready = tuple(self._waiting[:-LAG])
        self._waiting = self._waiting[-LAG:]
        event = MapEvent(EventKind.INITIALISED, frame.stamp_ns, 0, "the map begins")
        events = (event,) if frame.index == 0 else ()
        return StepOutput(provisional, ready, events, {"track": 0.01, "window": 0.02})

    def finish(self) -> tuple[tuple[Reconstruction, ...], tuple[MapEvent, ...]]:
        waiting, self._waiting = tuple(self._waiting), []
        return waiting, ()

    def static_map(self) -> PointCloud:
        points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
        rgb = (points * 255).to(torch.uint8)
        return PointCloud(points, rgb, torch.ones(500), torch.ones(500, dtype=torch.int32))

    def _result(self, frame: Frame, *, is_final: bool) -> Reconstruction:
        sample = samples(frame.index + 1)[-1]
        assert sample.depth is not None and sample.mask is not None
        intrinsics = frame.intrinsics or CAMERA.intrinsics
        given = frame.intrinsics is not None
        return Reconstruction(
            frame=frame,
            is_final=is_final,
            T_map_cam=None if frame.index == 1 else sample.T_world_cam,
            depth=sample.depth[::2, ::2],
            confidence=torch.ones(DENSE),
            dynamic_mask=sample.mask[::2, ::2],
            filled=torch.zeros(DENSE, dtype=torch.bool),
            intrinsics=resize_intrinsics(intrinsics, DENSE),
            intrinsics_source=IntrinsicsSource.GIVEN if given else IntrinsicsSource.ESTIMATED,
            state=TrackingState.LOST if frame.index == 1 else TrackingState.TRACKING,
            submap=0,
            scale_known=False,
            residual_px=0.3,
            num_support=100,
        )


def recon4d(*words: object) -> int:
    return main([str(word) for word in words])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a known error prints."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("recon4d: ")
    return lines[0]

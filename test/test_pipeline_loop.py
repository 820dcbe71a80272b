"""The whole reconstruction on a closed path with drift: poses, map and events after the loop."""

from functools import cache

import analytic_scene as scene
import pytest
import torch
from loop_scene import DriftingPredictor, ate, drifted, ring
from torch import Tensor

from recon4d_ros.alignment import map_correction
from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    EventKind,
    Frame,
    FramePrediction,
    MapCorrection,
    PointCloud,
    StepOutput,
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.pipeline.reconstructor import Reconstructor

COUNT, TURNS = 160, 1.17
STEP = torch.tensor([0.0009, -0.0005, 0.0006, 0.0002, 0.0005, -0.0002, -0.001]).double()
CONFIG = Config().replaced(
    {
        "image.dense_max_side": 160,
        "image.tracking_max_side": 160,
        "map.max_voxels": 30_000,
        "map.voxel_size": 0.03,
        "map.pixel_stride": 4,
        "map.edge_ratio": 1.0,
    }
)


class Drifting:
    """The drifting predictor behind the predictors' door."""

    name = "drifting"
    maps_aside = False

    def __init__(self) -> None:
        walk = ring(COUNT, TURNS)
        self.truth = DriftingPredictor(walk, drifted(walk.poses, STEP))

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        return self.truth.frame(frame.index, max(0, frame.index - 4), is_dense=dense)

    def densify(self, prediction: FramePrediction) -> FramePrediction:
        return prediction

    def predict(self, window: Window) -> WindowPrediction:
        return self.truth.window(range(window.indices[0], window.indices[-1] + 1))

    def reset(self) -> None:
        pass


class Listener:
    """Somebody who keeps every final pose and heeds the events."""

    def __init__(self, closes: bool) -> None:
        config = CONFIG.replaced({"alignment.loop_closure": closes})
        self.reconstructor = Reconstructor(config, Drifting())
        self.first: dict[int, Tensor] = {}
        self.poses: dict[int, Tensor] = {}
        self.outputs: list[StepOutput] = []

    def run(self) -> "Listener":
        for frame in ring(COUNT, TURNS).frames:
            out = self.reconstructor.step(frame)
            self.first[frame.index] = out.provisional.T_map_cam
            self.poses |= {each.frame.index: each.T_map_cam for each in out.final}
            for correction in corrections(out):
                self.heed(correction)
            self.outputs.append(out)
        self.poses |= {each.frame.index: each.T_map_cam for each in self.reconstructor.finish()[0]}
        return self

    def heed(self, correction: MapCorrection) -> None:
        at = torch.tensor(list(self.poses))
        S = sim3.interpolate(correction.indices, correction.S_new_old, at)
        moved = sim3.transform_pose(S, torch.stack(list(self.poses.values())))
        self.poses = dict(zip(self.poses, moved, strict=True))


def corrections(out: StepOutput) -> list[MapCorrection]:
    return [event.correction for event in out.events if event.correction is not None]


@cache
def listened(closes: bool) -> Listener:
    return Listener(closes).run()


def off_the_walls(cloud: PointCloud, poses: dict[int, Tensor]) -> Tensor:
    """Distances (P,) of map points from the walls of the room, metres, after the best fit."""
    ours = torch.stack([T[:3, 3] for T in poses.values()])
    truth = torch.stack([ring(COUNT, TURNS).poses[i][:3, 3] for i in poses])
    world = se3.transform(sim3.fit(ours, truth), cloud.points.double())
    return (world.abs() - scene.HALF_SIZE).abs().amin(-1)


def test_final_poses_lose_two_thirds_of_the_drift() -> None:
    poses = ring(COUNT, TURNS).poses
    plain, closed = listened(False), listened(True)
    assert sorted(closed.poses) == list(range(COUNT))
    before, after = ate(plain.poses, poses), ate(closed.poses, poses)
    print(f"ATE without loop closure {before:.4f} m, with it {after:.4f} m")
    assert after < before / 3


def test_the_map_moves_with_the_poses() -> None:
    plain, closed = listened(False), listened(True)
    before = off_the_walls(plain.reconstructor.static_map(), plain.poses)
    after = off_the_walls(closed.reconstructor.static_map(), closed.poses)
    print(f"map off the walls: {float(before.median()):.4f} m, {float(after.median()):.4f} m")
    assert len(after) > 2000
    assert float(after.median()) < 0.6 * float(before.median())
    assert float(after.quantile(0.9)) < 0.7 * float(before.quantile(0.9))


def test_the_correction_comes_last_and_the_next_pose_lies_on_the_moved_map() -> None:
    plain, closed = listened(False), listened(True)
    with_correction = [out for out in closed.outputs if corrections(out)]
    assert with_correction
    for out in with_correction:
        assert out.events[-1].kind is EventKind.MAP_CORRECTION
    at = closed.outputs.index(with_correction[0])
    (correction,) = corrections(with_correction[0])
    # Up to the event nothing has changed, the provisional pose of its own step included.
    for index in range(at + 1):
        assert torch.equal(closed.first[index], plain.first[index])
    S = correction.S_new_old[-1]
    torch.testing.assert_close(
        closed.first[at + 1], sim3.transform_pose(S, plain.first[at + 1]), atol=1e-9, rtol=0
    )
    depth = closed.outputs[at + 1].provisional.depth / plain.outputs[at + 1].provisional.depth
    seen = depth[depth.isfinite()]
    torch.testing.assert_close(
        seen, torch.full_like(seen, float(sim3.split(S)[0])), rtol=1e-4, atol=0
    )


def test_two_runs_with_loops_are_equal_to_the_bit() -> None:
    again = Listener(True).run()
    for index, T in listened(True).first.items():
        assert torch.equal(T, again.first[index])
    clouds = [each.reconstructor.static_map().points for each in (listened(True), again)]
    assert torch.equal(*clouds)


def test_what_fails_in_a_loop_leaves_everything_as_it_was(monkeypatch) -> None:

    walk = ring(COUNT, TURNS)
    reconstructor = Reconstructor(CONFIG, Drifting())

    def fail(*_: object) -> None:
        raise AlignmentError("on purpose")

    monkeypatch.setattr(map_correction, "find_loops", fail)
    with pytest.raises(AlignmentError, match="on purpose"):
        for frame in walk.frames:
            before = reconstructor._aligner._state, reconstructor._aligner._store
            reconstructor.step(frame)
    assert before == (reconstructor._aligner._state, reconstructor._aligner._store)


def test_the_end_of_a_stream_moves_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would hear of a correction that the last, partial window brings."""
    reconstructor, asked = Reconstructor(CONFIG, Drifting()), []
    for frame in ring(COUNT, TURNS).frames[:10]:
        reconstructor.step(frame)
    monkeypatch.setattr(map_correction, "find_loops", lambda *_: asked.append(1) or ())
    monkeypatch.setattr(
        "recon4d_ros.alignment.selection.worth_keeping",
        lambda window, *_: torch.arange(len(window.frames)) == len(window.frames) - 1,
    )
    assert reconstructor.finish()[0] != ()
    assert reconstructor.num_keyframes > 1 and asked == []
    kinds = {event.kind for out in listened(True).outputs for event in out.events}
    assert kinds == {EventKind.INITIALISED, EventKind.MAP_CORRECTION}

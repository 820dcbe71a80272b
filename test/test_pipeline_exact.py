"""The whole reconstruction on exact predictions: what goes in exact must come out exact."""

from functools import cache

import pytest
import torch
from analytic_scene import ExactPredictor
from rendered_stream import rendered
from stream_run import SMALL, run

from recon4d_ros.datatypes import FlowField, Frame, FramePrediction, Window, WindowPrediction
from recon4d_ros.geometry import se3
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.synthetic import correspondence, scenes
from recon4d_ros.synthetic.renderer import RenderedFrame

WIDTH, LENGTH = 160, 18
OFFSETS = (2, 4, 6)


def shown(index: int) -> RenderedFrame:
    return rendered("demo", index, WIDTH)


@cache
def flow(source: int, target: int) -> FlowField:
    exact = correspondence.flow(scenes.named("demo", 60, WIDTH), source, target)
    field = torch.nan_to_num(exact.flow).float().contiguous()
    return FlowField(source, target, field, exact.visible)


class ExactScene:
    """A predictor that says the truth about a rendered scene, in a gauge of its own."""

    name = "exact"
    maps_aside = False

    def __init__(self, gives_poses: bool, names_gauge: bool) -> None:
        everything = range(LENGTH)
        twist = torch.tensor([0.3, -1.0, 2.0, 0.2, 0.5, -0.3], dtype=torch.float64)
        self.truth = ExactPredictor(
            view=shown(0).intrinsics,
            trajectory=tuple(shown(index).T_world_cam for index in everything),
            depths=tuple(shown(index).depth.double() for index in everything),
            T_gauge_world=se3.exp(twist),
            scale=2.5,
            num_landmarks=0,
            gives_poses=gives_poses,
            names_gauge=names_gauge,
        )

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        past = [frame.index - offset for offset in OFFSETS if frame.index >= offset]
        flows = tuple(flow(a, b) for p in past for a, b in ((frame.index, p), (p, frame.index)))
        return self.truth.frame(frame.index, 0, flows=flows, is_dense=dense)

    def densify(self, prediction: FramePrediction) -> FramePrediction:
        return prediction

    def predict(self, window: Window) -> WindowPrediction:
        inside = window.indices
        flows = tuple(flow(a, b) for a in inside for b in inside if abs(a - b) in OFFSETS)
        count = len(inside)
        return self.truth.window(
            range(inside[0], inside[-1] + 1),
            flows=flows,
            pose_residual_px=torch.full((count,), 0.1),
            pose_support=torch.full((count,), 100),
        )

    def reset(self) -> None:
        pass


@cache
def results(gives_poses: bool, names_gauge: bool) -> tuple[Reconstructor, list, list]:
    reconstructor = Reconstructor(SMALL, ExactScene(gives_poses, names_gauge))
    done = run(reconstructor, [shown(index).frame for index in range(LENGTH)])
    return reconstructor, done.provisional, done.finals()


@pytest.mark.parametrize("names_gauge", [True, False])
def test_poses_and_depth_come_out_as_they_went_in(names_gauge):
    """Up to the gauge: the first camera is the origin, lengths are the predictor's."""
    _, provisional, final = results(True, names_gauge)
    assert [r.frame.index for r in final] == list(range(LENGTH))
    T_first = se3.inverse(shown(0).T_world_cam)
    origin = final[0].T_map_cam
    for result in (*provisional, *final):
        exact = T_first @ shown(result.frame.index).T_world_cam
        exact = torch.cat([torch.cat([exact[:3, :3], 2.5 * exact[:3, 3:]], 1), exact[3:]])
        assert torch.allclose(se3.inverse(origin) @ result.T_map_cam, exact, atol=1e-4)
        still = ~result.filled
        depth = 2.5 * shown(result.frame.index).depth
        assert bool(result.depth.isfinite().all())
        assert float((result.depth / depth - 1)[still].abs().max()) < 1e-3
        assert torch.equal(result.filled, result.dynamic_mask)


def test_masks_of_exact_flow_fit_what_moves():
    _, _, final = results(True, True)
    found = torch.stack([r.dynamic_mask for r in final[4:]])
    moving = torch.stack([shown(r.frame.index).dynamic_mask for r in final[4:]])
    iou = (found & moving).sum() / (found | moving).sum()
    print(f"IoU {float(iou):.3f}")
    assert float(iou) > 0.3  # 0.37; at this size much of the motion is below the threshold
    assert float((found & ~moving).sum() / (~moving).sum()) < 0.02


def test_moving_pixels_borrow_a_depth_of_low_confidence():
    _, _, final = results(True, True)
    for result in final[4:]:
        borrowed = result.filled
        assert bool((result.confidence[borrowed] < result.confidence[~borrowed].min()).all())


def test_the_map_lies_on_the_static_surfaces():
    reconstructor, _, final = results(True, True)
    cloud = reconstructor.static_map()
    assert len(cloud.points) > 1000
    origin = shown(0).T_world_cam @ se3.inverse(final[0].T_map_cam)
    world = cloud.points.double() / 2.5 @ origin[:3, :3].T + origin[:3, 3]
    room = torch.tensor([2.6, 2.4, 1.4], dtype=torch.float64)
    assert float((world.abs() - room).amax()) < 0.05
    on_wall = ((world.abs() - room).abs().amin(dim=1) < 0.05).double().mean()
    assert float(on_wall) > 0.5


def test_a_map_made_of_pointmaps_alone_is_the_same():
    """A network gives no poses; they are found from the pointmaps."""
    _, _, with_poses = results(True, True)
    _, _, without = results(False, True)
    for a, b in zip(with_poses, without, strict=True):
        assert torch.allclose(a.T_map_cam, b.T_map_cam, atol=0.02)

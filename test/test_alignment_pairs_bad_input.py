"""Bad input of the alignment of clips: a result that is right or flagged, or a clear error."""

from dataclasses import replace

import pytest
import torch
from analytic_scene import pose
from pair_scene import VIEW, PairScene, ate, depth_error, offsets, path, path_length

from recon4d_ros.alignment import align_pairs, pair_masks
from recon4d_ros.config import Config
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import se3

torch.set_num_threads(1)
QUICK = Config().replaced({"offline.iterations": 60})


@pytest.fixture(scope="module")
def exact() -> PairScene:
    return PairScene(path(7))


@pytest.fixture(scope="module")
def noisy() -> PairScene:
    return PairScene(path(8), along=0.01, seed=3)


def test_components_are_named():
    scene = PairScene(path(5), has_ball=False)
    with pytest.raises(AlignmentError, match=r"2 components.*: 0-1, 4 \| 2-3"):
        align_pairs(**scene.predictions([(0, 1), (1, 4), (2, 3), (3, 2)]))
    with pytest.raises(AlignmentError, match=r"3 components.*: 0 \| 1-2 \| 3"):
        align_pairs(**scene.predictions([(1, 2), (3, 3)]))


def test_pairs_without_confidence_are_left_out_and_may_break_the_graph():
    scene = PairScene(path(4), has_ball=False)
    pairs = scene.predictions([(0, 1), (1, 2), (2, 3), (0, 2), (3, 1)])
    pairs["conf_1"][1], pairs["conf_2"][4] = 0.0, torch.nan
    result = align_pairs(**pairs)
    assert ate(result.T_world_cam, scene.T_world_cam) < 1e-3 * path_length(scene.T_world_cam)
    assert [note[:11] for note in result.report.notes] == ["pair (1, 2)", "pair (3, 1)"]
    pairs["conf_1"][2] = 0.0
    with pytest.raises(AlignmentError, match=r"0-2 \| 3 \(pair \(1, 2\)"):
        align_pairs(**pairs)


def test_no_confidence_at_all_is_an_error():
    pairs = PairScene(path(3), has_ball=False).predictions(offsets(3, (1,)))
    for value in (0.0, 1.0, torch.nan):
        with pytest.raises(AlignmentError, match=r"conf_1 above 1"):
            align_pairs(**(pairs | {"conf_1": torch.full_like(pairs["conf_1"], value)}))


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_unknown_points_and_confidences_are_left_out(noisy, method):
    pairs = noisy.predictions(offsets(8))
    pairs["points_1"][:, :9] = torch.nan
    pairs["points_2_in_1"][3::4, 20:30, :20] = torch.inf
    pairs["matching_2_in_1"][::3, :, 40:] = torch.nan
    pairs["conf_1"][5, 30:] = torch.nan
    pairs["conf_2"][::2, :, :8] = 0.0
    result = align_pairs(**pairs, method=method, config=QUICK)
    assert ate(result.T_world_cam, noisy.T_world_cam) < 0.015 * path_length(noisy.T_world_cam)
    assert bool(result.depth.isfinite().all())  # every pixel is known by some pair


def test_a_pixel_that_no_pair_knows_has_no_depth_and_does_not_move(exact):
    pairs = exact.predictions(offsets(7))
    for name in ("conf_1", "conf_2", "conf_matching"):
        pairs[name][:, :5] = 0.0
    for method in ("fast", "adam"):
        result = align_pairs(**pairs, method=method, config=QUICK)
        assert bool(result.depth[:, :5].isnan().all())
        assert bool(result.depth[:, 5:].isfinite().all())
        assert not bool(result.dynamic_mask[:, :5].any())


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_a_single_frame_is_the_origin(method):
    scene = PairScene(path(1), has_ball=False)
    result = align_pairs(**scene.predictions([(0, 0)]), method=method, config=QUICK)
    torch.testing.assert_close(result.T_world_cam, torch.eye(4).double()[None])
    assert depth_error(result, scene) < 0.01
    assert result.intrinsics.fx == pytest.approx(VIEW.fx, rel=0.01)


@pytest.mark.parametrize("edges", [[(0, 1)], [(0, 1), (1, 0)]])
@pytest.mark.parametrize("method", ["fast", "adam"])
def test_two_frames(edges, method):
    scene = PairScene(path(2, step=10))
    result = align_pairs(**scene.predictions(edges), method=method, config=QUICK)
    turn = se3.relative(result.T_world_cam[0], result.T_world_cam[1])
    truth = se3.relative(scene.T_world_cam[0], scene.T_world_cam[1])
    between = turn[:3, :3].T @ truth[:3, :3]
    assert float(se3.angle(between)) < 0.01
    cosine = torch.dot(turn[:3, 3], truth[:3, 3]) / turn[:3, 3].norm() / truth[:3, 3].norm()
    assert float(cosine) > 0.99
    assert depth_error(result, scene) < 0.02


@pytest.mark.parametrize("method", ["fast", "adam"])
def test_identical_frames_stand_and_say_so(method):
    scene = PairScene(pose(3).repeat(4, 1, 1), has_ball=False, along=0.002)
    result = align_pairs(**scene.predictions(offsets(4, (1, 2))), method=method, config=QUICK)
    moved = result.T_world_cam[:, :3, 3].norm(dim=-1).max() / result.depth.median()
    assert float(moved) < 2e-3
    assert any("stands or turns" in note for note in result.report.notes)


def test_pure_rotation_is_found_and_said():
    turns = torch.zeros(5, 6).double()
    turns[:, 4] = torch.arange(5) * 0.06
    scene = PairScene(pose(3) @ se3.exp(turns), has_ball=False, along=0.002)
    result = align_pairs(**scene.predictions(offsets(5, (1, 2))))
    for found, true in zip(result.T_world_cam[1:], scene.T_world_cam[1:], strict=True):
        truth = se3.relative(scene.T_world_cam[0], true)
        assert float(se3.angle(found[:3, :3].T @ truth[:3, :3])) < 2e-3
    assert any("stands or turns" in note for note in result.report.notes)


def test_frames_without_a_static_pixel_are_aligned_by_all_and_reported(exact, monkeypatch):
    masks = exact.dynamic.clone()
    masks[2] = True
    monkeypatch.setattr(pair_masks, "matched_masks", lambda pairs, config: masks)
    result = align_pairs(**exact.predictions(offsets(7)))
    assert ate(result.T_world_cam, exact.T_world_cam) < 1e-3 * path_length(exact.T_world_cam)
    assert next(note for note in result.report.notes if "static" in note)[:8] == "frame 2 "
    masks[:] = True
    for method in ("fast", "adam"):
        result = align_pairs(**exact.predictions(offsets(7)), method=method, config=QUICK)
        assert len([note for note in result.report.notes if "static" in note]) == 7
        assert bool(result.T_world_cam.isfinite().all())
        assert ate(result.T_world_cam, exact.T_world_cam) < 0.01 * path_length(exact.T_world_cam)


def test_points_of_no_world_are_refused_or_reported():
    random = torch.Generator().manual_seed(0)
    pairs = PairScene(path(4), has_ball=False).predictions(offsets(4, (1, 2)))
    noise = torch.rand(pairs["points_2_in_1"].shape, generator=random) * 5 + 0.1
    try:
        result = align_pairs(**(pairs | {"points_2_in_1": noise, "matching_2_in_1": noise}))
    except AlignmentError:
        return
    assert any("disagree" in note for note in result.report.notes)
    assert bool(result.T_world_cam.isfinite().all())


def test_points_on_one_line_do_not_fix_a_pose():
    pairs = PairScene(path(2), has_ball=False).predictions([(0, 1), (1, 0)])
    for name in ("points_1", "points_2_in_1", "matching_2_in_1"):
        pairs[name][:] = torch.linspace(1, 2, 48)[:, None] * torch.tensor([0.2, 0.1, 1.0])
    with pytest.raises(AlignmentError, match=r"do not fix|focal"):
        align_pairs(**pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": torch.zeros(0, 2).long()}, "at least one pair"),
        ({"edges": torch.zeros(2, 2)}, "integers"),
        ({"edges": torch.tensor([[0, 1], [-1, 0]])}, "from 0 on"),
        ({"points_1": torch.zeros(2, 36, 48)}, "points_1 is"),
        ({"conf_2": torch.ones(2, 36, 40)}, "conf_2"),
        ({"matching_2_in_1": torch.ones(2, 30, 48, 3)}, "matching_2_in_1"),
        ({"matching_2_in_1": None}, "give both"),
        ({"method": "slow"}, "'fast' or 'adam'"),
        ({"intrinsics": torch.eye(4)}, r"\(3, 3\) camera matrix"),
        ({"intrinsics": torch.diag(torch.tensor([0.0, 0.0, 1.0]))}, "above zero"),
        ({"intrinsics": replace(VIEW, width=64)}, "resize the intrinsics"),
    ],
)
def test_input_of_the_wrong_form_is_refused(change, message):
    pairs = PairScene(path(2), has_ball=False).predictions([(0, 1), (1, 0)])
    with pytest.raises(AlignmentError, match=message):
        align_pairs(**(pairs | change))

"""Whole clips from pairs, with a network that knows the truth and has a real one's noise."""

import re
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from oracle_network import OracleNetwork
from rendered_stream import rendered
from stream_run import Run, ate, run

from recon4d_ros.alignment.pair_store import PairStore
from recon4d_ros.alignment.window_join import ClipWindow, joined
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Frame, Intrinsics, IntrinsicsSource, PairPointmaps
from recon4d_ros.errors import AlignmentError, ConfigError, FrameError
from recon4d_ros.geometry import se3, sim3
from recon4d_ros.pipeline.offline import OfflineReconstructor
from recon4d_ros.predictors.klt import KltTracker
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.pair_network import PomatoPairs
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.pairs import NoisyPairs

WIDTH, COUNT, STEP = 80, 16, 2  # every second frame of the scene: a faster camera


@dataclass
class Network:
    """Pairs of frames by their numbers; notes what it was asked, and fails where told to."""

    noise: float = 1.0
    asked: list[tuple[int, int]] = field(default_factory=list)
    blind: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        scene = scenes.named("demo", 60, WIDTH)
        sizes = {"along": 0.007 * self.noise, "across_px": 0.36 * self.noise}
        self._pairs = NoisyPairs(scene, frame_of=lambda index: STEP * index, **sizes)

    def pair(self, first: Frame, second: Frame) -> PairPointmaps:
        self.asked.append((first.index, second.index))
        found = self._pairs.pair(first.index, second.index)
        if {first.index, second.index} & set(self.blind):
            return replace(found, confidence_1=torch.ones_like(found.confidence_1))
        return found

    def reset(self) -> None:
        pass


def stream(count: int = COUNT, has_camera: bool = True) -> list[Frame]:
    found = [rendered("demo", STEP * i, WIDTH).frame for i in range(count)]
    return [
        replace(f, index=i, intrinsics=f.intrinsics if has_camera else None)
        for i, f in enumerate(found)
    ]


def truth(count: int = COUNT) -> list[torch.Tensor]:
    return [rendered("demo", STEP * i, WIDTH).T_world_cam for i in range(count)]


def path_length() -> float:
    centres = torch.stack(truth())[:, :3, 3]
    return float(centres.diff(dim=0).norm(dim=1).sum())


def made(network: Network, **changes) -> OfflineReconstructor:
    small = {"map.max_voxels": 20_000}
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return OfflineReconstructor(Config().replaced({**small, **named}), network, KltTracker())


@cache
def done(window: int) -> tuple[Run, Network, OfflineReconstructor]:
    network = Network()
    core = made(network, offline__window=window)
    return run(core, stream()), network, core


# In the short windows most pixels have two partners instead of five, and are joined twice.
@pytest.mark.parametrize(("window", "largest", "least"), [(100, 0.008, 0.95), (8, 0.011, 0.84)])
def test_poses_masks_and_depth_are_right(window, largest, least):
    result, _, core = done(window)
    finals = result.finals()
    assert [r.frame.index for r in finals] == list(range(COUNT))
    share = ate(finals, truth()) / path_length()
    exact = [rendered("demo", STEP * i, WIDTH) for i in range(COUNT)]
    found = torch.stack([r.dynamic_mask for r in finals])
    moving = torch.stack([e.dynamic_mask for e in exact])
    iou = float((found & moving).sum() / (found | moving).sum())
    ratios = torch.stack([r.depth / e.depth for r, e in zip(finals, exact, strict=True)])
    wrong = float((ratios / ratios.nanmedian() - 1).abs().nanmean())
    print(
        f"windows of {window}: ATE {100 * share:.2f} %, IoU {iou:.3f}, depth {100 * wrong:.2f} %"
    )
    assert share < largest
    assert iou > least
    assert wrong < 0.004
    assert all(r.is_final and r.is_dense and r.tracks is not None for r in finals)
    assert all(bool((r.confidence > 1).any()) for r in finals)
    assert len(core.static_map().points) > 2000
    assert core.notes == []


def test_only_the_pairs_of_one_window_are_held_and_none_is_asked_for_twice():
    _, network, core = done(8)
    assert core.num_pairs <= 2 * (7 + 5 + 3 + 1)
    assert len(set(network.asked)) == len(network.asked)
    assert {abs(i - j) for i, j in network.asked} == {1, 3, 5, 7}
    assert {(j, i) for i, j in network.asked} == set(network.asked)
    _, network, core = done(100)
    assert core.num_pairs == len(network.asked) == 2 * (15 + 13 + 11 + 9 + 7)


def test_frames_become_final_up_to_the_middle_of_what_windows_share():
    result, _, _ = done(8)
    assert [when for when, _ in result.final] == [7] * 6 + [11] * 4 + [15] * 4 + [16] * 2
    assert all(p.T_map_cam is None and not p.is_final for p in result.provisional)


def test_exact_pairs_give_exact_poses_across_windows():
    core = made(Network(noise=0.0), offline__window=8, refinement__mode="off")
    result = run(core, stream(13))  # the last window shares more than it has to
    assert len(result.finals()) == 13
    assert ate(result.finals(), truth(13)) < 2e-4 * path_length()


def test_an_unknown_camera_is_estimated_in_the_first_window_and_kept():
    core = made(Network(), offline__window=8)
    finals = run(core, stream(12, has_camera=False)).finals()
    assert len({r.intrinsics for r in finals}) == 1
    assert {r.intrinsics_source for r in finals} == {IntrinsicsSource.ESTIMATED}
    exact = scenes.named("demo", 60, WIDTH).intrinsics
    assert finals[0].intrinsics.fx == pytest.approx(exact.fx, rel=0.02)


def test_the_pomato_network_serves_as_it_is():
    """Heads 1 to 3 of one call share a unit, each call has another one."""
    network = OracleNetwork(scenes.named("demo", 6, 64), None, along=0.0, across_px=0.0)
    exact = [rendered("demo", index, 64, 6) for index in range(6)]
    settings = Config().replaced({"refinement.mode": "off"})
    pairs = PomatoPairs(Engine(network), 64, num_kept=10)
    core = OfflineReconstructor(settings, pairs, KltTracker())
    finals = run(core, [e.frame for e in exact]).finals()
    poses = [e.T_world_cam for e in exact]
    length = float(torch.stack(poses)[:, :3, 3].diff(dim=0).norm(dim=1).sum())
    assert ate(finals, poses) < 1e-3 * length
    assert (network.num_encoded, network.num_pairs) == (6, 2 * (5 + 3 + 1))


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_clips(count):
    finals = run(made(Network()), stream(count)).finals()
    assert [r.frame.index for r in finals] == list(range(count))
    assert torch.equal(finals[0].T_map_cam, torch.eye(4, dtype=torch.float64))
    assert made(Network()).finish() == ((), ())


def test_another_camera_is_refused():
    core = made(Network())
    first, second = stream(2)
    core.step(first)
    with pytest.raises(FrameError, match="one camera"):
        core.step(replace(second, intrinsics=None))
    core.step(second)
    assert len(core.finish()[0]) == 2


def test_a_window_that_cannot_be_aligned_is_given_up_and_the_next_is_another_submap():
    core = made(Network(blind=(2,)), offline__window=4, offline__offsets="1")
    frames = stream(8)
    for frame in frames[:3]:
        core.step(frame)
    with pytest.raises(AlignmentError, match=re.escape("0-1 | 2 | 3")):
        core.step(frames[3])
    final = [each for frame in frames[4:] for each in core.step(frame).final] + [*core.finish()[0]]
    assert [r.frame.index for r in final] == [4, 5, 6, 7]
    assert {r.submap for r in final} == {1}


def test_more_pairs_than_memory_can_hold_are_refused_with_their_size():
    first, second = stream(2)
    pair = Network().pair(first, second)
    with pytest.raises(AlignmentError, match=r"GiB.*lower offline\.window"):
        PairStore(10**10).put(pair)
    store = PairStore(2)
    store.put(pair)
    with pytest.raises(AlignmentError, match="images of one size"):
        store.put(replace(pair, matching_2=None))


@pytest.mark.parametrize("offsets", ["", "3,5", "1,0", "1,-3", "1,two"])
def test_offsets_that_are_none_are_refused(offsets):
    with pytest.raises(ConfigError, match=r"offline\.offsets"):
        Config().replaced({"offline.offsets": offsets})


def windows() -> tuple[ClipWindow, ClipWindow, torch.Tensor]:
    """Two windows of exact frames 0 to 5 and 3 to 8, the second one moved and scaled."""
    exact = [rendered("demo", STEP * i, WIDTH) for i in range(9)]
    poses, depth = (
        torch.stack([e.T_world_cam for e in exact]),
        torch.stack([e.depth for e in exact]),
    )
    masks = torch.stack([e.dynamic_mask for e in exact])
    turn = se3.exp(torch.tensor([0.3, -0.2, 0.9, 0.1, 0.4, -0.3]).double())
    S = sim3.make(2.5, turn)
    camera: Intrinsics = scenes.named("demo", 60, WIDTH).intrinsics
    moved = sim3.transform_pose(sim3.inverse(S), poses[3:])
    return (
        ClipWindow(0, poses[:6], depth[:6], masks[:6], camera),
        ClipWindow(3, moved, depth[3:] / 2.5, masks[3:], camera),
        poses,
    )


def test_windows_are_joined_exactly_and_shared_frames_keep_their_poses():
    before, window, poses = windows()
    found = joined(before, window)
    torch.testing.assert_close(found.T_map_cam, poses[3:], atol=1e-5, rtol=0)
    assert torch.equal(found.T_map_cam[:3], before.T_map_cam[3:])
    torch.testing.assert_close(found.depth, 2.5 * window.depth, rtol=1e-5, atol=0, equal_nan=True)


def test_wrong_depth_does_not_move_a_join():
    before, window, poses = windows()
    spoilt = window.depth.clone()
    spoilt[:, :24] *= 1.7  # a third of the image
    found = joined(before, replace(window, depth=spoilt))
    torch.testing.assert_close(found.T_map_cam, poses[3:], atol=1e-4, rtol=0)


def test_windows_without_common_surfaces_are_refused():
    before, window, _ = windows()
    with pytest.raises(AlignmentError, match="in common"):
        joined(before, replace(window, first=6))
    blank = replace(window, dynamic_mask=torch.ones_like(window.dynamic_mask))
    with pytest.raises(AlignmentError, match="frames 3 to 5 do not tie"):
        joined(before, blank)

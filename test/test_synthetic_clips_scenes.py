"""What happens in clips: labels on motions by hand, kinds of cameras, shares, still frames."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from recon4d_ros.datatypes.clips import CameraMotion, Clips
from recon4d_ros.geometry import se3
from recon4d_ros.synthetic.clips import ClipGenerator, ClipSettings, LabelRule
from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.labels import relative_speeds, solid_labels
from recon4d_ros.synthetic.clips.motion import Views, views
from recon4d_ros.synthetic.clips.sampling import CAMERA_KINDS, draw_world
from recon4d_ros.synthetic.clips.settings import CameraShares
from recon4d_ros.synthetic.clips.world import Kind, World

torch.set_num_threads(1)

SMALL = ClipSettings(num_frames=6, size=(64, 64), num_tracks=64, num_textures=7, texture_size=64)
CPU = torch.device("cpu")


def worlds(settings: ClipSettings, count: int) -> tuple[World, Views]:
    world = draw_world(settings, Dice(3, range(count), CPU))
    times = torch.arange(settings.num_frames).double().expand(count, -1)
    return world, views(world, times)


def moved_by_hand(steps: list[float], turn_rad: float = 0.0) -> tuple[World, Views]:
    """A scene in which only solid 1 moves: along x by the steps, 4 m before a standing camera."""
    settings = dataclasses.replace(SMALL, num_frames=len(steps) + 1, still_share=1.0)
    world, view = worlds(settings, 1)
    present = torch.ones_like(world.solids.is_present)
    world = dataclasses.replace(
        world, solids=dataclasses.replace(world.solids, is_present=present)
    )
    T = view.T_world_solid.clone()
    T[:, :, 1] = torch.eye(4, dtype=torch.float64)
    T[:, :, 1, 0, 3] = torch.tensor([0.0, *steps]).double().cumsum(0)
    T[:, :, 1, :3, 3] += view.T_world_cam[0, 0, :3, 3] + torch.tensor([0.0, 4.0, 0.0]).double()
    angle = turn_rad * torch.arange(len(steps) + 1, dtype=torch.float64)
    axis = torch.tensor([0.0, 0.0, 1.0]).double()
    T[0, :, 1, :3, :3] = se3.exp_so3(angle[:, None] * axis)
    return world, dataclasses.replace(view, T_world_solid=T)


def test_relative_speed_labels_on_motions_by_hand() -> None:
    # 0.2 % of 4 m is 8 mm, 1 % is 40 mm.
    cases = {
        (0.0, 0.0, 0.0): (False, True, [False] * 4),
        (0.001, 0.001, 0.001): (False, True, [False] * 4),
        (0.0, 0.008, 0.0): (False, False, [False] * 4),
        (0.0, 0.04, 0.0): (True, True, [False, True, True, False]),
        (0.04, 0.008, 0.0): (True, True, [True, True, False, False]),
    }
    for steps, (in_clip, judged, in_frame) in cases.items():
        world, view = moved_by_hand(list(steps))
        labels = solid_labels(world, view, LabelRule.RELATIVE_SPEED)
        assert bool(labels.moves_in_clip[0, 1]) is in_clip
        assert bool(labels.is_judged[0, 1]) is judged
        assert labels.moves_in_frame[0, :, 1].tolist() == in_frame
        others = torch.arange(labels.is_judged.shape[1]) != 1
        assert not labels.moves_in_clip[0, others].any() and labels.is_judged[0, others].all()


def test_kubric_labels_on_motions_by_hand() -> None:
    world, view = moved_by_hand([0.009, 0.011, 0.0])
    labels = solid_labels(world, view, LabelRule.KUBRIC)
    assert labels.moves_in_frame[0, :, 1].tolist() == [False, True, True, False]
    assert labels.moves_in_clip[0, 1] and labels.is_judged.all()
    world, view = moved_by_hand([0.009, 0.009])
    assert not solid_labels(world, view, LabelRule.KUBRIC).moves_in_clip.any()
    for degrees, moves in ((0.4, False), (0.6, True)):
        world, view = moved_by_hand([0.0, 0.0], math.radians(degrees))
        assert bool(solid_labels(world, view, LabelRule.KUBRIC).moves_in_clip[0, 1]) is moves
        assert not solid_labels(world, view, LabelRule.KUBRIC_POSITION).moves_in_clip.any()


def test_absent_solids_and_the_room_never_move() -> None:
    world, view = worlds(SMALL, 200)
    for rule in LabelRule:
        moves = solid_labels(world, view, rule).moves_in_clip
        assert not moves[:, 0].any() and not moves[~world.solids.is_present].any()
        assert moves.any(dim=1).float().mean() > 0.4


def path_of(kind: CameraMotion) -> torch.Tensor:
    """T_start_cam (B, T, 4, 4) of cameras of one kind."""
    shares = {other.value: float(other is kind) for other in CAMERA_KINDS}
    settings = dataclasses.replace(
        SMALL, num_frames=12, camera=CameraShares(**shares), still_share=0.0
    )
    _, view = worlds(settings, 40)
    return se3.inverse(view.T_world_cam[:, :1]) @ view.T_world_cam


def test_cameras_do_what_their_kinds_say() -> None:
    standing = path_of(CameraMotion.STANDING)
    assert torch.allclose(standing, torch.eye(4, dtype=torch.float64).expand_as(standing))
    turning = path_of(CameraMotion.ROTATION)
    assert turning[..., :3, 3].abs().max() < 1e-9
    assert se3.angle(turning[:, -1, :3, :3]).min() > 0.01
    ends = {kind: path_of(kind)[:, -1, :3, 3] for kind in CAMERA_KINDS[2:]}
    share = {kind: (end / end.norm(dim=-1, keepdim=True)).abs() for kind, end in ends.items()}
    assert share[CameraMotion.FORWARD][:, 2].median() > 0.95
    assert share[CameraMotion.LATERAL][:, :2].norm(dim=-1).median() > 0.95
    assert share[CameraMotion.LATERAL][:, 0].median() > 0.8
    orbit = path_of(CameraMotion.ORBIT)
    # A camera that goes to the right on its orbit turns to the left, around its own y axis.
    turn = se3.log_so3(orbit[:, -1, :3, :3])[:, 1]
    assert (turn * orbit[:, -1, 0, 3] < 0).float().mean() > 0.95
    assert path_of(CameraMotion.HANDHELD)[:, 1:, :3, 3].norm(dim=-1).max(dim=1).values.min() > 1e-3


def test_camera_follows_are_at_rest_in_the_image() -> None:
    world, view = worlds(dataclasses.replace(SMALL, still_share=0.0), 200)
    following = world.solids.is_following & world.solids.is_present
    T_cam_solid = view.T_cam_solid
    change = (T_cam_solid - T_cam_solid[:, :1]).abs().amax(dim=(1, 3, 4))
    assert following.sum() > 10 and change[following].max() < 1e-9
    moves = solid_labels(world, view, LabelRule.RELATIVE_SPEED).moves_in_clip
    camera_stands = world.camera_kind == CAMERA_KINDS.index(CameraMotion.STANDING)
    assert not moves[following & camera_stands[:, None]].any()
    assert moves[following & ~camera_stands[:, None]].float().mean() > 0.7


def test_motions_and_scenes_come_in_their_shares() -> None:
    count = 1500
    world, view = worlds(SMALL, count)
    solids = world.solids
    still = (world.camera_kind == 0).float().mean()
    assert still == pytest.approx(0.1 + 0.9 * 0.1, abs=0.04)
    for place, share in ((1, 0.1), (2, 0.2), (3, 0.2), (4, 0.2), (5, 0.2)):
        found = (world.camera_kind == place).float().mean()
        assert found == pytest.approx(0.9 * share, abs=0.04)
    drawn = solids.velocity.abs().amax(-1) + solids.turn.abs().amax(-1) > 0
    drawn |= solids.is_following
    nothing = ~drawn.any(dim=1)
    assert nothing.float().mean() == pytest.approx(0.1, abs=0.03)
    movers = drawn[:, 1 : 1 + SMALL.num_movers[1]]
    assert (movers.sum(dim=1) > 0).float().mean() == pytest.approx(0.9, abs=0.03)
    pauses = (solids.begin > -1e5) | (solids.end < 1e5)
    assert pauses[drawn].float().mean() == pytest.approx(0.25, abs=0.04)
    assert solids.is_following[drawn].float().mean() == pytest.approx(0.1, abs=0.03)
    bent = (solids.kind == Kind.BENT_QUAD)[drawn].sum() / (solids.kind >= Kind.QUAD)[drawn].sum()
    assert bent == pytest.approx(SMALL.bending, abs=0.05)
    assert (relative_speeds(world, view)[:, :, 0] == 0).all()


def test_tracks_and_queries_come_in_their_shares() -> None:
    settings = dataclasses.replace(SMALL, num_movers=(4, 4), still_share=0.0)
    truth = ClipGenerator(settings, seed=2).truth(range(60))
    late = (truth.queries.frame > 0).float().mean()
    assert late == pytest.approx(0.25, abs=0.03)
    moves = truth.labels.moves_in_clip.gather(1, truth.material.solid)
    shown = moves.any(dim=1)
    assert shown.float().mean() > 0.7
    assert moves[shown].float().mean() == pytest.approx(0.5, abs=0.08)


def still_features(clips: Clips) -> torch.Tensor:
    """(B, N, C) of the patch around each query, from its own frame alone."""
    rgb = clips.rgb.float() / 255.0
    frame = clips.queries[..., 0].long()
    height, width = rgb.shape[2:4]
    rows = []
    for clip in range(len(rgb)):
        picture = rgb[clip].permute(0, 3, 1, 2)[frame[clip]]
        at = clips.queries[clip, :, 1:]
        features = [at / width, (at / width - 0.5).square()]
        for reach in (2, 6, 14):
            step = torch.linspace(-reach, reach, 5)
            offset = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1)
            grid = at[:, None, None] + offset
            size = torch.tensor([width, height])
            grid = (grid * 2.0 + 1.0) / size - 1.0
            patch = functional.grid_sample(
                picture, grid, align_corners=False, padding_mode="border"
            )
            spread = patch.std(dim=(2, 3))
            features += [patch.mean(dim=(2, 3)), spread, spread.log1p().square()]
        grey = patch.mean(dim=1)
        edges = [(grey[:, 1:] - grey[:, :-1]).abs(), (grey[:, :, 1:] - grey[:, :, :-1]).abs()]
        features += [edge.flatten(1).amax(dim=1, keepdim=True) for edge in edges]
        # Contrast to the whole picture: colour and texture that stand out.
        features.append((patch.mean(dim=(2, 3)) - picture.mean(dim=(2, 3))).abs())
        rows.append(torch.cat(features, dim=1))
    return torch.stack(rows)


def logistic(features: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """Weights (C,) of a balanced logistic regression with a little shrinkage."""
    weights = torch.zeros(features.shape[1], requires_grad=True)
    balance = torch.where(moves, 0.5 / moves.float().mean(), 0.5 / (~moves).float().mean())
    solver = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        each = functional.binary_cross_entropy_with_logits(
            features @ weights, moves.float(), weight=balance
        )
        total = each + 1e-2 * weights.square().sum()
        total.backward()
        return total

    solver.step(loss)
    return weights.detach()


def balanced_accuracy(score: torch.Tensor, moves: torch.Tensor) -> float:
    found = score > 0
    return float((found[moves].float().mean() + (~found)[~moves].float().mean()) / 2)


def test_a_still_frame_does_not_tell_what_moves() -> None:
    settings = dataclasses.replace(SMALL, num_frames=3, num_movers=(1, 4), still_share=0.0)
    settings = dataclasses.replace(
        settings, effects=dataclasses.replace(settings.effects, motion_blur=0.0)
    )
    clips = ClipGenerator(settings, seed=11).clips(0, 110)
    features = still_features(clips)
    features = (features - features.mean(dim=(0, 1))) / features.std(dim=(0, 1))
    features = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
    usable = clips.is_judged & clips.moves_in_clip.any(dim=1, keepdim=True)
    known, held_out = slice(0, 70), slice(70, 110)
    weights = logistic(features[known][usable[known]], clips.moves_in_clip[known][usable[known]])
    score = features[held_out] @ weights
    rows = usable[held_out]
    assert balanced_accuracy(score[rows], clips.moves_in_clip[held_out][rows]) <= 0.55

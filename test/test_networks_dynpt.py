"""DynPT: its conventions, its masks, its parts against slow twins, and that it can learn."""

import dataclasses

import numpy as np
import pytest
import torch
from moving_squares import clip
from torch.nn import functional

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.dynpt import (
    DynPT,
    DynPTConfig,
    FeatureMaps,
    TrackState,
    checkpoint,
    motion,
)
from recon4d_ros.networks.dynpt.correlation import correlate
from recon4d_ros.networks.dynpt.portions import portion
from recon4d_ros.networks.dynpt.support import blend, neighbourhood, to_cells
from recon4d_ros.networks.dynpt.transformer import AttentionBlock

TINY = DynPTConfig.named("tiny")
# A network for tests of behaviour: everything is there, but narrow.
NARROW = dataclasses.replace(
    TINY, trunk_widths=(8, 8, 8, 8), feature_width=8, context_width=8, layers=1, hidden=32
)


def network(config: DynPTConfig = NARROW, seed: int = 0) -> DynPT:
    """A network that does not stand still: its heads are drawn too."""
    torch.manual_seed(seed)
    net = DynPT(config).eval()
    for head in (net.updater.to_step, net.updater.to_logits):
        torch.nn.init.normal_(head.weight, std=0.1)
    return net


def video(num_clips: int = 1, num_frames: int = 5, size: tuple[int, int] = (32, 48)):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(num_clips, num_frames, 3, *size, generator=generator) * 2 - 1


def some_queries(num_clips: int = 1, number: int = 10, num_frames: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    frame = torch.randint(0, num_frames, (num_clips, number, 1), generator=generator)
    place = torch.rand(num_clips, number, 2, generator=generator) * torch.tensor([47.0, 31.0])
    return torch.cat([frame.float(), place], dim=-1)


def assert_equal_states(found: TrackState, expected: TrackState, tolerance: float = 1e-4) -> None:
    for field in dataclasses.fields(TrackState):
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), rtol=0, atol=tolerance
        )


def rows(state: TrackState, which) -> TrackState:
    fields = dataclasses.fields(TrackState)
    return TrackState(*(getattr(state, field.name)[:, :, which] for field in fields))


# ---------------------------------------------------------------- conventions
def test_convention_sampling_is_grid_samples_without_aligned_corners() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 6, 9, 4)
    uv = torch.rand(1, 40, 2) * torch.tensor([44.0, 32.0]) - 4  # beyond the border too
    frame = torch.randint(0, 2, (1, 40))
    values, fraction = neighbourhood(maps, frame, to_cells(uv, 4), 0)
    found = blend(values.mT, fraction).squeeze(-1)
    grid = (uv + 0.5) * 2 / torch.tensor([36.0, 24.0]) - 1
    planes = maps[0].movedim(-1, 1)
    sampled = functional.grid_sample(
        planes, grid.expand(2, -1, -1)[:, None], align_corners=False, padding_mode="border"
    )
    expected = sampled[frame[0], :, 0, torch.arange(40)]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_correlation_equals_its_slow_twin() -> None:
    torch.manual_seed(0)
    level, patch = torch.randn(1, 3, 7, 8, 5), torch.randn(1, 4, 9, 5)
    position = torch.rand(1, 4, 3, 2) * 9 - 1
    found = correlate(level, patch, position, 2)
    reach = np.arange(-2, 3)
    for track in range(4):
        for frame in range(3):
            x, y = position[0, track, frame].double()
            points = torch.tensor([[x + dx, y + dy] for dy in reach for dx in reach]).float()
            grid = (points + 0.5) * 2 / torch.tensor([8.0, 7.0]) - 1
            sampled = functional.grid_sample(
                level[:, frame].movedim(-1, 1),
                grid[None, None],
                align_corners=False,
                padding_mode="border",
            )[0, :, 0]
            expected = (patch[0, track] @ sampled).flatten()
            torch.testing.assert_close(found[0, track, frame], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_untrained_tracks_stand_still(name: str) -> None:
    queries = some_queries()
    last = DynPT(DynPTConfig.named(name))(video(), queries)[-1]
    assert (last.uv - queries[:, None, :, 1:]).abs().max() < 0.01
    assert last.logits.abs().max() == 0


def test_a_track_is_where_its_query_says_and_coordinates_are_float32() -> None:
    queries = some_queries()
    with torch.autocast("cpu", torch.bfloat16):
        last = network()(video(), queries)[-1]
    at_query = last.uv[0, queries[0, :, 0].long(), torch.arange(queries.shape[1])]
    assert torch.equal(at_query, queries[0, :, 1:])
    assert (last.uv - queries[:, None, :, 1:]).abs().max() > 1  # this network does move them
    assert last.uv.dtype == last.mobility_logit.dtype == torch.float32


def test_clip_mobility_is_the_mean_weighted_by_visibility() -> None:
    state = TrackState.standing(torch.zeros(1, 1, 2), 2)
    state = dataclasses.replace(
        state,
        visibility_logit=torch.tensor([[[30.0], [-30.0]]]),
        mobility_logit=torch.tensor([[[2.0], [-7.0]]]),
    )
    assert float(state.clip_mobility()) == pytest.approx(2.0, abs=1e-5)


def test_each_iteration_learns_from_its_own_outcome_alone() -> None:
    net, queries = network().train(), some_queries()
    maps = net.encode(video())
    start = TrackState.standing(queries[..., 1:], 5)
    start = dataclasses.replace(start, uv=start.uv.clone().requires_grad_())
    states = net.refine(maps, net.support(maps, queries), queries, initial=start, iterations=2)
    states[-1].uv.sum().backward()
    assert start.uv.grad is None


# ---------------------------------------------------------------- masks
def test_masked_tracks_change_no_other() -> None:
    net, queries, rgb = network(), some_queries(), video()
    alone = net(rgb, queries)[-1]
    nonsense = torch.full((1, 7, 3), torch.nan)
    nonsense[:, 3:] = torch.tensor([2.0, 5.0, 7.0])
    valid = torch.arange(17)[None] < 10
    padded = net(rgb, torch.cat([queries, nonsense], dim=1), valid=valid)[-1]
    assert_equal_states(rows(padded, slice(0, 10)), alone)
    assert bool(padded.logits.isfinite().all())


def test_the_order_of_tracks_does_not_matter() -> None:
    net, queries, rgb = network(), some_queries(), video()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert_equal_states(net(rgb, queries[:, order])[-1], rows(net(rgb, queries)[-1], order))


def test_tracks_of_later_frames_and_clips_without_tracks_are_masked() -> None:
    net, queries, rgb = network(), some_queries(), video()
    maps = net.encode(rgb)
    later = torch.cat([queries, torch.tensor([[[9.0, 5.0, 5.0]]])], dim=1)
    states = net.refine(maps, net.support(maps, later), later)
    assert_equal_states(rows(states[-1], slice(0, 10)), net(rgb, queries)[-1])
    none = net(rgb, queries, valid=torch.zeros(1, 10, dtype=torch.bool))[-1]
    assert torch.equal(none.uv, torch.zeros_like(none.uv))
    assert bool(none.logits.isfinite().all())


def test_unmasked_tracks_see_each_other() -> None:
    net, queries, rgb = network(), some_queries(), video()
    found = net(rgb, queries)[-1]
    fewer = net(rgb, queries[:, :5])[-1]
    assert (rows(found, slice(0, 5)).uv - fewer.uv).abs().max() > 1e-3


def test_frames_can_be_encoded_one_by_one() -> None:
    net, queries, rgb = network(), some_queries(), video()
    early, late = net.encode(rgb[:, :3]), net.encode(rgb[:, 3:])
    maps = FeatureMaps.joined([early, late])
    found = net.refine(maps, net.support(maps, queries), queries)[-1]
    assert_equal_states(found, net(rgb, queries)[-1])
    assert maps.frames(slice(1, 3)).num_frames == 2


# ---------------------------------------------------------------- the common motion
def rotation_scene(num_static: int, num_moving: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 5, N, 2) tracks px under a homography that grows with time, the last ones shifted."""
    generator = torch.Generator().manual_seed(1)
    uv = torch.rand(num_static + num_moving, 2, generator=generator) * 100
    frames = []
    for frame in range(-2, 3):
        H = torch.eye(3) + frame * torch.tensor(
            [[0.01, 0.02, 1.5], [-0.02, 0.005, 0.7], [1e-4, -5e-5, 0.0]]
        )
        ones = torch.ones(len(uv), 1)
        moved = torch.cat([uv, ones], dim=1) @ H.T
        frames.append(moved[:, :2] / moved[:, 2:])
        frames[-1][num_static:] += frame * torch.tensor([3.0, -2.0])
    return torch.stack(frames)[None], torch.ones(1, 5, num_static + num_moving)


def test_residuals_are_what_a_homography_leaves() -> None:
    uv, weight = rotation_scene(60, 25)
    residual = motion.shared_motion(uv, weight, (100, 100)).residual[0]
    left = torch.sinh(residual[..., :2])
    assert left[:60].norm(dim=-1).max() < 0.3
    torch.testing.assert_close(
        left[60:, 4], torch.tensor([6.0, -4.0]).expand(25, 2), rtol=0, atol=0.5
    )
    # Across and along are the same residual in other axes.
    turned = torch.sinh(residual[..., 2:4]).norm(dim=-1)
    torch.testing.assert_close(turned, left.norm(dim=-1), rtol=1e-3, atol=1e-3)


def test_parallax_lies_along_the_epipolar_lines_and_motion_does_not() -> None:
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(80, 3, generator=generator) * torch.tensor([4.0, 4.0, 3.0])
    points += torch.tensor([-2.0, -2.0, 3.0])
    frames = []
    for frame in range(-2, 3):
        camera = points + frame * torch.tensor([0.05, 0.02, -0.06])
        camera[70:] += frame * torch.tensor([-0.03, 0.12, 0.0])
        frames.append(100 * camera[:, :2] / camera[:, 2:] + 64)
    uv = torch.stack(frames)[None]
    residual = motion.shared_motion(uv, torch.ones(1, 5, 80), (128, 128)).residual[0]
    across = torch.sinh(residual[:, -1, 2]).abs()
    assert across[:70].median() < 0.3 and across[:70].max() < 1.2
    assert across[70:].median() > 2


def test_the_summary_holds_the_median_of_each_region() -> None:
    place = torch.tensor([[15.0, 15.0], [16, 16], [17, 15], [85, 85]])
    shift = torch.tensor([[1.0, 0.0], [2, 0], [30, 0], [-4, 3]])
    uv = torch.stack([place - shift, place, place + shift])[None]
    weight = torch.tensor([1.0, 1, 1, 1]).expand(1, 3, 4)
    summary = torch.sinh(motion.shared_motion(uv, weight, (90, 90)).summary)
    regions = summary[0, 2].unflatten(0, (-1, 2))
    assert regions[0].tolist() == pytest.approx([1, 0], abs=1e-4)  # the lower median of all four
    assert regions[1].tolist() == pytest.approx([2, 0], abs=1e-4)
    assert regions[9].tolist() == pytest.approx([-4, 3], abs=1e-4)
    assert regions[5].tolist() == pytest.approx([1, 0], abs=1e-4)  # nobody there


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_few_tracks_give_sane_residuals(number: int) -> None:
    uv = torch.rand(1, 4, number, 2, generator=torch.Generator().manual_seed(0)) * 60
    found = motion.shared_motion(uv, torch.ones(1, 4, number), (64, 64))
    assert bool(found.residual.isfinite().all()) and bool(found.summary.isfinite().all())


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (5, 130), (130, 5)])
def test_a_block_in_portions_is_the_block(queries: int, keys: int) -> None:
    """Where no gradient is asked for it goes in portions, with attention written out."""
    torch.manual_seed(1)
    block = AttentionBlock(24, 3, 2)
    x, seen = torch.randn(600, queries, 24), torch.randn(600, keys, 24)
    mask = torch.where(torch.rand(600, 1, 1, keys) < 0.3, -1e9, 0.0)
    numbers = max(queries, keys) * block.mlp_in.out_features
    for given in (None, mask):
        whole = block(x, seen, given)
        with torch.no_grad():
            assert portion(x, 600, numbers) < 600
            torch.testing.assert_close(block(x, seen, given), whole.detach())


# ---------------------------------------------------------------- sizes and files
def test_sizes_are_those_of_the_specification() -> None:
    millions = {
        name: sum(p.numel() for p in DynPT(DynPTConfig.named(name)).parameters()) / 1e6
        for name in ("full", "small", "lean", "tiny")
    }
    assert millions["full"] == pytest.approx(25.6, abs=0.5)
    assert 5.5 < millions["small"] < 7.5
    assert millions["lean"] < 1.5 and millions["tiny"] < 1.5


@pytest.mark.parametrize("encoders", ["both", "cnn", "context"])
@pytest.mark.parametrize("context", ["tokens", "convolutions"])
def test_every_ablation_works(encoders: str, context: str) -> None:
    config = dataclasses.replace(NARROW, encoders=encoders, context=context, token_width=12)
    tokens = torch.randn(1, 5, 6, 12) if config.needs_tokens else None
    net = network(dataclasses.replace(config, has_motion_residual=encoders == "both"))
    net(video(), some_queries(), tokens=tokens)[-1].uv.sum().backward()
    silent = [name for name, held in net.named_parameters() if held.grad is None]
    assert not [name for name in silent if "to_logits" not in name]


def test_a_checkpoint_comes_back(tmp_path) -> None:
    net = network()
    checkpoint.save(tmp_path / "a.safetensors", net, {"seed": "7"})
    back = checkpoint.load(tmp_path / "a.safetensors", "cpu")
    assert back.config == net.config and not back.training
    assert checkpoint.read_facts(tmp_path / "a.safetensors")["seed"] == "7"
    assert_equal_states(back(video(), some_queries())[-1], net(video(), some_queries())[-1], 0)
    checkpoint.save(tmp_path / "half.safetensors", net, {}, torch.float16)
    half = checkpoint.load(tmp_path / "half.safetensors", "cpu")
    assert half.updater.embed.weight.dtype == torch.float32


def test_bad_checkpoints_say_what_is_wrong(tmp_path) -> None:
    net, path = network(), tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="does not exist"):
        checkpoint.load(path, "cpu")
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no readable safetensors"):
        checkpoint.load(path, "cpu")
    checkpoint.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="does not say the sizes"):
        checkpoint.load(path, "cpu")
    checkpoint.save_file({"a": torch.zeros(1)}, path, {"config": net.config.to_json()})
    with pytest.raises(ModelError, match="do not fit the sizes"):
        checkpoint.load(path, "cpu")
    with pytest.raises(OutputError, match="expected a name"):
        checkpoint.save(tmp_path / "a.pth", net, {})
    with torch.no_grad():
        net.updater.embed.bias[0] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        checkpoint.save(path, net, {})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([5.0, 3, 3], "outside the clip"),
        ([-1.0, 3, 3], "outside the clip"),
        ([0.5, 3, 3], "outside the clip"),
        ([0.0, 48, 3], "outside the clip"),
        ([0.0, 3, torch.nan], "outside the clip"),
    ],
)
def test_queries_must_lie_in_the_clip(query: list[float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        network()(video(), torch.tensor([[query]]))


def test_other_bad_input_is_refused() -> None:
    net, queries = network(), some_queries()
    with pytest.raises(ModelError, match="multiples of 16"):
        net(video(size=(40, 48)), queries)
    with pytest.raises(ModelError, match="at least one query"):
        net(video(), queries[:, :0])
    with pytest.raises(ModelError, match="takes no tokens"):
        net(video(), queries, tokens=torch.zeros(1, 5, 6, 12))
    with pytest.raises(ModelError, match="expected bool"):
        net(video(), queries, valid=torch.ones(1, 10))
    with pytest.raises(ModelError, match="no size 'huge'"):
        DynPTConfig.named("huge")
    with pytest.raises(ModelError, match="heads is 5"):
        dataclasses.replace(TINY, heads=5)


# ---------------------------------------------------------------- learning
@pytest.mark.slow
def test_it_learns_two_clips_by_heart() -> None:
    torch.manual_seed(0)
    clips = [torch.stack(part) for part in zip(*[clip(s, 6, 64, 32) for s in (0, 1)], strict=True)]
    rgb, queries, tracks, seen, moving = clips
    net = DynPT(
        dataclasses.replace(
            TINY, encoders="cnn", layers=1, trunk_widths=(8, 12, 16, 16), correlation_hidden=48
        )
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for _ in range(50):
        states = net(rgb, queries, iterations=2)
        loss = sum(
            0.5 * functional.huber_loss(state.uv, tracks, delta=4.0) + mobility_loss(state, moving)
            for state in states
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    error = (states[-1].uv - tracks).norm(dim=-1)[seen].mean()
    standing = (queries[:, None, :, 1:] - tracks).norm(dim=-1)[seen].mean()
    assert standing > 2 and error < 1
    assert mobility_loss(states[-1], moving) < 0.1


def mobility_loss(state: TrackState, moving: torch.Tensor) -> torch.Tensor:
    logits = state.mobility_logit
    truth = moving[:, None].expand_as(logits).float()
    return functional.binary_cross_entropy_with_logits(logits, truth)

"""A stand-in for a network, which says what it was given."""

from dataclasses import replace

import torch
from test_evaluation_trackers import grid, sliding, truth

from recon4d_ros.evaluation.network_tracker import NetworkTracker, with_baselines
from recon4d_ros.networks.dynpt import DynPTConfig, TrackState


class Answer:
    def __init__(self, uv: torch.Tensor, logit: torch.Tensor) -> None:
        self.uv, self.visibility_logit, self.confidence_logit = uv, logit, logit + 1

    def clip_mobility(self) -> torch.Tensor:
        return self.visibility_logit[:, 0]


class Knowing:
    """Says the truth; the more to the right, the surer."""

    def __init__(self, start: str = "standing") -> None:
        self.config = replace(DynPTConfig.named("tiny"), start=start)

    def __call__(
        self, rgb: torch.Tensor, queries: torch.Tensor, *, initial: TrackState | None
    ) -> list[Answer]:
        self.rgb, self.queries, self.initial = rgb, queries, initial
        uv = truth(queries[0]).float()[None]
        first = Answer(uv + 100, uv[..., 0])
        return [first, Answer(uv, (uv[..., 0] - 60) / 10)]


def test_a_network_gets_what_it_needs_and_its_last_answer_counts():
    rgb = sliding()[:, :90, :70]
    network = Knowing()
    queries = torch.cat([grid((0, 3)), torch.tensor([[0.0, -0.4, 89.4]])])
    tracks = NetworkTracker(network, torch.device("cpu"))(rgb, queries)
    assert network.rgb.shape == (1, 8, 3, 96, 80)
    assert network.initial is None
    assert network.rgb.min() >= -1 and network.rgb.max() <= 1
    torch.testing.assert_close(
        (network.rgb[0, :, :, :90, :70].movedim(1, -1) + 1) * 127.5, rgb.float()
    )
    assert torch.equal(network.queries[0, :-1], queries[:-1])
    assert network.queries[0, -1].tolist() == [0, 0, 89]
    torch.testing.assert_close(tracks.uv[:, :-1], truth(queries)[:, :-1])
    x = tracks.uv[..., 0]
    probability = torch.sigmoid((x - 60) / 10) * torch.sigmoid((x - 50) / 10)
    assert (
        torch.equal(tracks.seen, probability > 0.6) and 0 < tracks.seen.sum() < tracks.seen.numel()
    )
    torch.testing.assert_close(tracks.mobility, torch.sigmoid((x[0] - 60) / 10), rtol=1e-5, atol=0)


def test_a_network_that_starts_from_flow_gets_it():
    network, queries = Knowing("flow"), grid((0, 3))
    NetworkTracker(network, torch.device("cpu"))(sliding(), queries)
    assert network.initial is not None
    off = (network.initial.uv[0] - truth(queries)).norm(dim=-1)
    assert off[network.initial.visibility_logit[0] > 0].median() < 0.3


def test_a_network_stands_beside_the_baselines():
    methods = with_baselines("dynpt", NetworkTracker(Knowing(), torch.device("cpu")))
    assert list(methods(sliding(), grid((0,))))[-2:] == ["epipolar residual", "dynpt"]

"""Figures of tracks and mobility: worked by hand, against slow twins, against scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from recon4d_ros.errors import EvaluationError
from recon4d_ros.evaluation.tracking import (
    THRESHOLDS_PX,
    auroc,
    counted,
    distances,
    mobility_report,
    position_figures,
    position_report,
)

SIZE = (256, 256)
seeds = st.integers(0, 2**32 - 1)


def figures(apart, seen, truly_seen):
    """Of one point over frames that all count."""
    column = (torch.tensor(values)[:, None] for values in (apart, seen, truly_seen))
    apart, seen, truly_seen = column
    return position_figures(apart, seen, truly_seen, torch.ones_like(seen))


def test_positions_by_hand():
    # Four frames. 1: 3 px off and seen by both. 2: exact, but the tracker calls it hidden.
    # 3: hidden, yet called seen. 4: hidden and called hidden.
    jaccard, within, occlusion = figures(
        [3.0, 0.0, 0.0, 50.0], [True, False, True, False], [True, True, False, False]
    )
    # Under 1 and 2 px: no hit; at 4, 8, 16 one hit. Visible truth 2, false positives 2 or 1.
    assert jaccard == pytest.approx((0 / 4 + 0 / 4 + 1 / 3 + 1 / 3 + 1 / 3) / 5)
    assert within == pytest.approx((1 / 2 + 1 / 2 + 1 + 1 + 1) / 5)
    assert occlusion == 0.5


def test_a_position_on_the_threshold_is_not_within():
    _, within, _ = figures([1.0], [True], [True])
    assert within == pytest.approx(4 / 5)


def test_only_frames_after_the_query_with_a_truth_count():
    queries = torch.tensor([[0.0, 1, 1], [2.0, 1, 1], [3.0, 1, 1]])
    uv = torch.zeros(4, 3, 2)
    uv[1, 0, 1] = torch.nan
    expected = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert torch.equal(counted(queries, uv), expected)


def test_distances_are_of_the_raster_and_nowhere_is_infinitely_far():
    true = torch.zeros(3, 2)
    uv = torch.tensor([[3.0, 0.0], [0.0, 3.0], [torch.nan, 0.0]])
    found = distances(uv, true, (128, 512))
    torch.testing.assert_close(found, torch.tensor([1.5, 6.0, torch.inf]))


def slow_figures(apart, seen, true, counts):
    jaccard, within = [], []
    for limit in THRESHOLDS_PX:
        hits = false = visible = near = 0
        for index in np.ndindex(apart.shape):
            if counts[index]:
                is_near = apart[index] < limit
                visible += true[index]
                near += true[index] and is_near
                hits += true[index] and seen[index] and is_near
                false += seen[index] and not (true[index] and is_near)
        jaccard.append(hits / (visible + false) if visible + false else math.nan)
        within.append(near / visible if visible else math.nan)
    told = [seen[i] == true[i] for i in np.ndindex(apart.shape) if counts[i]]
    return np.mean(jaccard), np.mean(within), np.mean(told) if told else math.nan


@settings(max_examples=40, deadline=None)
@given(seed=seeds, share=st.floats(0, 1))
def test_positions_equal_a_count_point_by_point(seed, share):
    rng = np.random.default_rng(seed)
    apart = rng.exponential(4.0, (4, 5))
    seen, true, counts = rng.random((3, 4, 5)) < share
    arguments = (torch.from_numpy(part) for part in (apart, seen, true, counts))
    with np.errstate(invalid="ignore"):
        expected = slow_figures(apart, seen, true, counts)
    assert position_figures(*arguments) == pytest.approx(expected, nan_ok=True)


def test_a_clip_without_visible_truth_still_has_its_occlusion_counted():
    found = figures([0.0, 0.0], [False, False], [False, False])
    assert math.isnan(found[0]) and math.isnan(found[1]) and found[2] == 1.0
    report = position_report([found, (0.5, 0.25, 0.0), (math.nan, math.nan, math.nan)])
    assert (report.average_jaccard, report.share_within) == (0.5, 0.25)
    assert (report.occlusion_accuracy, report.num_clips) == (0.5, 2)
    with pytest.raises(EvaluationError, match="none of 1 clips"):
        position_report([(math.nan, math.nan, math.nan)])


def test_mobility_by_hand():
    score = np.array([0.9, 0.6, 0.2, 0.7, 0.5, 0.1, 0.1, 0.1, 0.3, 0.2])
    moves = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    report = mobility_report(score, moves)
    assert report.accuracy == 0.9  # the third is missed; 0.5 says nothing, so static
    assert report.recall == 0.75
    assert report.balanced_accuracy == pytest.approx((0.75 + 1) / 2)
    # 24 pairs; the third point loses against 0.5 and 0.3 and ties with 0.2.
    assert report.auroc == pytest.approx((24 - 2.5) / 24)
    assert report.majority_rate == 0.6
    assert (report.num_moving, report.num_static) == (4, 6)


def test_one_kind_alone_leaves_figures_undefined():
    report = mobility_report(np.array([0.2, 0.9]), np.zeros(2, bool))
    assert report.accuracy == 0.5 and report.majority_rate == 1.0
    assert all(math.isnan(x) for x in (report.recall, report.balanced_accuracy, report.auroc))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, levels=st.integers(1, 30))
def test_auroc_is_the_rank_statistic_of_scipy_and_the_share_of_pairs(seed, levels):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, 40) / levels  # few levels make many ties
    positive = rng.random(40) < 0.4
    positive[:2] = True, False
    above, below = score[positive], score[~positive]
    statistic = mannwhitneyu(above, below).statistic / (len(above) * len(below))
    pairs = above[:, None] - below[None]
    assert auroc(score, positive) == pytest.approx(statistic)
    assert auroc(score, positive) == pytest.approx(0.5 * (1 + np.sign(pairs).mean()))


@pytest.mark.parametrize(
    "score", [np.zeros(0), np.array([0.1, np.nan, 0.2]), np.array([0.1, 0.2])], ids=str
)
def test_scores_that_fit_no_labels_are_an_error(score):
    with pytest.raises(EvaluationError, match="expected one number"):
        mobility_report(score, np.zeros(3 if score.size else 0, bool))

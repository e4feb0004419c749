"""Each figure against one worked out by hand or found in another way."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.statistics import (
    Bootstrap,
    accuracy_interval,
    calibration_error,
    gain,
    length_correlation,
    mean_interval,
    outcomes_of,
    prefer_longer,
    reliability,
    resampled_means,
    share_interval,
    sign_test,
    win_rate,
)
from tasks.training.estimators import kl_per_sequence

FEW = Bootstrap(resamples=300)

outcomes = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40).map(np.array)
scored = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 9)), min_size=1, max_size=40)


def test_win_rate_by_hand():
    points = outcomes_of(np.array([2.0, 1.0, 0.0, 0.5, 3.0]), np.array([1.0, 1.0, 1.0, 0.0, 2.0]))
    assert points.tolist() == [1, 0.5, 0, 1, 1]
    found = win_rate(points, range(5), FEW)
    assert (found.rate, found.wins, found.losses, found.ties) == (0.7, 3, 1, 1)


def test_sign_test_by_hand():
    # 8 or more of 10 tosses: (45 + 10 + 1) / 1024, and as much on the other side
    assert sign_test(8, 2) == pytest.approx(112 / 1024)
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0


@given(scored)
def test_win_rates_of_both_sides_add_up_to_one(rows):
    first, second, prompts = (list(column) for column in zip(*rows, strict=True))
    there = win_rate(outcomes_of(np.array(first), np.array(second)), prompts, FEW)
    back = win_rate(outcomes_of(np.array(second), np.array(first)), prompts, FEW)
    assert there.rate + back.rate == pytest.approx(1)
    assert (there.wins, there.losses, there.ties) == (back.losses, back.wins, back.ties)
    assert there.sign_test == back.sign_test


@given(outcomes, st.sampled_from([0.6, 0.9, 0.95, 0.99]))
def test_interval_contains_the_rate(points, confidence):
    share, low, high = share_interval(points, range(len(points)), Bootstrap(resamples=200, confidence=confidence))
    assert 0 <= low <= share <= high <= 1


@given(scored, st.randoms(use_true_random=False))
def test_order_of_prompts_has_no_effect(rows, random):
    mixed = random.sample(rows, len(rows))
    there, back = (
        win_rate(outcomes_of(np.array(a), np.array(b)), g, FEW) for a, b, g in (zip(*rows, strict=True), zip(*mixed, strict=True))
    )
    assert there.rate == pytest.approx(back.rate)
    assert (there.low, there.high) == (pytest.approx(back.low), pytest.approx(back.high))
    assert there.sign_test == back.sign_test


def test_resampled_means_against_every_possible_sample():
    # Three values have 27 samples, equally likely; their means have these shares.
    values = np.array([0.0, 0.5, 1.0])
    exact = np.array([np.mean(sample) for sample in itertools.product(values, repeat=3)])
    drawn = resampled_means(values, range(3), Bootstrap(resamples=40_000))
    for mean in np.unique(exact.round(9)):
        share = np.isclose(exact, mean).mean()
        assert np.isclose(drawn, mean).mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40_000))


def test_resampled_means_of_clusters_against_every_possible_sample():
    # Clusters {1, 1, 0} and {0}: the four samples have means 2/3, 1/2, 1/2 and 0.
    drawn = resampled_means(np.array([1.0, 0.0, 1.0, 0.0]), ["a", "b", "a", "a"], Bootstrap(resamples=20_000))
    for mean, share in ((2 / 3, 0.25), (0.5, 0.5), (0.0, 0.25)):
        assert np.isclose(drawn, mean).mean() == pytest.approx(share, abs=0.015)


def test_memory_is_bounded_without_an_effect(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = resampled_means(values, range(50), FEW)
    monkeypatch.setattr("tasks.evaluation.statistics._CELLS", 700)
    assert np.array_equal(resampled_means(values, range(50), FEW), whole)


def test_interval_against_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=200)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    _, low, high = mean_interval(values, range(200), Bootstrap(resamples=20_000))
    assert (low, high) == (
        pytest.approx(theirs.confidence_interval.low, abs=0.01),
        pytest.approx(theirs.confidence_interval.high, abs=0.01),
    )


def test_interval_against_the_normal_one():
    points = np.array([1.0] * 700 + [0.0] * 300)
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 1000)
    _, low, high = share_interval(points, range(1000), Bootstrap(resamples=20_000))
    assert (low, high) == (pytest.approx(0.7 - half, abs=0.003), pytest.approx(0.7 + half, abs=0.003))


def test_answers_to_one_prompt_are_not_more_evidence():
    points = np.random.default_rng(3).integers(0, 2, 60).astype(float)
    once = share_interval(points, range(60), FEW)
    together = share_interval(np.repeat(points, 5), np.repeat(np.arange(60), 5).tolist(), FEW)
    apart = share_interval(np.repeat(points, 5), range(300), FEW)
    assert together == pytest.approx(once)
    assert apart[2] - apart[1] < 0.6 * (once[2] - once[1])


def test_eight_wins_of_eight_are_not_certainty():
    # Clopper-Pearson's lower end for 8 of 8 at 95 %: 0.025^(1/8)
    exact = scipy.stats.binomtest(8, 8).proportion_ci(0.95, "exact")
    assert share_interval(np.ones(8), range(8), FEW) == (1.0, pytest.approx(exact.low), 1.0)
    assert share_interval(np.zeros(8), range(8), FEW) == (0.0, 0.0, pytest.approx(1 - exact.low))


def test_nothing_but_ties_is_no_width():
    assert share_interval(np.full(8, 0.5), range(8), FEW) == (0.5, 0.5, 0.5)


def test_accuracy_by_hand():
    share, low, high = accuracy_interval(np.array([1.0, 2.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 2.0]), list("aabb"), FEW)
    assert share == 0.625  # right, right, draw, wrong
    assert low < share < high


def test_gain_by_hand():
    # before has standard deviation 2, the differences have mean 1
    found = gain(np.array([2.0, 4.0, 0.0, 6.0]), np.array([1.0, 5.0, 1.0, 5.0]), range(4), FEW)
    assert found[0] == pytest.approx(0.0)
    found = gain(np.array([2.0, 6.0, 2.0, 6.0]), np.array([1.0, 5.0, 1.0, 5.0]), range(4), FEW)
    assert found == pytest.approx((0.5, 0.5, 0.5))


def test_gain_is_paired():
    rng = np.random.default_rng(4)
    before = rng.normal(0, 10, 200)
    found = gain(before + 1 + 0.1 * rng.normal(size=200), before, range(200), FEW)
    assert found[2] - found[1] < 0.01  # prompts differ a hundred times more than the gain


def test_gain_over_scores_that_do_not_vary():
    assert gain(np.array([3.0, 3.0]), np.array([1.0, 1.0]), range(2), FEW)[0] == 2.0


def test_calibration_by_hand():
    three, nine = math.log(3), math.log(9)
    right = reliability(np.array([three, three, three, -three]))
    assert [(b.stated, b.agreed, b.pairs) for b in right] == [(pytest.approx(0.75), 0.75, 4)]
    assert calibration_error(right) == pytest.approx(0)
    both = reliability(np.array([three, three, three, -three, nine, -nine]))
    assert [(b.stated, b.agreed, b.pairs) for b in both][1] == (pytest.approx(0.9), 0.5, 2)
    assert calibration_error(both) == pytest.approx(2 / 6 * 0.4)


def test_calibration_of_true_margins():
    rng = np.random.default_rng(5)
    margins = rng.normal(0, 2, 40_000)
    chosen = rng.random(40_000) < 1 / (1 + np.exp(-margins))
    seen = np.where(chosen, margins, -margins)
    assert calibration_error(reliability(seen)) < 0.01
    assert calibration_error(reliability(3 * seen)) > 0.05


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60).map(np.array))
def test_bins_hold_every_pair_once(margins):
    bins = reliability(margins)
    assert sum(b.pairs for b in bins) == len(margins)
    assert 0 <= calibration_error(bins) <= 1


def test_length_correlation_is_within_prompts():
    scores, lengths = np.array([0.0, 1.0, 2.0, 5.0]), np.array([3.0, 4.0, 6.0, 4.0])
    assert length_correlation(scores, lengths, ["one"] * 4) == pytest.approx(np.corrcoef(scores, lengths)[0, 1])
    # Prompt b asks for longer answers and gets higher scores; within both prompts the shorter one is liked.
    assert length_correlation(np.array([2.0, 1.0, 9.0, 8.0]), np.array([1.0, 2.0, 51.0, 52.0]), list("aabb")) == pytest.approx(-1)
    assert length_correlation(np.ones(3), np.array([1.0, 2.0, 3.0]), list("aaa")) == 0.0


def test_prefer_longer_by_hand():
    assert prefer_longer(np.array([5, 3, 4, 9]), np.array([4, 4, 4, 1])) == 0.625


def test_kl_by_hand():
    # (-1 - 2) - (-1.5 - 2.5) = 1 and -0.5 - -0.25 = -0.25: their mean
    assert kl_per_sequence([[-1.0, -2.0], [-0.5]], [[-1.5, -2.5], [-0.25]]) == pytest.approx(0.375)


def test_kl_estimate_against_the_exact_one():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    exact = float(np.sum(p * np.log(p / q)))
    tokens = np.random.default_rng(6).choice(3, size=(20_000, 2), p=p)  # sequences of two tokens
    found = kl_per_sequence(np.log(p)[tokens].tolist(), np.log(q)[tokens].tolist())
    assert found == pytest.approx(2 * exact, abs=0.02)

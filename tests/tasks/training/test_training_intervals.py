"""Bootstrap intervals against exact ones, and against those of others."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.intervals import Bootstrap, mean_interval, resampled_means, share_interval

FEW = Bootstrap(resamples=300)

outcomes = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40).map(np.array)


@given(outcomes, st.sampled_from([0.6, 0.9, 0.95, 0.99]))
def test_interval_contains_the_rate(points, confidence):
    share, low, high = share_interval(points, range(len(points)), Bootstrap(resamples=200, confidence=confidence))
    assert 0 <= low <= share <= high <= 1


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
    monkeypatch.setattr("tasks.training.intervals._CELLS", 700)
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

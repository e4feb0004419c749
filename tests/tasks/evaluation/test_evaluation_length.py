"""The length-controlled win rate, against a second fit and against worlds whose answer is known."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tasks.evaluation.length import RIDGE, length_controlled
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=300)


def world(intercept, slope, prompts=4000, drift=0.0, seed=0):
    """Outcomes of a judge who likes length by that slope; drift: by how many deviations the policy writes longer."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(drift, 1, prompts) * 20
    squeezed = np.tanh(differences / np.std(differences))
    wins = rng.random(prompts) < 1 / (1 + np.exp(-(intercept + slope * squeezed)))
    return wins.astype(float), differences


def test_equals_the_fit_of_a_general_optimiser():
    outcomes, differences = world(0.4, 1.5, prompts=300)
    outcomes[:30] = 0.5
    squeezed = np.tanh(differences / np.std(differences))

    def loss(b):
        logit = b[0] + b[1] * squeezed
        return np.sum(np.logaddexp(0, logit) - outcomes * logit) + RIDGE / 2 * (b @ b)

    expected = 1 / (1 + np.exp(-minimize(loss, np.zeros(2), tol=1e-12).x[0]))
    assert length_controlled(outcomes, differences, range(300), BOOTSTRAP)[0] == pytest.approx(expected, abs=1e-6)


def test_a_policy_that_only_writes_longer_has_won_nothing():
    outcomes, differences = world(0.0, 2.0, drift=1.0)
    rate, low, high = length_controlled(outcomes, differences, range(4000), BOOTSTRAP)
    assert outcomes.mean() > 0.7
    assert low < 0.5 < high
    assert rate == pytest.approx(0.5, abs=0.03)


def test_equal_lengths_leave_the_plain_rate():
    outcomes = np.array([1.0] * 300 + [0.0] * 100)
    rate, low, high = length_controlled(outcomes, np.zeros(400), range(400), BOOTSTRAP)
    assert rate == pytest.approx(0.75, abs=0.002)  # the prior pulls a little
    assert low == pytest.approx(0.75 - 1.96 * (0.75 * 0.25 / 400) ** 0.5, abs=0.012)
    assert high > rate


def test_a_clean_sweep_is_finite_and_short_of_certain():
    rate, low, high = length_controlled(np.ones(50), np.arange(50.0), range(50), BOOTSTRAP)
    assert 0.9 < low <= rate <= high < 1


def test_clusters_widen_the_interval():
    outcomes, differences = world(0.3, 0.0, prompts=400)
    repeated = np.repeat(outcomes, 5), np.repeat(differences, 5)
    apart = length_controlled(*repeated, range(2000), BOOTSTRAP)
    together = length_controlled(*repeated, np.repeat(np.arange(400), 5).tolist(), BOOTSTRAP)
    assert together[2] - together[1] > 1.8 * (apart[2] - apart[1])

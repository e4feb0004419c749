"""What margins are worth: each figure against one worked out by hand or found in another way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.calibration import (
    TEMPERATURES,
    accuracy_interval,
    best_temperature,
    calibration_error,
    length_correlation,
    nll,
    prefer_longer,
    reliability,
)
from tasks.training.intervals import Bootstrap

FEW = Bootstrap(resamples=300)


def test_accuracy_by_hand():
    share, low, high = accuracy_interval(np.array([1.0, 2.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 2.0]), list("aabb"), FEW)
    assert share == 0.625  # right, right, draw, wrong
    assert low < share < high


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


def test_nll_by_hand():
    # -log sigmoid(2) = 0.126928, -log sigmoid(-1) = 1.313262; at temperature 2: of 1 = 0.313262, of -0.5 = 0.974077
    margins = np.array([2.0, -1.0])
    assert nll(margins) == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-6)
    assert nll(margins, 2.0) == pytest.approx((0.313262 + 0.974077) / 2, abs=1e-6)


def test_temperature_by_hand():
    # Three of four agree with a margin of 2: sigmoid(2 / T) must be 3/4, so T = 2 / ln 3
    assert best_temperature(np.array([2.0, 2.0, 2.0, -2.0])) == pytest.approx(2 / math.log(3), abs=1e-4)


def test_the_temperature_of_scores_that_are_three_times_too_sure_is_3():
    rng = np.random.default_rng(7)
    margins = rng.normal(0, 2, 40_000)
    seen = 3 * np.where(rng.random(40_000) < 1 / (1 + np.exp(-margins)), margins, -margins)
    temperature = best_temperature(seen)
    assert temperature == pytest.approx(3, rel=0.05)
    assert calibration_error(reliability(seen / temperature)) < 0.01 < calibration_error(reliability(seen))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40).map(np.array))
def test_no_temperature_on_a_fine_grid_is_better(margins):
    best = nll(margins, best_temperature(margins))
    assert best <= min(nll(margins, temperature) for temperature in np.geomspace(*TEMPERATURES, 200)) + 1e-6


def test_temperatures_have_bounds():
    assert best_temperature(np.array([0.0, 0.0])) == 1.0
    assert best_temperature(np.array([1.0, 2.0])) == pytest.approx(TEMPERATURES[0], rel=0.5)  # always right
    assert best_temperature(np.array([-1.0, -2.0])) == pytest.approx(TEMPERATURES[1], rel=0.5)  # always wrong

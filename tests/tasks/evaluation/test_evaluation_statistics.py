"""Each figure against one worked out by hand or found in another way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.statistics import gain, sign_test, win_rate
from tasks.training.estimators import kl_per_sequence
from tasks.training.intervals import Bootstrap, outcomes_of

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


@given(scored, st.randoms(use_true_random=False))
def test_order_of_prompts_has_no_effect(rows, random):
    mixed = random.sample(rows, len(rows))
    there, back = (
        win_rate(outcomes_of(np.array(a), np.array(b)), g, FEW) for a, b, g in (zip(*rows, strict=True), zip(*mixed, strict=True))
    )
    assert there.rate == pytest.approx(back.rate)
    assert (there.low, there.high) == (pytest.approx(back.low), pytest.approx(back.high))
    assert there.sign_test == back.sign_test


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


def test_kl_by_hand():
    # (-1 - 2) - (-1.5 - 2.5) = 1 and -0.5 - -0.25 = -0.25: their mean
    assert kl_per_sequence([[-1.0, -2.0], [-0.5]], [[-1.5, -2.5], [-0.25]]) == pytest.approx(0.375)


def test_kl_estimate_against_the_exact_one():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    exact = float(np.sum(p * np.log(p / q)))
    tokens = np.random.default_rng(6).choice(3, size=(20_000, 2), p=p)  # sequences of two tokens
    found = kl_per_sequence(np.log(p)[tokens].tolist(), np.log(q)[tokens].tolist())
    assert found == pytest.approx(2 * exact, abs=0.02)

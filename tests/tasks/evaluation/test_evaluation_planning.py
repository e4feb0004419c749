"""Sample sizes, by hand and by simulation with the very interval that decides."""

import numpy as np
import pytest

from tasks.evaluation.planning import detectable_rate, prompts_needed
from tasks.evaluation.statistics import win_rate
from tasks.training.intervals import Bootstrap


def test_prompts_needed_by_hand():
    # (1.959964 + 0.841621)^2 * 0.6 * 0.4 / 0.1^2 = 188.4; with a fifth of ties 0.24 - 0.05 = 0.19 in place of 0.24
    assert prompts_needed(0.6) == 189
    assert prompts_needed(0.6, ties=0.2) == 150


def test_a_rate_that_is_not_above_the_bar_can_not_be_shown():
    with pytest.raises(ValueError, match="not above the bar"):
        prompts_needed(0.5)


@pytest.mark.parametrize("prompts", [30, 221, 1000])
def test_the_detectable_rate_needs_just_those_prompts(prompts):
    rate = detectable_rate(prompts)
    assert prompts_needed(rate) <= prompts < prompts_needed(rate - 0.005)


def test_too_few_prompts_show_nothing():
    assert detectable_rate(0) == 1.0


def promoted(rate, prompts, worlds):
    """Share of simulated challengers of that true win rate whose lower bound lies above one half."""
    rng = np.random.default_rng(1)
    bootstrap = Bootstrap(resamples=400)
    outcomes = (rng.random((worlds, prompts)) < rate).astype(float)
    return np.mean([win_rate(row, range(prompts), bootstrap).low > 0.5 for row in outcomes])


def test_equal_challengers_are_rarely_promoted_and_better_ones_mostly():
    prompts = prompts_needed(0.6)
    assert promoted(0.5, prompts, 1000) <= 0.05
    assert promoted(0.6, prompts, 1000) >= 0.77  # 0.8 planned, and three standard errors of a thousand worlds are 0.038

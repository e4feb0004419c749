"""Best-of-n beside the rounds: its units, and Gao et al.'s law on planted answers: the proxy rises, and gold turns down."""

from itertools import pairwise

import numpy as np
import pytest

from tasks.evaluation.overoptimisation import Scores
from tasks.evaluation.plots import frontier
from tasks.evaluation.selection import selections, up_to
from tasks.plotting import new_figure
from tasks.training.best_of_n import BestOfN, best_of_n_kl, expected_best
from tasks.training.intervals import Bootstrap, mean_interval

BOOTSTRAP = Bootstrap(resamples=400)


@pytest.mark.parametrize(("n", "ns"), [(0, []), (1, [1]), (2, [1, 2]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16])])
def test_sizes(n, ns):
    assert up_to(n) == ns


def planted(share, ns=(1, 4, 16, 64), prompts=150, answers=256, seed=0):
    """Answers whose reward is gold and noise, but for a share of hacks: rewarded above all others, worth 4 less than the mean."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(prompts, answers))
    hack = rng.random((prompts, answers)) < share
    own = np.where(hack, 6.0, gold) + 0.5 * rng.normal(size=gold.shape)
    gold = np.where(hack, -4.0, gold)
    judge = gold + 0.5 * rng.normal(size=gold.shape)

    def best(values, n):
        return [expected_best(row, value, n) for row, value in zip(own, values, strict=True)]

    curve = [BestOfN(n, best_of_n_kl(n), best(own, n), best(judge, n), best(gold, n)) for n in ns]
    return curve, Scores(own[:, 0], judge[:, 0], gold[:, 0])


def between(after, before):
    return mean_interval(np.array(after) - np.array(before), range(len(after)), BOOTSTRAP)


def test_the_proxy_rises_and_gold_turns_down_where_hacks_are_to_be_found():
    curve, start = planted(0.01)
    for smaller, larger in pairwise(curve):
        assert between(larger.own, smaller.own)[1] > 0
    one, few, _, many = curve
    for series in ("gold", "judge"):
        assert between(getattr(few, series), getattr(one, series))[1] > 0  # up at first,
        assert between(getattr(many, series), getattr(few, series))[2] < 0  # then below where it was
    found = selections(curve, start, BOOTSTRAP)
    assert found[-1].own_gain[1] > 0
    assert found[-1].judge_gain[2] < found[1].judge_gain[1]


def test_without_hacks_gold_rises_with_the_proxy():
    curve, _ = planted(0.0)
    for smaller, larger in pairwise(curve):
        assert between(larger.gold, smaller.gold)[1] > 0


def test_gains_by_hand():
    curve = [BestOfN(1, 0.0, [0.0, 2.0], [1.0, 1.0], None), BestOfN(2, 0.19, [2.0, 4.0], [1.0, 4.0], None)]
    start = Scores(np.array([0.0, 4.0]), np.array([0.0, 6.0]), None)  # standard deviations 2 and 3
    one, two = selections(curve, start, BOOTSTRAP)
    assert (one.own_gain, one.judge_gain, one.gold_gain) == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), None)
    assert two.own_gain == (1.0, 1.0, 1.0)
    assert two.judge_gain == (0.5, 0.0, 1.0)
    assert selections([], start, BOOTSTRAP) == []


def test_both_stand_on_one_picture(make_rounds, tmp_path):
    found = selections(*planted(0.01, ns=(1, 2, 4), prompts=20, answers=8), BOOTSTRAP)
    with new_figure(tmp_path / "frontier.png", 7, 4) as figure:
        axes = figure.add_subplot()
        frontier(axes, make_rounds(), BOOTSTRAP, found)
    dashed = [line for line in axes.get_lines() if line.get_marker() == "." and len(line.get_xdata())]
    assert len(dashed) == 3
    for line, gains in zip(dashed, ("own_gain", "judge_gain", "gold_gain"), strict=True):
        assert line.get_xdata() == pytest.approx(np.sqrt([one.kl for one in found]))
        assert line.get_ydata() == pytest.approx([getattr(one, gains)[0] for one in found])
    assert "best of n of the SFT model's answers" in axes.get_legend_handles_labels()[1]

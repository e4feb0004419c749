"""Falling from the best round: by hand, as a sentence, and how often a flat judge raises a false alarm."""

import numpy as np
import pytest

from tasks.evaluation import words
from tasks.evaluation.fall import fall_from_best, simultaneous
from tasks.evaluation.findings import findings
from tasks.evaluation.overoptimisation import Round, Rounds, Scores
from tasks.registry.gates import Facts, PromotionPolicy, check_gates
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=400)


def rounds_of(judge, own=None, gold=None, chosen=None, noise=0.5, prompts=80, seed=0):
    """Rounds whose means are those, in SFT's standard deviations; each round's scores go with SFT's and have noise of their own."""
    rng = np.random.default_rng(seed)

    def scores(means):
        start = rng.normal(size=prompts)
        start = (start - start.mean()) / start.std()
        return [start + mean + noise * rng.normal(size=prompts) * (place > 0) for place, mean in enumerate(means)]

    series = scores(judge), scores(own or range(len(judge))), scores(gold) if gold else [None] * len(judge)
    rounds = [Round(place, float(place), Scores(own, judge, gold)) for place, (judge, own, gold) in enumerate(zip(*series, strict=True))]
    return Rounds(len(judge) - 1 if chosen is None else chosen, rounds)


def test_changes_are_from_the_best_round_to_the_last_in_units_of_sft():
    seen = fall_from_best(rounds_of([0, 1, 2, 0.5], own=[0, 1, 2, 3], gold=[0, 1, 2, 0], noise=0.0), BOOTSTRAP)
    assert seen.best_round == 2
    assert seen.judge == pytest.approx((-1.5, -1.5, -1.5))
    assert seen.own == pytest.approx((1.0, 1.0, 1.0))
    assert seen.gold == pytest.approx((-2.0, -2.0, -2.0))
    assert seen.fell


@pytest.mark.parametrize(
    ("judge", "own", "fell"),
    [
        ([0, 1, 2, 1], [0, 1, 2, 3], True),
        ([0, 1, 2, 1], [0, 1, 2, 2], True),  # its own reward holds
        ([0, 1, 2, 1], [0, 1, 2, 1], False),  # both fell: training went wrong, but nothing was over-optimised
        ([0, 1, 2, 2.2], [0, 1, 2, 3], False),
        ([0, 0, 0, 0], [0, 1, 2, 3], False),
        ([0, -0.5, -1, -1.5], [0, 1, 2, 3], True),  # the best was SFT
    ],
)
def test_a_fall_is_the_judges_alone(judge, own, fell):
    assert fall_from_best(rounds_of(judge, own), BOOTSTRAP).fell is fell


def test_without_an_earlier_round_there_is_none():
    assert fall_from_best(rounds_of([0]), BOOTSTRAP) is None


def test_a_flat_judge_raises_few_false_alarms_and_a_real_fall_is_seen():
    worlds = 300
    alarms = sum(fall_from_best(rounds_of([0] * 9, seed=seed), BOOTSTRAP).fell for seed in range(worlds))
    assert alarms / worlds <= 0.05  # 2.5 % in the long run; each round by itself would give about one in eight
    naive = sum(single(rounds_of([0] * 9, seed=seed)) for seed in range(worlds))
    assert naive / worlds > 0.08
    falls = sum(fall_from_best(rounds_of([0, 0.5, 1, 0.6], seed=seed), BOOTSTRAP).fell for seed in range(50))
    assert falls >= 45


def single(rounds):
    """Whether the best round's own interval, as if nobody had chosen it, lies above the last's."""
    changes = np.array([rounds.last.scores.judge - one.scores.judge for one in rounds.rounds[:-1]])
    best = changes[int(np.argmin(changes.mean(1)))]
    return best.mean() + 1.96 * best.std() / np.sqrt(len(best)) < 0


def test_intervals_hold_all_at_once():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = simultaneous(rng.normal(size=(6, 60)), BOOTSTRAP)
        held += all(low <= 0 <= high for _, low, high in found)
    assert 0.91 <= held / 300 <= 0.99
    [(mean, low, high)] = simultaneous(np.full((1, 5), 2.0), BOOTSTRAP)
    assert (mean, low, high) == (2.0, 2.0, 2.0)


def test_the_sentence_depends_on_what_is_registered(make_evidence):
    falling = [0, 1, 2, 0.5]

    def told(chosen):
        evidence = make_evidence(rounds=rounds_of(falling, gold=falling, chosen=chosen))
        return findings(evidence, BOOTSTRAP)

    last, best = words.fall(told(3)), words.fall(told(2))
    assert last.mood == "bad"
    assert last.head.startswith("The registered round fell")
    assert "policy.choose: judge" in last.body
    assert best.mood == "open"
    assert "round 2 is registered" in best.head
    assert "gold −1.5" in best.body or "gold −1.4" in best.body
    assert words.fall(findings(make_evidence(rounds=rounds_of([0, 1, 2])), BOOTSTRAP)) is None
    # It refuses nothing by itself
    gates = PromotionPolicy(min_prompts=1)
    refused = [gate.name for gate in check_gates(told(3), gates, Facts()) if not gate.passed]
    assert refused == [gate.name for gate in check_gates(told(2), gates, Facts()) if not gate.passed]

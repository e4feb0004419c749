"""Skill: planted annotators are found again, and slow second methods come to the same figures."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_expit

from tasks.data.agreement import FIRST, MISSING, SECOND, TIE, labels, labels_of_matrix
from tasks.data.skill import SMOOTHING, Duels, bradley_terry, dawid_skene, duels

# Dawid and Skene ------------------------------------------------------------------------------------------------------


def judged(rng, accuracies, items, seen=1.0):
    """A matrix of labels: the truth is FIRST or SECOND; annotator k says it with chance accuracies[k]."""
    truth = rng.integers(0, 2, items)
    right = rng.random((items, len(accuracies))) < np.array(accuracies)
    matrix = np.where(right, truth[:, None], 1 - truth[:, None])
    return np.where(rng.random(matrix.shape) < seen, matrix, MISSING), truth


def test_planted_accuracies_are_found():
    planted = [0.95, 0.85, 0.7, 0.5]
    matrix, truth = judged(np.random.default_rng(0), planted, 4000, seen=0.7)
    found = dawid_skene(labels_of_matrix(matrix))
    assert found.accuracy == pytest.approx(planted, abs=0.03)
    shared = (matrix != MISSING).sum(1) > 1
    majority = np.array([np.mean(row[row != MISSING]) for row in matrix[shared]])
    best_guess = found.truth.argmax(1)
    assert np.mean(best_guess == truth[shared]) > np.mean((majority > 0.5) == truth[shared]) + 0.02


def slow_dawid_skene(matrix, steps):
    """The paper's equations 2.3 to 2.5 in loops, on the items and their mirror images, so that sides mean nothing."""
    mirror = np.where(matrix == MISSING, MISSING, np.take([SECOND, FIRST, TIE], matrix))
    rows = np.concatenate([matrix, mirror])
    rows = rows[(rows != MISSING).sum(1) > 1]
    truth = np.array([[np.mean(row[row != MISSING] == kind) for kind in range(3)] for row in rows])
    for _ in range(steps):
        tables = np.full((matrix.shape[1], 3, 3), 2 * SMOOTHING)  # twice, for the mirror images
        for row, chances in zip(rows, truth, strict=True):
            for who, label in enumerate(row):
                if label != MISSING:
                    tables[who, :, label] += chances
        tables /= tables.sum(2, keepdims=True)
        shares = truth.mean(0)
        for place, row in enumerate(rows):
            chances = shares.copy()
            for who, label in enumerate(row):
                if label != MISSING:
                    chances = chances * tables[who, :, label]
            truth[place] = chances / chances.sum()
    return tables, truth[: len(rows) // 2]


def test_the_slow_way_comes_to_the_same():
    rng = np.random.default_rng(1)
    matrix, _ = judged(rng, [0.9, 0.75, 0.6], 40, seen=0.85)
    matrix = np.where((rng.random(matrix.shape) < 0.2) & (matrix != MISSING), TIE, matrix)
    tables, truth = slow_dawid_skene(matrix, 100)
    found = dawid_skene(labels_of_matrix(matrix))
    assert found.tables == pytest.approx(tables, abs=2e-3)
    assert found.truth == pytest.approx(truth, abs=5e-3)


@given(st.lists(st.lists(st.integers(MISSING, TIE), min_size=3, max_size=3), min_size=1, max_size=20))
def test_chances_are_chances_and_nothing_is_impossible(rows):
    matrix = np.array(rows)
    found = dawid_skene(labels_of_matrix(matrix))
    shared = matrix[(matrix != MISSING).sum(1) > 1]
    assert np.isfinite(found.accuracy).tolist() == (shared != MISSING).any(0).tolist() if len(shared) else np.isnan(found.accuracy).all()
    assert all(0 < accuracy < 1 for accuracy in found.accuracy if np.isfinite(accuracy))
    assert found.truth.sum(1) == pytest.approx(np.ones(len(shared)))
    assert (found.tables > 0).all() or not len(shared)


# Bradley and Terry ----------------------------------------------------------------------------------------------------


def simulated(rng, betas, prompts, answers=4, judges=3):
    """Duels of all pairs of a prompt's answers by `judges` of the annotators, and the answers' true worth."""
    worth = rng.standard_normal((prompts, answers))
    rows = []
    for prompt in range(prompts):
        for who in rng.choice(len(betas), judges, replace=False):
            for i in range(answers):
                for j in range(i + 1, answers):
                    won = rng.random() < 1 / (1 + np.exp(-betas[who] * (worth[prompt, i] - worth[prompt, j])))
                    rows.append((prompt * answers + i, prompt * answers + j, float(won), who, prompt))
    a, b, won, who, prompt = (np.array(column) for column in zip(*rows, strict=True))
    return Duels(a.astype(np.uint64), b.astype(np.uint64), won, who, prompt, np.ones(len(a))), worth


def test_planted_reliabilities_are_found_where_many_judged():
    betas = [3.0, 1.5, 0.5, 0.0, -1.5] * 4
    found = bradley_terry(simulated(np.random.default_rng(0), betas, 80, answers=6, judges=20)[0], 20)
    assert found.reliability == pytest.approx(betas, rel=0.2, abs=0.15)


def test_planted_reliabilities_are_in_order_where_three_judged():
    betas = [3.0, 1.5, 0.5, 0.0, -1.5]
    of, worth = simulated(np.random.default_rng(0), betas, 400)
    found = bradley_terry(of, len(betas))
    assert list(np.argsort(-found.reliability)) == [0, 1, 2, 3, 4]
    assert (found.reliability[:-1] - found.reliability[1:] > 2 * found.error[1:]).all()
    assert found.reliability[2:4] == pytest.approx([0.5, 0.0], abs=0.15)
    assert (found.judged == np.bincount(of.annotator)).all()
    true_gap = worth.ravel()[of.a.astype(int)] - worth.ravel()[of.b.astype(int)]
    assert np.corrcoef(found.gap, true_gap)[0, 1] > 0.7


def test_errors_are_as_large_as_estimates_scatter():
    found = [bradley_terry(simulated(np.random.default_rng(seed), [1.5, 1.5, 1.5, 0.0], 60)[0], 4) for seed in range(30)]
    scatter = np.std([one.reliability[3] for one in found], ddof=1)
    assert scatter == pytest.approx(np.mean([one.error[3] for one in found]), rel=0.45)


def slow_bradley_terry(of, annotators, rounds=20):
    """The same model by general optimisers: each annotator's s from the others' duels, then their beta, in turn."""
    answers = int(max(of.a.max(), of.b.max())) + 1
    a, b = of.a.astype(int), of.b.astype(int)
    beta = np.ones(annotators)

    def nll(logit, rows):
        return -(of.weight[rows] * (of.won[rows] * log_expit(logit) + (1 - of.won[rows]) * log_expit(-logit))).sum()

    def without(s, rest, beta):
        return nll(beta[of.annotator[rest]] * (s[a[rest]] - s[b[rest]]), rest) + s @ s / 2

    def alone(one, own, gap):
        return nll(one * gap, own) + (one - 1) ** 2 / 2

    for _ in range(rounds):
        new = beta.copy()
        for who in range(annotators):
            own = of.annotator == who
            s = minimize(without, np.zeros(answers), (~own, beta)).x
            new[who] = minimize_scalar(alone, args=(own, s[a[own]] - s[b[own]]), bounds=(-9, 9), method="bounded").x
        beta = new
    return beta


def test_the_slow_way_comes_to_the_same_reliabilities():
    of, _ = simulated(np.random.default_rng(4), [2.0, 1.0, 0.2], 6, answers=3, judges=3)
    won = np.where(np.arange(len(of.won)) % 7 == 0, 0.5, of.won)  # some ties
    of = Duels(of.a, of.b, won, of.annotator, of.prompt, np.where(np.arange(len(won)) % 3 == 0, 0.5, 1.0))
    assert bradley_terry(of, 3).reliability == pytest.approx(slow_bradley_terry(of, 3), abs=0.01)


def test_whom_nobody_checks_is_neither_praised_nor_blamed():
    of, _ = simulated(np.random.default_rng(5), [2.0, 2.0, 2.0], 50)
    alone, _ = simulated(np.random.default_rng(6), [5.0], 50, judges=1)
    joined = Duels(
        np.concatenate([of.a, alone.a + np.uint64(10_000)]),
        np.concatenate([of.b, alone.b + np.uint64(10_000)]),
        np.concatenate([of.won, alone.won]),
        np.concatenate([of.annotator, alone.annotator + 3]),
        np.concatenate([of.prompt, alone.prompt + 10_000]),
        np.concatenate([of.weight, alone.weight]),
    )
    found = bradley_terry(joined, 4)
    assert (found.reliability[3], found.error[3], found.judged[3]) == (1.0, 1.0, 0)
    assert np.isnan(found.gap[len(of.won) :]).all()
    assert found.reliability[:3] == pytest.approx(bradley_terry(of, 3).reliability, abs=1e-3)


def test_a_prompt_that_everybody_judged_still_tells_them_apart():
    """Thirty annotators on one prompt: more than there are parts to leave out."""
    betas = np.array([3.0, 0.0] * 15)
    of, _ = simulated(np.random.default_rng(7), betas, 12, answers=6, judges=30)
    found = bradley_terry(of, 30).reliability
    assert found[::2].min() > found[1::2].max()


def test_which_answer_is_called_a_does_not_matter():
    of, _ = simulated(np.random.default_rng(8), [2.0, 1.0, 0.0], 40)
    turned = Duels(of.b, of.a, 1 - of.won, of.annotator, of.prompt, of.weight)
    one, other = bradley_terry(of, 3), bradley_terry(turned, 3)
    assert other.reliability == pytest.approx(one.reliability, abs=2e-3)
    assert other.gap == pytest.approx(-one.gap, abs=2e-3)


def test_nothing_to_go_by():
    none = Duels(*(np.zeros(0, kind) for kind in (np.uint64, np.uint64, float, int, int, float)))
    assert bradley_terry(none, 2).reliability.tolist() == [1.0, 1.0]


def test_a_ranking_of_four_counts_as_three_judgements():
    pairs = [(i, j) for i in range(1, 5) for j in range(i + 1, 5)]
    frame = pd.DataFrame(
        {
            "prompt": 1,
            "group": 1,
            "chosen": [i for i, _ in pairs] + [1],
            "rejected": [j for _, j in pairs] + [2],
            "ranking": [7] * 6 + [0],
            "annotator": ["ann"] * 6 + ["bob"],
            "tie": [False] * 6 + [True],
            "labels_by": None,
        }
    )
    found = duels(labels(frame), frame)
    assert found.weight.tolist() == [0.5] * 6 + [1.0]
    assert found.won.tolist() == [1.0] * 6 + [0.5]
    assert len({*found.a, *found.b}) == 4

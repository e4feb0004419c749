"""How far each annotator can be relied on: Dawid-Skene, and Bradley-Terry with a reliability of each annotator.

Pure functions of labels (agreement.py). Dawid-Skene asks how often somebody is right on the items that several judged;
Bradley-Terry asks it of everything whose answers others judged too, in whatever comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from tasks.data.agreement import FIRST, KINDS, SECOND, TIE, Array, Labels, Places, mixed

# Dawid and Skene ------------------------------------------------------------------------------------------------------

SMOOTHING = 0.5
"""Judgements that each annotator is given beforehand in each cell of their table, so that nothing is impossible."""
MOST_STEPS = 100
CLOSE = 1e-4

_OTHER_WAY = np.array([SECOND, FIRST, TIE])


@dataclass(frozen=True)
class DawidSkene:
    """accuracy: the chance that each annotator's label is the true one; nan for those who share no item, (annotators,).

    tables: chance of each label (last axis) by truth, (annotators, 3, 3). truth: of each shared item, (items, 3).
    """

    accuracy: Array
    tables: Array
    truth: Array


def dawid_skene(labels: Labels) -> DawidSkene:
    """Expectation maximisation on the items that two or more judged, from the majority's labels (Dawid and Skene 1979).

    Which answer stands first in an item means nothing, so tables and the truth's shares are kept alike in both orders.
    With only two annotators who share items, who of them is right can't be known: they come out about equal.
    """
    of = labels.shared()
    annotators = len(labels.names)
    counts = np.bincount(of.item * KINDS + of.label, minlength=of.items * KINDS).reshape(-1, KINDS).astype(float)
    truth: Array = counts / counts.sum(1, keepdims=True)
    accuracy, tables = np.full(annotators, np.nan), np.zeros((annotators, KINDS, KINDS))
    if not len(of):
        return DawidSkene(accuracy, tables, truth)
    cell = of.annotator * KINDS + of.label
    for _ in range(MOST_STEPS):
        by_truth = np.array([np.bincount(cell, truth[of.item, true], annotators * KINDS) for true in range(KINDS)], float)
        seen: Array = by_truth.reshape(KINDS, annotators, KINDS).swapaxes(0, 1)  # annotator, truth, label
        seen = (seen + seen[:, _OTHER_WAY][:, :, _OTHER_WAY]) / 2 + SMOOTHING
        new_tables = seen / seen.sum(2, keepdims=True)
        shares = truth.mean(0) + 1e-9
        shares = (shares + shares[_OTHER_WAY]) / 2
        logs = np.log(new_tables)
        evidence = np.column_stack([np.bincount(of.item, logs[of.annotator, true, of.label], of.items) for true in range(KINDS)])
        evidence += np.log(shares)
        evidence -= evidence.max(1, keepdims=True)
        truth = np.exp(evidence)
        truth /= truth.sum(1, keepdims=True)
        moved = np.abs(new_tables - tables).max()
        tables = new_tables
        if moved < CLOSE:
            break
    right = np.bincount(of.annotator, truth[of.item, of.label], annotators)
    number = np.bincount(of.annotator, minlength=annotators)
    known = number > 0
    accuracy[known] = (right + KINDS * SMOOTHING / 2)[known] / (number + KINDS * SMOOTHING)[known]
    return DawidSkene(accuracy, tables, truth)


# Bradley and Terry ----------------------------------------------------------------------------------------------------

TYPICAL, SPREAD = 1.0, 1.0
"""Mean and standard deviation of reliabilities before anything is known. Of the worth of answers they are 0 and 1."""
FOLDS = 4
"""The annotators of one prompt are dealt into so many parts, or fewer, to judge each part by the others."""
MOST_ROUNDS = 20
NEAR = 1e-3


@dataclass(frozen=True)
class Duels:
    """Labels as duels of answers. a, b: the two answers. won: 1 where a was called better, 0.5 for a tie, 0 for b.

    weight: how much a duel counts. A ranking of K answers is K - 1 judgements, not K (K - 1) / 2, so its duels count 2 / K.
    prompt: duels of one prompt are not independent. All of shape (labels,).
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    won: Array
    annotator: Places
    prompt: Places
    weight: Array


@dataclass(frozen=True)
class Reliability:
    """reliability: beta of each annotator, (annotators,); 0 is a coin, below 0 the other way round. error: its standard error.

    judged: each annotator's duels whose two answers others judged too. gap: how much better others found a than b, in
    standard deviations of answers, nan where they did not judge both, (duels,).
    """

    reliability: Array
    error: Array
    judged: Places
    gap: Array


def duels(labels: Labels, frame: pd.DataFrame) -> Duels:
    """The labels, with the answers that they compare. frame: the table of comparisons that the labels come from."""
    of = frame.iloc[labels.row]
    prompt, chosen, rejected, ranking = (of[name].to_numpy(np.uint64) for name in ("prompt", "chosen", "rejected", "ranking"))
    sizes = pd.Series(ranking).map(pd.Series(mixed(ranking, labels.annotator.astype(np.uint64))).groupby(ranking).size()).to_numpy(float)
    answers = np.where(ranking == 0, 2.0, (1 + np.sqrt(1 + 8 * sizes)) / 2)
    won = np.where(labels.label == TIE, 0.5, 1.0)
    return Duels(mixed(prompt, chosen), mixed(prompt, rejected), won, labels.annotator, pd.factorize(prompt)[0], 2 / answers)


@threadpool_limits.wrap(limits=1, user_api="blas")  # its many short sums take fifteen times as long on two
def bradley_terry(of: Duels, annotators: int) -> Reliability:
    """P(k calls i better than j) = sigmoid(beta_k (s_i - s_j)), with s ~ N(0, 1) and beta ~ N(TYPICAL, SPREAD^2).

    Were an annotator's own verdicts part of the s that they are measured by, somebody whom nobody checks would look
    perfect. So s is estimated from the others, who weigh by their own beta, and beta by how well it predicts the annotator;
    both in turn until nothing moves. (Crowd-BT, Chen et al. 2013, fits both at once.)
    Where few judged an answer, s is shrunk towards 0 and known but roughly: sharp annotators then look duller than they are,
    in the same order. The standard errors are robust to duels of one prompt (the sandwich of Liang and Zeger 1986); they take
    s as known.
    """
    others, own = _crossed(of)
    beta, gap = np.full(annotators, TYPICAL), np.full(len(of.won), np.nan)
    worth = np.zeros(others.answers)
    error = np.full(annotators, SPREAD)
    for _ in range(MOST_ROUNDS if others.answers else 0):
        worth = _worth(others, of, beta, worth)
        gap = np.where(own.known, worth[own.a] - worth[own.b], np.nan)
        before = beta
        beta, error = _beta(of, gap, before)
        if np.abs(beta - before).max(initial=0) < NEAR:
            break
    return Reliability(beta, error, np.bincount(of.annotator[own.known], minlength=annotators), gap)


@dataclass(frozen=True)
class _Others:
    """Duels by others. row: of the duel. a, b: places of answers, of which there is one for each part of annotators left out."""

    row: Places
    a: Places
    b: Places
    answers: int


@dataclass(frozen=True)
class _Own:
    """Where the worths by which each duel is measured stand. known: others judged both answers."""

    a: Places
    b: Places
    known: NDArray[np.bool_]


def _crossed(of: Duels) -> tuple[_Others, _Own]:
    """Every duel once for each part of its prompt's annotators that it is not in, where it concerns an answer that they judged."""
    who = pd.DataFrame({"prompt": of.prompt, "annotator": of.annotator})
    people = who.drop_duplicates()
    people = people.assign(part=people.groupby("prompt").cumcount() % FOLDS)
    part = who.merge(people, how="left", on=["prompt", "annotator"])["part"].to_numpy(np.int64)
    parts = np.minimum(np.bincount(people["prompt"].to_numpy(), minlength=1), FOLDS)[of.prompt]
    sides = [pd.Index(side * np.uint64(FOLDS) + part.astype(np.uint64)) for side in (of.a, of.b)]
    wanted = sides[0].append(sides[1]).unique()
    rows, keys = [], []
    for number in range(FOLDS):
        row = np.flatnonzero((parts > number) & (part != number))
        key = [side[row] * np.uint64(FOLDS) + np.uint64(number) for side in (of.a, of.b)]
        kept = (wanted.get_indexer(pd.Index(key[0])) >= 0) | (wanted.get_indexer(pd.Index(key[1])) >= 0)
        rows.append(row[kept])
        keys.append([one[kept] for one in key])
    row = np.concatenate(rows)
    place, answers = pd.factorize(np.concatenate([key[side] for side in (0, 1) for key in keys]))
    own = [pd.Index(answers).get_indexer(side) for side in sides]
    return _Others(row, place[: len(row)], place[len(row) :], len(answers)), _Own(own[0], own[1], (own[0] >= 0) & (own[1] >= 0))


def _worth(others: _Others, of: Duels, beta: Array, start: Array) -> Array:
    """The most probable s, given beta: a convex problem, apart for each prompt."""
    slope, won, weight = beta[of.annotator][others.row], of.won[others.row], of.weight[others.row]

    def loss(worth: Array) -> tuple[float, Array]:
        logit = slope * (worth[others.a] - worth[others.b])
        pull = weight * slope * (expit(logit) - won)
        gradient = np.bincount(others.a, pull, others.answers) - np.bincount(others.b, pull, others.answers) + worth
        return float(weight @ (np.logaddexp(0, logit) - won * logit) + worth @ worth / 2), gradient

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-3}).x


def _beta(of: Duels, gap: Array, start: Array) -> tuple[Array, Array]:
    """The most probable beta of each annotator, given the gaps, and its standard error: Newton's method on each."""
    known = np.isfinite(gap)
    who, x, won, weight = of.annotator[known], gap[known], of.won[known], of.weight[known]
    beta = start.copy()
    for _ in range(50):
        chance = expit(beta[who] * x)
        pull = weight * (won - chance) * x
        bend = np.bincount(who, weight * chance * (1 - chance) * x**2, len(beta)) + 1 / SPREAD**2
        step = np.clip((np.bincount(who, pull, len(beta)) - (beta - TYPICAL) / SPREAD**2) / bend, -1, 1)
        beta = beta + step
        if np.abs(step).max(initial=0) < 1e-6:
            break
    both, _ = pd.factorize(who * (int(of.prompt.max(initial=0)) + 1) + of.prompt[known])
    of_prompt = np.bincount(both, pull)
    person = np.zeros(len(of_prompt), np.int64)
    person[both] = who
    spread = np.bincount(person, of_prompt**2, len(beta)) + 1 / SPREAD**2
    return beta, np.maximum(np.sqrt(spread) / bend, np.sqrt(1 / bend))

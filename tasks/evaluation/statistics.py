"""The statistics of an evaluation: win rates, intervals, calibration, floors, KL. Pure functions of arrays.

Every interval is a percentile bootstrap (Efron and Tibshirani 1993, chapter 13) that draws whole clusters of prompts,
because answers to one prompt are not independent evidence (Miller 2024, "Adding error bars to evals", section 2.2).
Each draws from a fresh generator, so that none depends on which were made before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tasks.evaluation.result import Bin, WinRate

Interval = tuple[float, float, float]
"""An estimate and the lower and upper end of its interval."""

Clusters = Sequence[str] | Sequence[int]
"""One label a value; values with equal labels belong together."""

_CELLS = 4_000_000
"""So many drawn numbers are in memory at once (32 MB)."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn. resamples: how many. confidence: the share of them that an interval spans."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


def resampled_means(values: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> np.ndarray:
    """Means of bootstrap samples that draw whole clusters with replacement, shape (resamples,).

    values: (n,). clusters: n labels; values with one label are drawn together. Each sample is the ratio of its sum to
    its size. Clusters are put in order of their sums first, so that the order of the prompts has no effect.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(place, weights=values), np.bincount(place)
    order = np.lexsort((sizes, sums))
    sums, sizes = sums[order], sizes[order]
    rng = np.random.default_rng(bootstrap.seed)
    at_once = max(1, _CELLS // len(sums))
    means = []
    for first in range(0, bootstrap.resamples, at_once):
        drawn = rng.integers(0, len(sums), (min(at_once, bootstrap.resamples - first), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def drawn_clusters(clusters: Clusters, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """Bootstrap samples of whole clusters as weights of the values, (resamples, n), a batch at a time.

    For statistics that are no ratio of sums, which `resampled_means` does in less memory.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(place.max()) + 1
    rng = np.random.default_rng(bootstrap.seed)
    at_once = max(1, _CELLS // len(place))
    for first in range(0, bootstrap.resamples, at_once):
        rows = min(at_once, bootstrap.resamples - first)
        yield rng.multinomial(count, np.full(count, 1 / count), rows)[:, place]


def mean_interval(values: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> Interval:
    """The mean of values (n,) with its interval, widened where it must be to contain the mean itself."""
    mean = float(np.mean(values))
    tail = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(resampled_means(values, clusters, bootstrap), (tail, 1 - tail))
    return mean, min(float(low), mean), max(float(high), mean)


def share_interval(outcomes: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> Interval:
    """The mean of outcomes between 0 and 1, shape (n,), with its interval.

    A bootstrap of equal outcomes has no width, however few they are. So the interval is never surer than the exact
    binomial one of n wins out of n clusters, whose lower end is (alpha / 2)^(1 / n) (Clopper and Pearson 1934).
    Outcomes that are all ties keep their interval of no width: nothing was decided.
    """
    share, low, high = mean_interval(outcomes, clusters, bootstrap)
    if np.all(outcomes == 0.5):
        return share, low, high
    surest = ((1 - bootstrap.confidence) / 2) ** (1 / len(np.unique(np.asarray(clusters))))
    return share, min(low, surest), max(high, 1 - surest)


def outcomes_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where first is higher, 0 where second is, 0.5 where they are equal; all (n,)."""
    return (first > second) + 0.5 * (first == second)


def win_rate(outcomes: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> WinRate:
    """The share of outcomes (n,) that are wins, ties counted half, with its interval and the sign test.

    The interval is of the rate over prompts like these; the sign test asks whether wins and losses are a fair coin.
    """
    rate, low, high = share_interval(outcomes, clusters, bootstrap)
    wins, losses = int(np.sum(outcomes > 0.5)), int(np.sum(outcomes < 0.5))
    return WinRate(
        rate=rate, low=low, high=high, wins=wins, losses=losses, ties=len(outcomes) - wins - losses, sign_test=sign_test(wins, losses)
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so many wins and losses under a fair coin; ties take no part. 1.0 where none was decided.

    Source: Dixon and Mood 1946, "The statistical sign test".
    """
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def gain(after: np.ndarray, before: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> Interval:
    """Mean of after - before, prompt by prompt, in standard deviations of before; all (n,).

    The unit stays fixed while the differences are resampled. Where before does not vary, the unit is 1 reward.
    """
    spread = float(np.std(before))
    return mean_interval((after - before) / (spread if spread > 1e-9 else 1.0), clusters, bootstrap)


def accuracy_interval(chosen: np.ndarray, rejected: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> Interval:
    """Share of pairs whose chosen side scores higher, a draw counted half; scores (pairs,), clusters their prompts."""
    return share_interval(outcomes_of(chosen, rejected), clusters, bootstrap)


def reliability(margins: np.ndarray, bins: int = 10) -> list[Bin]:
    """How often people agreed where the scores said they would with probability sigmoid(|margin|).

    margins: score of the side that people chose minus the other's, (pairs,). Bins are equally wide from 0.5 to 1;
    empty ones are left out. Source: reliability diagrams as in Guo et al. 2017, section 2, on the side that the
    scores prefer.
    """
    stated = 1 / (1 + np.exp(-np.abs(margins)))
    agreed = outcomes_of(margins, np.zeros_like(margins))
    place = np.minimum(((stated - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        Bin(stated=float(stated[kept].mean()), agreed=float(agreed[kept].mean()), pairs=int(kept.sum()))
        for kept in (place == number for number in range(bins))
        if kept.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean over pairs of |agreed - stated| of their bin (Naeini et al. 2015)."""
    return sum(b.pairs * abs(b.agreed - b.stated) for b in bins) / sum(b.pairs for b in bins)


def length_correlation(scores: np.ndarray, lengths: np.ndarray, prompts: Clusters) -> float:
    """Pearson's correlation of score and length among answers to one prompt; all (n,).

    Each prompt's mean is taken from both first, so that prompts which ask for long answers don't count. 0.0 where
    either does not vary.
    """
    _, place = np.unique(np.asarray(prompts), return_inverse=True)
    x, y = _without_means(scores, place), _without_means(lengths, place)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-12 else 0.0


def _without_means(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return values - (np.bincount(place, weights=values) / np.bincount(place))[place]


def prefer_longer(chosen_lengths: np.ndarray, rejected_lengths: np.ndarray) -> float:
    """Accuracy of "the longer answer is the better one", equal lengths counted half. Of "the shorter": 1 minus it.

    Whichever is larger is the floor that a reward model has to clear.
    """
    return float(np.mean(outcomes_of(chosen_lengths, rejected_lengths)))

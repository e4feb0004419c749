"""Intervals of means and shares. Pure functions of arrays.

Every interval is a percentile bootstrap (Efron and Tibshirani 1993, chapter 13) that draws whole clusters of prompts,
because answers to one prompt are not independent evidence (Miller 2024, "Adding error bars to evals", section 2.2).
Each draws from a fresh generator, so that none depends on which were made before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

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
    surest = surest_share(len(np.unique(np.asarray(clusters))), bootstrap.confidence)
    return share, min(low, surest), max(high, 1 - surest)


def surest_share(clusters: int, confidence: float) -> float:
    """The lower end of the exact interval of a share where so many independent clusters were all won."""
    return float(((1 - confidence) / 2) ** (1 / clusters))


def outcomes_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where first is higher, 0 where second is, 0.5 where they are equal; all (n,)."""
    return (first > second) + 0.5 * (first == second)

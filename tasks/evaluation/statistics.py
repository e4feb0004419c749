"""The statistics of an evaluation: win rates, the sign test, gains. Pure functions of arrays."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from tasks.evaluation.result import WinRate
from tasks.training.intervals import Bootstrap, Clusters, Interval, mean_interval, share_interval


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


def gain(after: np.ndarray, before: np.ndarray, clusters: Clusters, bootstrap: Bootstrap, unit: float | None = None) -> Interval:
    """Mean of after - before, prompt by prompt, in units of that many rewards, or else in standard deviations of before; all (n,).

    The unit stays fixed while the differences are resampled.
    """
    return mean_interval((after - before) / (unit or spread(before)), clusters, bootstrap)


def spread(scores: np.ndarray) -> float:
    """The standard deviation of scores (n,); 1 reward where they do not vary."""
    found = float(np.std(scores))
    return found if found > 1e-9 else 1.0

"""What a scorer's margins are worth: how often the better answer scores higher, how sure that makes it, and what length does.

Pure functions of arrays, for reward models on held-out comparisons in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from tasks.training.intervals import Bootstrap, Clusters, Interval, outcomes_of, share_interval

TEMPERATURES = (0.01, 100.0)
"""Between which the temperature is looked for: a scorer that is always right would want 0, one that is worse than chance infinity."""


@dataclass(frozen=True)
class Bin:
    """Pairs on which a scorer was about equally sure. stated: mean sigmoid(|margin|). agreed: share where people agreed."""

    stated: float
    agreed: float
    pairs: int


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


def nll(margins: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(margin / temperature), in nats; margins (pairs,)."""
    return float(np.logaddexp(0.0, -margins / temperature).mean())


def best_temperature(margins: np.ndarray) -> float:
    """The temperature at which sigmoid(margin / temperature) tells best how often people agree; 1 where no margin says anything.

    margins: score of the side that people chose minus the other's, (pairs,). One number leaves the order of all scores as
    it is. Source: temperature scaling, Guo et al. 2017, section 4.2, for two classes. The likelihood has one peak in it.
    """
    if not np.any(margins):
        return 1.0
    found = minimize_scalar(lambda log: nll(margins, np.exp(log)), bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


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

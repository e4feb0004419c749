"""The win rate that would be left if both sides wrote equally long answers.

A logistic model of the outcome with the standardised length difference, squeezed by tanh, as in AlpacaEval 2 (Dubois
et al. 2024, "Length-controlled AlpacaEval", section 3, without its terms for instruction difficulty: one pair of
models leaves nothing to estimate those from). The rate is the model's at a difference of 0.
"""

from __future__ import annotations

import numpy as np

from tasks.training.intervals import Bootstrap, Clusters, Interval, drawn_clusters

RIDGE = 0.5
"""Precision of a normal prior on both coefficients, so that a clean sweep has a finite fit. Worth two prompts at most."""
STEPS = 12
"""Of Newton's method, which converges quadratically here: the prior makes the problem strictly convex."""


def length_controlled(outcomes: np.ndarray, differences: np.ndarray, clusters: Clusters, bootstrap: Bootstrap) -> Interval:
    """The win rate at equal lengths, with a bootstrap interval over clusters.

    outcomes: 1 win, 0.5 tie, 0 loss, (n,). differences: length of the policy's answer minus the other's, tokens, (n,).
    """
    spread = float(np.std(differences))
    squeezed = np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences, dtype=float)
    rate = _rates(outcomes, squeezed, np.ones((1, len(outcomes))))[0]
    rates = np.concatenate([_rates(outcomes, squeezed, weights) for weights in drawn_clusters(clusters, bootstrap)])
    tail = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(rates, (tail, 1 - tail))
    return float(rate), min(float(low), float(rate)), max(float(high), float(rate))


def _rates(outcomes: np.ndarray, squeezed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sigmoid(intercept) of the fits whose prompts weigh so much: weights (fits, n) -> (fits,)."""
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * squeezed)))
        error, curve = weights * (outcomes - p), weights * p * (1 - p)
        gradient = error.sum(1) - RIDGE * intercept, error @ squeezed - RIDGE * slope
        a, b, d = curve.sum(1) + RIDGE, curve @ squeezed, curve @ squeezed**2 + RIDGE
        determinant = a * d - b * b
        intercept += (d * gradient[0] - b * gradient[1]) / determinant
        slope += (a * gradient[1] - b * gradient[0]) / determinant
    return 1 / (1 + np.exp(-intercept))

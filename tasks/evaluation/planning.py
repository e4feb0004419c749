"""How many prompts an evaluation needs, and what those at hand can show: said before anything is compared."""

from __future__ import annotations

import math

from scipy.stats import norm

POWER = 0.8


def prompts_needed(rate: float, bar: float = 0.5, ties: float = 0.0, confidence: float = 0.95, power: float = POWER) -> int:
    """Independent prompts for a policy that truly wins at that rate to have its lower bound above the bar, with that power.

    ties: share of prompts that end in one, each half a win. Normal approximation of a mean of outcomes 0, 0.5 and 1,
    whose variance is rate (1 - rate) - ties / 4.
    """
    if rate <= bar:
        raise ValueError(f"a rate of {rate} is not above the bar of {bar}: no number of prompts shows that it is")
    spread = math.sqrt(max(rate * (1 - rate) - ties / 4, 0.0))
    return math.ceil(((_quantiles(confidence, power) * spread) / (rate - bar)) ** 2)


def detectable_rate(prompts: int, bar: float = 0.5, ties: float = 0.0, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true win rate that so many prompts show to be above the bar, with that power; 1.0 where none does."""
    low, high = bar, 1.0
    if prompts_needed(high, bar, 0.0, confidence, power) > prompts:
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if prompts_needed(middle, bar, ties, confidence, power) <= prompts else (middle, high)
    return high


def _quantiles(confidence: float, power: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2) + norm.ppf(power))

"""The win rate of judged rows: verdicts as points, with intervals over whole groups of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.evaluation.answers import Judged, Outcome
from tasks.evaluation.result import WinRate
from tasks.evaluation.statistics import win_rate
from tasks.training.intervals import Bootstrap

POINTS: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def rate_of(rows: Sequence[Judged], verdict: Callable[[Judged], Outcome | None], bootstrap: Bootstrap) -> WinRate | None:
    """Over the rows that have a verdict; None where none has (no known truth)."""
    found = [(POINTS[outcome], row.group_id) for row in rows if (outcome := verdict(row))]
    return win_rate(np.array([points for points, _ in found]), [group for _, group in found], bootstrap) if found else None


def certain(rate: WinRate | None) -> WinRate:
    assert rate is not None, "the judge that decides has a verdict on every prompt that counts"
    return rate

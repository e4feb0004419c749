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
    """None where there is no verdict (no known truth)."""
    points = [POINTS[outcome] for row in rows if (outcome := verdict(row))]
    return win_rate(np.array(points), [row.group_id for row in rows], bootstrap) if points else None


def certain(rate: WinRate | None) -> WinRate:
    assert rate is not None, "the judge has a verdict on every prompt"
    return rate

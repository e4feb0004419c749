"""Over-optimisation: did the policy climb its own reward while an independent judge saw nothing better?

After Gao et al. 2022, "Scaling laws for reward model overoptimization": a policy's own reward keeps rising with the
distance from where it began, while a reward that it was not trained on flattens and then falls.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import PreflineError
from tasks.evaluation.result import OverOptimisation, WinRate
from tasks.evaluation.statistics import gain
from tasks.training.intervals import Bootstrap, Clusters, Interval

ROUNDS = "rounds.json"


@dataclass(frozen=True)
class Scores:
    """What each of the three onlookers says of a model's answers, one number a prompt. gold: None without a known truth."""

    own: np.ndarray
    judge: np.ndarray
    gold: np.ndarray | None


@dataclass(frozen=True)
class Round:
    """A round that was looked at on the validation prompts. kl: nats a sequence from SFT."""

    number: int
    kl: float
    scores: Scores


@dataclass(frozen=True)
class Rounds:
    """All such rounds in order; the first is SFT itself. chosen: the number of the one that became the policy."""

    chosen: int
    rounds: list[Round]

    @property
    def sft(self) -> Round:
        return self.rounds[0]

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @classmethod
    def load(cls, folder: Path) -> Rounds:
        """Read a policy's rounds.json. Raises PreflineError where SFT's own scores, the first round, are missing."""
        body = json.loads((folder / ROUNDS).read_text(encoding="utf-8"))
        rounds = [Round(row["round"], row["kl"], _scores(row)) for row in body["rounds"]]
        if not rounds or rounds[0].number != 0:
            raise PreflineError(
                f"{folder / ROUNDS}: round 0, the SFT model's own scores, is missing.", "Train again: prefline run --from policy."
            )
        return cls(body["chosen_round"], rounds)


def _scores(row: dict[str, Any]) -> Scores:
    return Scores(np.array(row["own"]), np.array(row["judge"]), None if row["gold"] is None else np.array(row["gold"]))


@dataclass(frozen=True)
class Gains:
    """Gains in standard deviations of SFT's scores, each with its interval."""

    own: Interval
    judge: Interval
    gold: Interval | None


def gains(after: Scores, before: Scores, clusters: Clusters, bootstrap: Bootstrap) -> Gains:
    """Of one model over another on the same prompts."""
    gold = None if after.gold is None or before.gold is None else gain(after.gold, before.gold, clusters, bootstrap)
    return Gains(gain(after.own, before.own, clusters, bootstrap), gain(after.judge, before.judge, clusters, bootstrap), gold)


def gains_of_round(one: Round, rounds: Rounds, bootstrap: Bootstrap) -> Gains:
    return gains(one.scores, rounds.sft.scores, range(len(one.scores.own)), bootstrap)


def is_hacked(own: Interval, judge: Interval, wins: WinRate) -> bool:
    """Own reward up for sure, judge not: own's interval lies above 0, and the judge sees nothing better, or sees it get worse.

    judge: its mean gain. wins: how often it prefers the policy's answer over SFT's. An honest gain lifts both; one of them
    that is sure will do, for means are noisier than counts, unless the mean has fallen for sure: many small wins do not
    make up for ruin. A judge that can't tell (too few prompts, too small a gain) does not clear a policy: what is only its
    own reward's word stays unproven.
    """
    better = judge[1] > 0 or wins.low > 0.5
    return own[1] > 0 and (not better or judge[2] < 0)


def over_optimisation(rounds: Rounds, registered: Gains, wins: WinRate, bootstrap: Bootstrap) -> OverOptimisation:
    """The verdict on the registered checkpoint, and what the last round shows.

    registered, wins: what the checkpoint that became the policy gained on SFT, on held-out prompts. Those of its round on the
    validation prompts would flatter it: the best of several rounds is partly the luckiest.
    """
    last = gains_of_round(rounds.last, rounds, bootstrap)
    return OverOptimisation(
        own_gain=last.own,
        judge_gain=last.judge,
        gold_gain=last.gold,
        registered_own_gain=registered.own,
        registered_judge_gain=registered.judge,
        registered_gold_gain=registered.gold,
        hacked=is_hacked(registered.own, registered.judge, wins),
    )

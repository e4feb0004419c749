"""Did the last round fall from an earlier one: the judge likes it less, while the policy's own reward holds or rises?

It is told and refuses nothing. The gates ask whether the registered checkpoint is better than what it would replace, by answers
that had no part in choosing it: one that is may be promoted, though an earlier round of the same run was better still, because
refusing it would keep the worse champion. Where the judge chooses the checkpoint (policy.choose: judge) the round before the fall
is the one registered, and nothing is lost; where the last round is taken, the sentence says what to change. A policy that fell below
its SFT model is refused by the gates on win rates and reward hacking.
"""

from __future__ import annotations

import numpy as np

from tasks.evaluation.overoptimisation import Rounds
from tasks.evaluation.result import Fall
from tasks.evaluation.statistics import gain, spread
from tasks.training.intervals import Bootstrap, Interval, drawn_clusters


def fall_from_best(rounds: Rounds, bootstrap: Bootstrap) -> Fall | None:
    """The last round against the earlier one (SFT is round 0) that the judge likes best; None where there is no earlier one.

    The best of several rounds is partly the luckiest, so the judge's interval is one of those that hold for all earlier rounds
    at once (max-t bootstrap: Romano and Wolf 2005, "Exact and approximate stepdown methods", section 4).
    """
    *earlier, last = rounds.rounds
    if not earlier:
        return None
    start, prompts = rounds.sft.scores, range(len(last.scores.own))
    changes = np.array([last.scores.judge - one.scores.judge for one in earlier]) / spread(start.judge)
    lowest = int(np.argmin(changes.mean(1)))
    best = earlier[lowest].scores
    judge = simultaneous(changes, bootstrap)[lowest]
    own = gain(last.scores.own, best.own, prompts, bootstrap, spread(start.own))
    gold = None
    if last.scores.gold is not None and best.gold is not None and start.gold is not None:
        gold = gain(last.scores.gold, best.gold, prompts, bootstrap, spread(start.gold))
    return Fall(
        best_round=earlier[lowest].number,
        judge=judge,
        own=own,
        gold=gold,
        fell=judge[2] < 0 <= own[2],
    )


def simultaneous(values: np.ndarray, bootstrap: Bootstrap) -> list[Interval]:
    """Means of values (rows, n) over n prompts, with intervals that all hold at once with the bootstrap's confidence.

    Each is its mean +- q standard errors, q being the quantile of the largest |t| of all rows over bootstrap samples of prompts.
    """
    means = values.mean(1)
    draws = np.concatenate([weights @ values.T / values.shape[1] for weights in drawn_clusters(range(values.shape[1]), bootstrap)])
    errors = draws.std(0)
    t = np.divide(np.abs(draws - means), errors, out=np.zeros_like(draws), where=errors > 0)
    reach = np.quantile(t.max(1), bootstrap.confidence) * errors
    return [(float(mean), float(mean - far), float(mean + far)) for mean, far in zip(means, reach, strict=True)]

"""From judged answers to what an evaluation found. No model is needed here, only their answers and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.config import JudgeKind
from tasks.evaluation.agreement import Agreement
from tasks.evaluation.answers import Judged, Reply
from tasks.evaluation.fall import fall_from_best
from tasks.evaluation.forgetting import Recital
from tasks.evaluation.length import length_controlled
from tasks.evaluation.means import mean, means
from tasks.evaluation.overoptimisation import Gains, Rounds, Scores, gains, over_optimisation
from tasks.evaluation.planning import detectable_rate
from tasks.evaluation.rates import POINTS, certain, rate_of
from tasks.evaluation.result import Against, Evaluation, Habits, JudgeReport, ProbeReport, Scorers, Selection
from tasks.evaluation.slices import slices
from tasks.evaluation.text_measures import repetition
from tasks.training.intervals import Bootstrap, Interval, mean_interval


@dataclass(frozen=True)
class Besides:
    """A registered version that the policy is compared with besides; the rows hold its answers, by name."""

    name: str
    version: str
    recital: Recital | None


@dataclass(frozen=True)
class Evidence:
    """What was measured with models at hand. kl: nats a sequence from SFT. pairs: human comparisons behind the agreements.

    too_long: test prompts left out because they leave no room for an answer. *_recital: how well each model knows the
    held-out demonstrations, None where there are none. scorers: what was measured of reward model and judge elsewhere.
    judges: what each said; decided_by: the one whose verdicts the rows hold.
    """

    rows: Sequence[Judged]
    too_long: int
    rounds: Rounds
    kl: float
    judge: Agreement
    reward_model: Agreement
    prefer_longer: float
    pairs: int
    baseline: str
    baseline_version: str | None
    policy_recital: Recital | None = None
    sft_recital: Recital | None = None
    baseline_recital: Recital | None = None
    scorers: Scorers = field(default_factory=Scorers)
    judges: Sequence[JudgeReport] = ()
    decided_by: JudgeKind = "reward_model"
    best_of_n: list[Selection] = field(default_factory=list)
    probes: Sequence[ProbeReport] = ()
    others: Sequence[Besides] = ()


def findings(evidence: Evidence, bootstrap: Bootstrap) -> Evaluation:
    """Everything that gates and reports read, with intervals."""
    rows = [row for row in evidence.rows if row.judge and row.judge_over_sft]
    registered = gains_over_sft(rows, bootstrap)
    refuse = [row.refuse for row in rows]
    by_baseline = [row.baseline for row in rows if row.baseline]
    over_sft = certain(rate_of(rows, lambda row: row.judge_over_sft, bootstrap))
    return Evaluation(
        prompts=len(rows),
        too_long=evidence.too_long,
        decided_by=evidence.decided_by,
        judges=list(evidence.judges),
        unjudged=len(evidence.rows) - len(rows),
        baseline=evidence.baseline,
        baseline_version=evidence.baseline_version,
        win_rate=certain(rate_of(rows, lambda row: row.judge, bootstrap)),
        win_rate_gold=rate_of(rows, lambda row: row.gold, bootstrap),
        win_rate_over_sft=over_sft,
        win_rate_over_sft_gold=rate_of(rows, lambda row: row.gold_over_sft, bootstrap),
        length_controlled=_at_equal_lengths(rows, bootstrap),
        detectable=detectable_rate(len(rows), ties=mean([row.judge == "tie" for row in rows]), confidence=bootstrap.confidence),
        policy=means([row.policy for row in rows], refuse, evidence.policy_recital),
        sft=means([row.sft for row in rows], refuse, evidence.sft_recital),
        baseline_means=means(by_baseline, refuse, evidence.baseline_recital) if by_baseline else None,
        against=[against(rows, place, one, bootstrap) for place, one in enumerate(evidence.others)],
        habits=habits(rows, bootstrap),
        probes=list(evidence.probes),
        kl=evidence.kl,
        slices=slices(rows, bootstrap),
        judge_accuracy=evidence.judge.accuracy,
        judge_pairs=evidence.pairs,
        judge_calibration=evidence.judge.calibration,
        judge_agrees_with_gold=agreement_with_gold(rows),
        reward_model_accuracy=evidence.reward_model.accuracy,
        reward_model_calibration=evidence.reward_model.calibration,
        prefer_longer=evidence.prefer_longer,
        over_optimisation=over_optimisation(evidence.rounds, registered, over_sft, bootstrap),
        chosen_round=evidence.rounds.chosen,
        rounds=evidence.rounds.last.number,
        confidence=bootstrap.confidence,
        scorers=evidence.scorers,
        fall=fall_from_best(evidence.rounds, bootstrap),
        best_of_n=evidence.best_of_n,
    )


def _at_equal_lengths(rows: Sequence[Judged], bootstrap: Bootstrap) -> Interval:
    points = np.array([POINTS[row.judge] for row in rows if row.judge])
    longer = np.array([row.policy.length - row.rival.length for row in rows])
    return length_controlled(points, longer, [row.group_id for row in rows], bootstrap)


def against(rows: Sequence[Judged], place: int, one: Besides, bootstrap: Bootstrap) -> Against:
    """place: of its answers among the others of each row."""
    return Against(
        name=one.name,
        version=one.version,
        win_rate=rate_of(rows, lambda row: row.others[place].judge, bootstrap),
        win_rate_gold=rate_of(rows, lambda row: row.others[place].gold, bootstrap),
        means=means([row.others[place].reply for row in rows], [row.refuse for row in rows], one.recital),
    )


def habits(rows: Sequence[Judged], bootstrap: Bootstrap) -> Habits:
    """Of the policy beside the SFT model."""
    to_answer = [row for row in rows if row.refuse is False] or rows
    return Habits(
        repetition=_more_often(rows, lambda reply: repetition(reply.text), bootstrap),
        refusal=_more_often(to_answer, lambda reply: float(reply.refused), bootstrap),
    )


def _more_often(rows: Sequence[Judged], share: Callable[[Reply], float], bootstrap: Bootstrap) -> Interval:
    differences = np.array([share(row.policy) - share(row.sft) for row in rows])
    return mean_interval(differences, [row.group_id for row in rows], bootstrap)


def agreement_with_gold(rows: Sequence[Judged]) -> float | None:
    """Share of the prompts decided by gold on which the judge names the same winner, its ties counted half."""
    points = [1 - abs(POINTS[row.judge] - POINTS[row.gold]) for row in rows if row.judge and row.gold in ("win", "loss")]
    return mean(points) if points else None


def gains_over_sft(rows: Sequence[Judged], bootstrap: Bootstrap) -> Gains:
    """Of the policy, in standard deviations of SFT's scores on the held-out prompts."""
    return gains(_scores([row.policy for row in rows]), _scores([row.sft for row in rows]), [row.group_id for row in rows], bootstrap)


def _scores(replies: Sequence[Reply]) -> Scores:
    gold = [reply.gold for reply in replies if reply.gold is not None]
    return Scores(np.array([r.own for r in replies]), np.array([r.judge for r in replies]), np.array(gold) if gold else None)

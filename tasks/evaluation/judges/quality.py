"""What a judge's word is worth: measured on comparisons that people made, and shown beside its verdicts.

Agreement as in Zheng et al. 2023 ("Judging LLM-as-a-judge with MT-Bench and Chatbot Arena", section 4.1): the chance that
the judge and a person drawn at random say the same of a pair drawn at random. Their setup S1 has ties in it
(`agreement`), S2 only what both decided (`agreement_decided`); orders that disagree are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.data.agreement import FIRST, SECOND, TIE, Estimate, labels_of_matrix, pair_agreements
from tasks.evaluation.answers import Judged, Outcome, Verdict
from tasks.evaluation.judges.judge import Judge
from tasks.evaluation.judges.pairs import HumanPair
from tasks.evaluation.rates import POINTS, rate_of
from tasks.evaluation.result import JudgeName, JudgeReport
from tasks.training.intervals import Bootstrap, Interval, share_interval

LABELS: dict[Outcome, int] = {"win": FIRST, "loss": SECOND, "tie": TIE}


@dataclass(frozen=True)
class Heard:
    """A judge's verdict on a pair that a person judged."""

    pair: HumanPair
    verdict: Verdict


def ask_about(judge: Judge, pairs: Sequence[HumanPair]) -> list[Heard]:
    """What a judge says of people's pairs, as far as it says anything."""
    said = judge.verdicts([human.pair for human in pairs])
    return [Heard(human, verdict) for human, verdict in zip(pairs, said, strict=True) if verdict]


def report(judge: Judge, rows: Sequence[Judged], heard: Sequence[Heard], bootstrap: Bootstrap) -> JudgeReport:
    """A judge's win rates, and what its word is worth. rows: with its verdicts among others'. heard: on people's pairs."""
    own = [verdict for row in rows if (verdict := of(judge.name, row.verdicts))]
    over_sft = [verdict for row in rows if row.baseline and (verdict := of(judge.name, row.verdicts_over_sft))]
    everything = [*own, *over_sft, *(one.verdict for one in heard)]
    orders = [order for verdict in everything for order in verdict.by_order or ()]
    return JudgeReport(
        judge=judge.name,
        about=judge.about,
        prompts=len(own),
        win_rate=rate_of(rows, lambda row: outcome_of(judge.name, row.verdicts), bootstrap),
        win_rate_over_sft=rate_of(rows, lambda row: outcome_of(judge.name, row.verdicts_over_sft), bootstrap),
        pairs=len(heard),
        accuracy=accuracy(heard, bootstrap),
        agreement=agreement(heard, bootstrap),
        agreement_decided=agreement_decided(heard, bootstrap),
        kappa=kappa(heard),
        prefers_longer=prefers_longer(heard, lambda one: one.verdict.outcome),
        people_prefer_longer=prefers_longer(heard, lambda one: one.pair.said),
        prefers_first=prefers_first(everything),
        orders_disagree=orders_disagree(everything),
        orders=len(orders),
        unparsable=orders.count(None),
        spent=judge.spent,
    )


def of(judge: JudgeName, verdicts: Sequence[Verdict]) -> Verdict | None:
    """What one judge said, among what all said."""
    return next((verdict for verdict in verdicts if verdict.judge == judge), None)


def outcome_of(judge: JudgeName, verdicts: Sequence[Verdict]) -> Outcome | None:
    verdict = of(judge, verdicts)
    return verdict.outcome if verdict else None


def accuracy(heard: Sequence[Heard], bootstrap: Bootstrap) -> Interval | None:
    """Share of the pairs that people decided on which the judge names the same winner, its ties counted half."""
    return _share([one for one in heard if one.pair.said != "tie"], bootstrap)


def agreement(heard: Sequence[Heard], bootstrap: Bootstrap) -> Interval | None:
    """Share of pairs of which judge and person say the same, a tie too (setup S1). By drawing lots: about a third."""
    return _share(heard, bootstrap, same=True)


def agreement_decided(heard: Sequence[Heard], bootstrap: Bootstrap) -> Interval | None:
    """The same where neither called it a tie (setup S2). By drawing lots: a half."""
    return _share([one for one in heard if "tie" not in (one.pair.said, one.verdict.outcome)], bootstrap, same=True)


def _share(heard: Sequence[Heard], bootstrap: Bootstrap, same: bool = False) -> Interval | None:
    if not heard:
        return None
    points = [1 - abs(POINTS[one.verdict.outcome] - POINTS[one.pair.said]) for one in heard]
    values = np.array([float(each == 1) for each in points] if same else points)
    return share_interval(values, [one.pair.group for one in heard], bootstrap)


def kappa(heard: Sequence[Heard]) -> Interval | None:
    """Cohen's kappa of the judge with people, ties as a label of their own; None where it has no meaning."""
    if not heard:
        return None
    matrix = np.array([[LABELS[one.verdict.outcome], LABELS[one.pair.said]] for one in heard])
    clusters = pd.factorize(np.array([one.pair.group for one in heard]))[0]
    (pair,) = pair_agreements(labels_of_matrix(matrix, ("judge", "people"), clusters.tolist()))
    return interval_of(pair.kappa)


def interval_of(found: Estimate) -> Interval | None:
    """None where the figure has no meaning."""
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


def prefers_longer(heard: Sequence[Heard], outcome: Callable[[Heard], Outcome]) -> float | None:
    """Share of the pairs with a winner in which the longer answer won; those of equal length say nothing."""
    won = []
    for one in heard:
        longer = one.pair.pair.one.length - one.pair.pair.other.length
        if longer and outcome(one) != "tie":
            won.append((longer > 0) == (outcome(one) == "win"))
    return float(np.mean(won)) if won else None


def prefers_first(verdicts: Sequence[Verdict]) -> float | None:
    """Share of the orders shown in which the answer shown first won, ties counted half; without bias a half."""
    shown = [points for verdict in verdicts if verdict.by_order for points in _first(*verdict.by_order)]
    return float(np.mean(shown)) if shown else None


def _first(one_first: Outcome | None, other_first: Outcome | None) -> list[float]:
    return ([POINTS[one_first]] if one_first else []) + ([1 - POINTS[other_first]] if other_first else [])


def orders_disagree(verdicts: Sequence[Verdict]) -> float | None:
    """Share of the pairs read in both orders on which the two do not say the same."""
    both = [verdict.by_order for verdict in verdicts if verdict.by_order and None not in verdict.by_order]
    return float(np.mean([first != second for first, second in both])) if both else None

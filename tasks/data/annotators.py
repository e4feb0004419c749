"""The annotators of a data set: how far they agree, and a scorecard for each that says what to do.

Figures come from agreement.py and skill.py; here they are put side by side and judged. The weights by which a reward
model may count its comparisons are made here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.data.agreement import (
    TIE,
    Agreement,
    Array,
    Estimate,
    Labels,
    PairAgreement,
    Places,
    agreement,
    agreement_by,
    by_people,
    labels,
    mixed,
    pair_agreements,
    verdicts,
)
from tasks.data.skill import Reliability, bradley_terry, dawid_skene, duels

Z = 1.959964
"""Standard errors on either side of a 95 % interval."""
ENOUGH = 30
"""Comparisons that others judged too: of fewer, nothing is said about a person."""
AT_CHANCE = 0.5
"""Reliability below which verdicts are near those of a coin: right in 62 of 100 pairs of ordinary answers."""
BIAS = 0.05
"""How far a share must surely lie from where it should be before it is called a bias."""
HASTE = 1 / 3
"""Of the others' time."""
FICKLE = 1 / 3
"""Share of pairs judged again that come out the other way round. Who is right four times in five has that by nature."""
MOST_LABELS = 200_000
"""That skill is estimated from: of more, those of prompts drawn by their hash. By then it is known well enough."""
RARE = 200
"""Labels of an annotator none of whose prompts is left out."""


@dataclass(frozen=True)
class Scorecard:
    """One annotator.

    share: of all comparisons by named people. shared: their comparisons that somebody else judged too.
    others: the chance that another annotator says the same of such a comparison.
    judged: their comparisons whose two answers others judged too, in whatever comparison (of about MOST_LABELS): what is
    said of skill rests on those.
    consensus: how often they choose the answer that the others find better, ties left out.
    accuracy: the chance that their label is the true one, by Dawid and Skene.
    reliability: how sharply they tell better from worse, by Bradley and Terry; 0 is a coin, below 0 the other way round.
    first, longer: how often they choose the answer shown first, and the longer one. ties: share of comparisons.
    seconds: the median. repeated: pairs that they judged again, contradictions: of those, how many the other way round.
    weight: of their comparisons in a reward model with `weights: annotator`. at_chance: surely no better than AT_CHANCE.
    """

    name: str
    comparisons: int
    share: float
    shared: int
    judged: int
    others: Estimate
    consensus: Estimate
    accuracy: float | None
    reliability: Estimate
    first: Estimate
    longer: Estimate
    ties: float
    seconds: float | None
    repeated: int
    contradictions: int
    weight: float
    at_chance: bool
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """The annotators of a data set, most comparisons first; as JSON by orjson.

    comparisons: that named people made; unnamed, ai: the others, by nobody known and by an AI, which take no part.
    slices: by the comparisons' first tag. at_chance: share of comparisons made by annotators who are at chance.
    """

    comparisons: int
    unnamed: int
    ai: int
    overall: Agreement
    slices: dict[str, Agreement]
    pairs: list[PairAgreement]
    scorecards: list[Scorecard]
    at_chance: float


def study(frame: pd.DataFrame) -> Study:
    """Everything that a table of comparisons (tables.py) says about its annotators."""
    said = verdicts(frame)
    of = said.once()
    ai = int((~by_people(frame)).sum())
    unnamed = int((frame["annotator"].isna().to_numpy() & by_people(frame)).sum())
    cards = _scorecards(frame, said, of)
    return Study(
        comparisons=len(frame) - unnamed - ai,
        unnamed=unnamed,
        ai=ai,
        overall=agreement(of),
        slices=agreement_by(of, frame["tag"]),
        pairs=pair_agreements(of),
        scorecards=sorted(cards, key=lambda card: (-card.comparisons, card.name)),
        at_chance=float(sum(card.share for card in cards if card.at_chance)),
    )


# Scorecards -----------------------------------------------------------------------------------------------------------


def _scorecards(frame: pd.DataFrame, said: Labels, of: Labels) -> list[Scorecard]:
    people, number = said.annotator, len(said.names)
    rows = np.bincount(people, minlength=number)
    sampled = _at_most(of)
    accuracy = dawid_skene(sampled).accuracy
    skill = bradley_terry(duels(sampled, frame), number)
    weight = _weights(skill, _decided(said))
    others, shared = _same_as_others(of)
    with_others = _shares(others, of.annotator, of.cluster, number)
    with_consensus = _shares(_with_consensus(sampled, skill.gap), sampled.annotator, sampled.cluster, number)
    first, longer = (
        _shares(frame[name].to_numpy(float)[said.row], people, said.cluster, number) for name in ("chosen_first", "longer_chosen")
    )
    usual_longer = _others_mean(frame["longer_chosen"].to_numpy(float)[said.row], people, number)
    seconds = frame["seconds"].to_numpy(float)[said.row]
    medians = pd.Series(seconds).groupby(people).median()
    usual_seconds = float(medians.median())
    repeated, contradictions = _repetitions(said)
    ties = np.bincount(people, said.label == TIE, number)
    typical = _typical(skill, rows)
    cards = []
    for place in np.flatnonzero(rows):
        known = skill.judged[place] > 0
        value, margin = float(skill.reliability[place]), Z * float(skill.error[place])
        reliability = Estimate(value, value - margin, value + margin) if known else Estimate(None)
        median = float(medians.get(place, np.nan))
        card = Scorecard(
            name=said.names[place],
            comparisons=int(rows[place]),
            share=float(rows[place] / len(said)),
            shared=int(shared[place]),
            judged=int(skill.judged[place]),
            others=with_others[place],
            consensus=with_consensus[place],
            accuracy=float(accuracy[place]) if np.isfinite(accuracy[place]) else None,
            reliability=reliability,
            first=first[place],
            longer=longer[place],
            ties=float(ties[place] / rows[place]),
            seconds=median if np.isfinite(median) else None,
            repeated=int(repeated[place]),
            contradictions=int(contradictions[place]),
            weight=weight.get(said.names[place], 1.0),
            at_chance=bool(skill.judged[place] >= ENOUGH and value + margin < AT_CHANCE),
            advice=(),
        )
        cards.append(replace(card, advice=_advice(card, typical, float(usual_longer[place]), usual_seconds)))
    return cards


def _same_as_others(of: Labels) -> tuple[Array, Places]:
    """The share of the other labels of its item that each label equals, nan without others; and each annotator's shared labels."""
    on_item = np.bincount(of.item, minlength=of.items)[of.item]
    alike = mixed(of.item.astype(np.uint64), of.label.astype(np.uint64))
    equal = pd.Series(alike).groupby(alike).transform("size").to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (equal - 1) / (on_item - 1), np.bincount(of.annotator[on_item > 1], minlength=len(of.names))


def _with_consensus(of: Labels, gap: Array) -> Array:
    """1 where a verdict is for the answer that the others find better, 0 where against it, nan where there is no saying.

    Duels have the chosen answer first, so that a gap above 0 is agreement.
    """
    return np.where(np.isfinite(gap) & (gap != 0) & (of.label != TIE), gap > 0, np.nan)


def _repetitions(said: Labels) -> tuple[Places, Places]:
    """By annotator: items that they judged more than once, and items of which they said both FIRST and SECOND."""
    number = len(said.names)
    found = pd.DataFrame({"key": said.item * max(number, 1) + said.annotator, "label": said.label, "who": said.annotator})
    found = found[found["key"].duplicated(keep=False)]
    again = found.drop_duplicates("key")["who"].to_numpy()
    strict = found[found["label"] != TIE].drop_duplicates(["key", "label"])
    both = strict[strict["key"].duplicated()]["who"].to_numpy()
    return np.bincount(again, minlength=number), np.bincount(both, minlength=number)


def _others_mean(values: Array, who: Places, number: int) -> Array:
    """For each annotator the mean of the others' values, nan ones left out."""
    known = np.isfinite(values)
    sums, sizes = np.bincount(who[known], values[known], number), np.bincount(who[known], minlength=number)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums.sum() - sums) / (sizes.sum() - sizes)


def _shares(values: Array, who: Places, cluster: NDArray[np.uint64], number: int) -> list[Estimate]:
    """The mean of each annotator's values (0 to 1, nan for unknown) with Wilson's interval (1927).

    Values of one cluster are no independent evidence: the interval counts as many of them as would vary so much if they were
    (the design effect of Kish 1965, with the variance between clusters).
    """
    known = np.isfinite(values)
    values, who, cluster = values[known], who[known], cluster[known]
    size = np.bincount(who, minlength=number).astype(float)
    both = pd.factorize(mixed(cluster, who.astype(np.uint64)))[0]
    clusters = np.bincount(who[np.unique(both, return_index=True)[1]], minlength=number)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(who, values, number) / size
        off = np.bincount(both, values - mean[who]) ** 2
        person = np.zeros(len(off), np.int64)
        person[both] = who
        variance = np.bincount(person, off, number) / size**2 * clusters / (clusters - 1)
        effective = np.clip(mean * (1 - mean) / variance, 1, size)
    effective = np.where(np.isfinite(effective), effective, clusters)
    return [_wilson(*one) if one[1] else Estimate(None) for one in zip(mean.tolist(), effective.tolist(), strict=True)]


def _wilson(mean: float, size: float) -> Estimate:
    middle = (mean + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * np.sqrt(mean * (1 - mean) / size + Z**2 / (4 * size**2))
    return Estimate(mean, min(max(0.0, float(middle - half)), mean), max(min(1.0, float(middle + half)), mean))


# What to do -----------------------------------------------------------------------------------------------------------


def _advice(card: Scorecard, typical: float, usual_longer: float, usual_seconds: float) -> tuple[str, ...]:
    """What to do, the most urgent first. typical: reliability; usual_longer: how often the others choose the longer answer."""
    found: list[str] = []
    sure = card.judged >= ENOUGH and card.reliability.value is not None
    high = card.reliability.high or 0.0
    if not sure:
        found.append(
            f"Others judged the answers of only {card.judged} of their comparisons: give {ENOUGH} or more to a second annotator "
            "before you rely on them."
        )
    elif high < 0:
        found.append("They choose what the others find worse: look for swapped answers in their import or their instructions.")
    elif card.at_chance:
        found.append("Their verdicts are hardly better than a coin's: leave them out, and look at some of them together.")
    elif high < typical / 2:
        found.append(
            f"Much less reliable than the others ({card.reliability.value:.2f}, usual is {typical:.2f}): go through the "
            "guidelines with them, and let them count less (reward_model.weights: annotator)."
        )
    if (side := _beyond(card.first, 0.5)) is not None:
        found.append(
            f"They choose the answer shown {'first' if side > 0 else 'last'} too often ({_percent(card.first, side)}): shuffle the "
            "answers, and ask them to read both."
        )
    if np.isfinite(usual_longer) and (side := _beyond(card.longer, usual_longer)) is not None:
        usual = usual_longer if side > 0 else 1 - usual_longer
        found.append(
            f"They choose the {'longer' if side > 0 else 'shorter'} answer more often than the others ({_percent(card.longer, side)}, "
            f"usual is {usual:.0%}): tell them what length is worth."
        )
    if card.seconds is not None and card.seconds < HASTE * usual_seconds:
        found.append(f"{card.seconds:.0f} seconds at the median, usual is {usual_seconds:.0f}: ask whether they read the answers.")
    if card.repeated and (_wilson(card.contradictions / card.repeated, card.repeated).low or 0) > FICKLE:
        found.append(f"Of {card.repeated} pairs that they judged again, {card.contradictions} came out the other way round: ask why.")
    return tuple(found or ["Nothing to do."])


def _beyond(share: Estimate, usual: float) -> int | None:
    """1 where a share surely lies more than BIAS above what is usual, -1 below it, None otherwise."""
    if share.low is None or share.high is None:
        return None
    return 1 if share.low > usual + BIAS else -1 if share.high < usual - BIAS else None


def _percent(share: Estimate, side: int) -> str:
    value = share.value or 0.0
    return f"{value if side > 0 else 1 - value:.0%}"


def _typical(skill: Reliability, rows: Places) -> float:
    """The median over comparisons of the reliability of who made them; of those whom others can judge."""
    known = np.flatnonzero(skill.judged >= ENOUGH)
    if not len(known):
        return 0.0
    order = known[np.argsort(skill.reliability[known], kind="stable")]
    upto = np.cumsum(rows[order])
    return float(skill.reliability[order[np.searchsorted(upto, upto[-1] / 2)]])


# Weights --------------------------------------------------------------------------------------------------------------


def annotator_weights(frame: pd.DataFrame) -> dict[str, float]:
    """How much each named annotator's comparisons count in a reward model's loss, 1 on average over the comparisons.

    A weight is proportional to the annotator's reliability beta, and 0 where that is below 0. Reason: if k chooses with
    probability sigmoid(beta_k d), the likelihood of a verdict moves d by beta_k (1 - sigmoid(beta_k d)), for close
    answers beta_k / 2; the loss of an unweighted one moves it by 1 / 2. So beta_k is how much the verdict ought to count.
    It is also the log-odds by which experts' votes are best added up (Nitzan and Paroush 1982).
    Annotators of whom others' verdicts say nothing count 1, and so does everyone where nobody is reliable.
    """
    of = labels(frame)
    sampled = _at_most(of)
    return _weights(bradley_terry(duels(sampled, frame), len(of.names)), _decided(of))


def _decided(of: Labels) -> Mapping[str, int]:
    """Comparisons that are no ties, by annotator: a reward model is trained on those."""
    return dict(zip(of.names, np.bincount(of.annotator[of.label != TIE], minlength=len(of.names)).tolist(), strict=True))


def _weights(skill: Reliability, rows: Mapping[str, int]) -> dict[str, float]:
    number = np.array([rows[name] for name in rows], float)
    trust = np.maximum(skill.reliability, 0.0)
    known = (skill.judged > 0) & (number > 0)
    mean = trust[known] @ number[known] / number[known].sum() if known.any() else 0.0
    weights = np.where(known & (mean > 0), trust / (mean or 1.0), 1.0)
    return {name: float(weight) for name, weight, count in zip(rows, weights, number, strict=True) if count}


def _at_most(of: Labels) -> Labels:
    """All labels, or about MOST_LABELS of them: whole groups of prompts, and those that somebody with few labels judged."""
    if len(of) <= MOST_LABELS:
        return of
    drawn = (of.cluster * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    rare = np.bincount(of.annotator, minlength=len(of.names))[of.annotator] < RARE
    return of.where((drawn < np.uint64(2**24 * MOST_LABELS / len(of))) | np.isin(of.cluster, of.cluster[rare]))

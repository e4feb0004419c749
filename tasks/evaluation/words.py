"""What an evaluation found, in words and numbers for people: used by the page and by its Markdown twin alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.config import JudgeKind
from tasks.evaluation.answers import Verdict
from tasks.evaluation.result import Evaluation, OverOptimisation, WinRate
from tasks.training.intervals import Interval

Mood = Literal["good", "bad", "open"]
"""How a finding is marked, beside its words."""

DECIDES: dict[JudgeKind, str] = {
    "reward_model": "The independent judge decides, a reward model trained on other comparisons than the policy's own.",
    "language_model": "A language model decides, asked in both orders: what it says in one only is a tie.",
    "people": "People decide: the majority of those who judged a pair, a split vote being a tie.",
}
"""Whose word the win rates are."""
_PREFER: dict[JudgeKind, str] = {
    "reward_model": "The independent judge prefers",
    "language_model": "The language model that judges prefers",
    "people": "People prefer",
}

_NBSP = "\u00a0"


@dataclass(frozen=True)
class Sentence:
    """mood: how it is marked. head: the finding in a few words. body: what it rests on."""

    mood: Mood
    head: str
    body: str


def percent(share: float) -> str:
    """0.7831 as 78.3 %."""
    return f"{share * 100:.1f}{_NBSP}%"


def whole_percent(share: float) -> str:
    return f"{share * 100:.0f}{_NBSP}%"


def share_or_dash(share: float | None) -> str:
    return "–" if share is None else percent(share)


def number(value: float | None, digits: int = 2) -> str:
    """With a real minus sign; a dash for what is not known."""
    if value is None:
        return "–"
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:.{digits}f}".replace("-", "−")


def share_with_interval(found: Interval) -> str:
    """78.3 % (73.5 to 82.7)."""
    return f"{percent(found[0])} ({found[1] * 100:.1f} to {found[2] * 100:.1f})"


def gain_with_interval(found: Interval) -> str:
    """+1.24 (1.02 to 1.45)."""
    sign = "+" if found[0] > 0 else ""
    return f"{sign}{number(found[0])} ({number(found[1])} to {number(found[2])})"


def rate(found: WinRate) -> str:
    return share_with_interval((found.rate, found.low, found.high))


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def verdict(given: Verdict) -> str:
    """language model: tie (shown first win, shown second loss)."""
    text = f"{given.judge.replace('_', ' ')}: {given.outcome}"
    if given.by_order is None:
        return text
    first, second = (order or "unreadable" for order in given.by_order)
    return text if first == second == given.outcome else f"{text} (shown first {first}, shown second {second})"


def headline(found: Evaluation) -> Sentence:
    """Is the policy better than the baseline, by the judge?"""
    won = found.win_rate
    body = (
        f"{_PREFER[found.decided_by]} the policy's answer on {percent(won.rate)} of {found.prompts} held-out prompts "
        f"({whole_percent(found.confidence)} interval {won.low * 100:.1f} to {won.high * 100:.1f}; {won.wins} wins, {won.losses} losses, "
        f"{won.ties} ties counted half; sign test {p_value(won.sign_test)})."
    )
    if won.low > 0.5:
        return Sentence("good", f"The policy beats the {found.baseline}", body)
    if won.high < 0.5:
        return Sentence("bad", f"The policy loses to the {found.baseline}", body)
    return Sentence("open", f"No difference shown between the policy and the {found.baseline}", body)


def reach(found: Evaluation) -> str:
    """What is left at equal lengths, and how small a difference these prompts could have shown."""
    return (
        f"If both wrote equally long answers, the judge would prefer the policy's on {share_with_interval(found.length_controlled)}. "
        f"Of policies that truly win {percent(found.detectable)} of the time, so many prompts find four in five to be better."
    )


def over_optimisation(found: Evaluation) -> Sentence:
    """Reward hacking or not, for the registered checkpoint; then what the last round adds."""
    seen = found.over_optimisation
    own, judge = seen.registered_own_gain, seen.registered_judge_gain
    figures = f"own reward {gain_with_interval(own)}, independent judge {gain_with_interval(judge)}"
    if seen.registered_gold_gain:
        figures += f", gold {gain_with_interval(seen.registered_gold_gain)}"
    body = f"The registered checkpoint (round {found.chosen_round}) over SFT, in standard deviations of SFT's scores: {figures}."
    body += _last_round(found, seen)
    if seen.hacked:
        fell = "fell" if judge[2] < 0 else "did not rise"
        return Sentence("bad", f"Reward hacking: the policy's own reward rose, the independent judge's {fell}", body)
    if own[1] > 0:
        return Sentence("good", "No sign of reward hacking: the policy's own reward and the independent judge's both rose", body)
    return Sentence("open", "The policy's own reward did not rise for sure: there is nothing that could be hacked", body)


def fall(found: Evaluation) -> Sentence | None:
    """The last round's fall from its best round, where there is one."""
    seen = found.fall
    if seen is None or not seen.fell:
        return None
    best = "the SFT model" if seen.best_round == 0 else f"round {seen.best_round}"
    figures = f"judge {gain_with_interval(seen.judge)}, own reward {gain_with_interval(seen.own)}"
    if seen.gold:
        figures += f", gold {gain_with_interval(seen.gold)}"
    body = (
        f"From {best}, which the judge likes best on the validation prompts, to the last round ({found.rounds}), in standard deviations "
        f"of SFT's scores: {figures}. The judge's interval allows for having chosen the best of several rounds."
    )
    if found.chosen_round == found.rounds:
        body += (
            " That refuses nothing: gates ask whether the policy is better than what it would replace. policy.choose: judge keeps the best."
        )
        return Sentence("bad", "The registered round fell from the policy's best one, while its own reward did not", body)
    head = f"The last round fell from the policy's best one, while its own reward did not; round {found.chosen_round} is registered"
    return Sentence("open", head, body)


def _last_round(found: Evaluation, seen: OverOptimisation) -> str:
    if found.rounds == found.chosen_round:
        return ""
    figures = f"own reward {gain_with_interval(seen.own_gain)}, judge {gain_with_interval(seen.judge_gain)}"
    if seen.gold_gain:
        figures += f", gold {gain_with_interval(seen.gold_gain)}"
    return f" At the last round ({found.rounds}), on the validation prompts: {figures}."


NOTABLE = 0.05
"""A habit is told where the policy has it so much more often than SFT, as a share, and for sure."""


def habits(found: Evaluation) -> list[Sentence]:
    """What a policy does that hacks its reward, in words: repeating itself, refusing what it should answer. None where it does not."""
    if found.habits is None:
        return []
    told = []
    policy, sft = found.policy, found.sft
    if found.habits.repetition[1] > NOTABLE:
        body = (
            f"{percent(policy.repetition)} of the word fours of an answer occur in it before; of the SFT model's {percent(sft.repetition)}."
        )
        told.append(Sentence("bad", "The policy repeats itself", body))
    if found.habits.refusal[1] > NOTABLE:
        more = f"So many more than the SFT model: {share_with_interval(found.habits.refusal)}."
        if policy.refused_wrongly is None or sft.refused_wrongly is None:
            head = f"The policy refuses {percent(policy.refused)} of all prompts"
            body = f"The SFT model refuses {percent(sft.refused)}. {more} Nobody says which of them it should refuse."
        else:
            head = f"The policy refuses {percent(policy.refused_wrongly)} of what it should answer"
            body = f"The SFT model refuses {percent(sft.refused_wrongly)} of it. {more}"
        told.append(Sentence("bad", head, body))
    return told


def trust_in_judge(found: Evaluation) -> Sentence:
    """How far the judge's word can be taken."""
    share, low, high = found.judge_accuracy
    body = (
        f"On {found.judge_pairs:,} held-out comparisons made by people the judge prefers the same answer in {percent(share)} "
        f"({low * 100:.1f} to {high * 100:.1f}), the policy's own reward model in {share_with_interval(found.reward_model_accuracy)}."
    )
    floor = None
    if found.prefer_longer is not None:
        floor = max(found.prefer_longer, 1 - found.prefer_longer)
        body += (
            f" Always preferring the longer answer gives {percent(found.prefer_longer)}, the shorter {percent(1 - found.prefer_longer)}."
        )
    if found.judge_calibration:
        body += (
            f" Its calibration error is {number(found.judge_calibration.error, 3)}; among answers to one prompt its score goes with length "
            f"at r = {number(found.judge_calibration.length_correlation)}."
        )
    if found.judge_agrees_with_gold is not None:
        body += f" On these prompts it names the winner that gold names in {percent(found.judge_agrees_with_gold)}."
    if floor is not None and low <= floor:
        return Sentence("bad", "The judge is not surely better than a rule of thumb about length", body)
    return Sentence("good", "The judge agrees with people more often than length alone does", body)

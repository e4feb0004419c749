"""The judges in the report: who was heard, what each said, and what is wrong with each, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tasks.evaluation.result import Evaluation, JudgeName, JudgeReport, WinRate
from tasks.evaluation.reward_models import Table
from tasks.evaluation.words import Sentence, number, percent, rate, share_with_interval, trust_in_judge
from tasks.training.intervals import Interval

NAMES: dict[JudgeName, str] = {
    "reward_model": "independent reward model",
    "language_model": "language model",
    "people": "people",
    "gold": "gold, the known truth",
}
LEANS = 0.1
"""A judge that prefers what stands first, or is longer, by so much more often than it should, leans."""
WAVERS = 0.2
"""Share of pairs judged otherwise in the other order from which on a judge wavers."""


def trust(found: Evaluation) -> Sentence:
    """How far the word of the judge that decided can be taken."""
    deciding = found.deciding
    if found.decided_by == "reward_model" or deciding is None:
        return trust_in_judge(found)
    if found.decided_by == "people":
        return _trust_in_people(found, deciding)
    faults = list(wrong_with(deciding))
    body = f"On {deciding.pairs:,} held-out comparisons made by people {deciding.about} prefers the same answer in "
    body += f"{share_with_interval(deciding.accuracy)}." if deciding.accuracy else "a share that nobody could measure."
    body += f" It {'; it '.join(faults)}." if faults else ""
    if deciding.accuracy is None or deciding.accuracy[1] <= 0.5:
        return Sentence("bad", "The judge is not surely better than drawing lots", body)
    return Sentence("open" if faults else "good", "The judge agrees with people more often than chance does", body)


def _trust_in_people(found: Evaluation, people: JudgeReport) -> Sentence:
    body = f"{people.about} judged {people.prompts} of {found.prompts + found.unjudged} prompts; the others are left out."
    if people.agreement is None:
        return Sentence("open", "People decided, each pair judged by one of them", body)
    body += f" Two of them say the same of {share_with_interval(people.agreement)} of {people.pairs} pairs that two or more judged."
    if people.kappa:
        body += f" Krippendorff's alpha is {_bare(people.kappa)}."
    if people.kappa and people.kappa[1] <= 0:
        return Sentence("bad", "People decided, and do not surely agree beyond chance", body)
    return Sentence("good", "People decided, and agree with each other", body)


def wrong_with(judge: JudgeReport) -> Iterator[str]:
    """What speaks against a judge's word, each as what follows on "it"."""
    if judge.judge == "gold":
        return
    if judge.prompts == 0:
        yield "has judged none of these answers"
    if judge.accuracy is not None and judge.accuracy[1] <= 0.5:
        yield "is not surely better than drawing lots"
    elif judge.accuracy is None and judge.judge != "people":
        yield "was not measured: there is no comparison that people decided"
    if judge.unparsable:
        yield f"gave {judge.unparsable} of {judge.orders} verdicts that can't be read"
    if judge.prefers_first is not None and abs(judge.prefers_first - 0.5) > LEANS:
        which = "first" if judge.prefers_first > 0.5 else "second"
        yield f"prefers what is shown {which} in {percent(max(judge.prefers_first, 1 - judge.prefers_first))}"
    if judge.orders_disagree is not None and judge.orders_disagree > WAVERS:
        yield f"says something else in {percent(judge.orders_disagree)} when the order is turned"
    if judge.prefers_longer is not None and judge.people_prefer_longer is not None:
        more = judge.prefers_longer - judge.people_prefer_longer
        if abs(more) > LEANS:
            which, share, people = ("longer", judge.prefers_longer, judge.people_prefer_longer)
            if more < 0:
                which, share, people = ("shorter", 1 - share, 1 - people)
            yield f"prefers the {which} answer in {percent(share)}, and people do in {percent(people)}"


def table(found: Evaluation) -> Table | None:
    """A column a judge; None where nothing is known of any."""
    if not found.judges:
        return None
    names = [f"{_name(judge)}{', decides' if judge.judge == found.decided_by else ''}" for judge in found.judges]
    rows = [[title, *cells] for title, figure in _FIGURES.items() if any(cells := [figure(judge) for judge in found.judges])]
    if found.baseline_version is not None:
        rows.insert(0, [f"win rate over {found.baseline}", *(_rate(judge.win_rate) for judge in found.judges)])
    note = (
        "Win rates on the prompts of this evaluation. Accuracy: on held-out comparisons that people decided, ties half. Kappa: Cohen's, "
        "with people; people's own is Krippendorff's alpha. The longer wins: of two answers of unequal length, on the same pairs. "
        "Whose orders disagree, or whose word can't be read, has tied. Gold decides nothing."
    )
    return Table("Judges", ["", *names], [[cell or "–" for cell in row] for row in rows], note)


def _rate(found: WinRate | None) -> str:
    return rate(found) if found else ""


_FIGURES: dict[str, Callable[[JudgeReport], str]] = {
    "win rate over SFT model": lambda judge: _rate(judge.win_rate_over_sft),
    "accuracy": lambda judge: share_with_interval(judge.accuracy) if judge.accuracy else "",
    "of comparisons": lambda judge: f"{judge.pairs:,}" if judge.accuracy else "",
    "kappa": lambda judge: _bare(judge.kappa) if judge.kappa else "",
    "the longer wins": lambda judge: "" if judge.prefers_longer is None else percent(judge.prefers_longer),
    "the longer wins, by people": lambda judge: "" if judge.people_prefer_longer is None else percent(judge.people_prefer_longer),
    "the first wins": lambda judge: "" if judge.prefers_first is None else percent(judge.prefers_first),
    "orders disagree": lambda judge: "" if judge.orders_disagree is None else percent(judge.orders_disagree),
    "unreadable": lambda judge: f"{judge.unparsable:,} of {judge.orders:,}" if judge.orders else "",
    "calls": lambda judge: f"{judge.spent.calls:,}" if judge.orders else "",
    "known before": lambda judge: f"{judge.spent.cached:,}" if judge.orders else "",
    "tokens": lambda judge: f"{judge.spent.tokens:,}" if judge.orders else "",
    "seconds": lambda judge: number(judge.spent.seconds, 1) if judge.orders else "",
}
"""What is told of each judge; "" where nobody measured."""


def faults(found: Evaluation) -> list[str]:
    """What is wrong with each judge, a sentence for each of whom anything is."""
    return [f"{_name(judge)}: it {'; it '.join(wrong)}." for judge in found.judges if (wrong := list(wrong_with(judge)))]


def _name(judge: JudgeReport) -> str:
    return f"{NAMES[judge.judge]}{f' ({judge.about})' if judge.judge in ('language_model', 'people') else ''}"


def _bare(found: Interval) -> str:
    return f"{number(found[0])} ({number(found[1])} to {number(found[2])})"

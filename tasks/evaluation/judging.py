"""The judges in the report: who was heard, what each said, and what is wrong with each, in words."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.evaluation.result import Evaluation, JudgeName, JudgeReport
from tasks.evaluation.reward_models import Table
from tasks.evaluation.words import Sentence, number, percent, rate, share_or_dash, share_with_interval, trust_in_judge
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
    """A row a judge; None where nothing is known of any."""
    if not found.judges:
        return None
    columns = ["judge", f"over {found.baseline}", "over SFT model", "accuracy", "kappa", "the longer wins", "the first wins"]
    columns += ["orders disagree", "unreadable", "replies, known before", "tokens", "seconds", "what is wrong"]
    note = (
        "Win rates on the prompts of this evaluation. Accuracy: on held-out comparisons that people decided, ties half. Kappa: Cohen's, "
        "with people; people's own is Krippendorff's alpha. The longer wins: by the judge, and by people on the same pairs. Whose orders "
        "disagree, or whose word can't be read, has tied. Gold decides nothing."
    )
    return Table("Judges", columns, [_row(judge, judge.judge == found.decided_by) for judge in found.judges], note)


def _row(judge: JudgeReport, decides: bool) -> list[str]:
    which = f"{NAMES[judge.judge]}{f' ({judge.about})' if judge.judge in ('language_model', 'people') else ''}"
    longer = share_or_dash(judge.prefers_longer)
    if judge.people_prefer_longer is not None:
        longer += f", people {percent(judge.people_prefer_longer)}"
    spent = judge.spent
    asked = judge.judge == "language_model"
    faults = [fault[0].upper() + fault[1:] for fault in wrong_with(judge)]
    return [
        f"{which}, decides" if decides else which,
        rate(judge.win_rate) if judge.win_rate else "–",
        rate(judge.win_rate_over_sft) if judge.win_rate_over_sft else "–",
        f"{share_with_interval(judge.accuracy)} of {judge.pairs:,}" if judge.accuracy else "–",
        _bare(judge.kappa) if judge.kappa else "–",
        longer,
        share_or_dash(judge.prefers_first),
        share_or_dash(judge.orders_disagree),
        f"{judge.unparsable} of {judge.orders}" if judge.orders else "–",
        f"{spent.calls:,}, {spent.cached:,}" if asked else "–",
        f"{spent.tokens:,}" if asked else "–",
        number(spent.seconds, 1) if asked else "–",
        ". ".join(faults) + "." if faults else "–",
    ]


def _bare(found: Interval) -> str:
    return f"{number(found[0])} ({number(found[1])} to {number(found[2])})"

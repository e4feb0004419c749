"""The report that people read: one self-contained page, and the same in Markdown.

The page holds its pictures, runs no script and asks nothing of any other place. Every text from a model or from data
is untrusted: jinja2 escapes it in the page, `markdown_text` in Markdown.
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.evaluation import judging, reward_models, words
from tasks.evaluation.answers import Judged, Outcome, conversation
from tasks.evaluation.plots import PLOTS
from tasks.evaluation.result import MARKDOWN, PAGE, Evaluation, Means, WinRate

LONGEST_TEXT = 1500
"""Characters of a text that are shown; a longer one is cut and says so."""
MOST_ANSWERS = 600
"""Rows of the list of all answers; with those that it leaves out, a page would pass two megabytes."""
LISTED_TEXT = 400
"""Characters of a text in that list."""


class Gate(Protocol):
    """What was required for promotion, what was found, and whether that is enough."""

    @property
    def name(self) -> str: ...
    @property
    def required(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def passed(self) -> bool: ...


class Decision(Protocol):
    """What became of the policy: promoted, awaiting approval, not promoted, already champion. previous: the champion until then."""

    @property
    def decision(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def previous(self) -> str | None: ...
    @property
    def reasons(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class StageLine:
    """A stage of the run, as people read it: what its work took, and a word on how it went (done, unchanged).

    share: of the time of all stages. memory: at its peak. cost: at the price of an hour. "" for what nobody measured.
    """

    name: str
    time: str
    share: float
    figures: str
    note: str = ""
    memory: str = ""
    cost: str = ""


@dataclass(frozen=True)
class WholeRun:
    """What a report tells beyond the evaluation, once the run is over. data, lineage: what by name. spent: a sentence on time and cost."""

    decision: Decision | None = None
    gates: Sequence[Gate] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageLine] = ()
    spent: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A prompt with two answers side by side. lead: how much the judge prefers the policy's, in its rewards."""

    row: Judged
    lead: float


def examples(rows: Sequence[Judged], best: int = 7, worst: int = 7, drawn: int = 6) -> dict[str, list[Example]]:
    """Twenty prompts by how the judge sees them: the policy's best, its worst, and a draw of the rest. None twice."""
    ordered = sorted((Example(row, row.policy.judge - row.rival.judge) for row in rows), key=lambda example: -example.lead)
    share = len(ordered) / (best + worst + drawn)
    if share < 1:  # too few prompts for all three
        best, worst = int(best * share), int(worst * share)
        drawn = len(ordered) - best - worst
    rest = ordered[best : len(ordered) - worst]
    middle = random.Random(0).sample(rest, drawn)
    found = {
        "Where the judge likes the policy's answer most": ordered[:best],
        "Where it likes the policy's answer least": ordered[len(ordered) - worst :][::-1],
        "Drawn at random from the rest": sorted(middle, key=lambda example: -example.lead),
    }
    return {title: group for title, group in found.items() if group}


@dataclass(frozen=True)
class Listed:
    """All answers with one verdict. left_out: how many more there are than the page has room for."""

    title: str
    rows: Sequence[Judged]
    left_out: int


def listed(rows: Sequence[Judged], most: int = MOST_ANSWERS) -> list[Listed]:
    """Every prompt under the deciding judge's verdict, in their order; of a long list, each verdict's share of `most`."""
    titles: dict[Outcome | None, str] = {"win": "won", "loss": "lost", "tie": "tied", None: "not judged"}
    found = []
    for outcome, title in titles.items():
        those = [row for row in rows if row.judge == outcome]
        kept = those if len(rows) <= most else those[: len(those) * most // len(rows)]
        if those:
            found.append(Listed(title, kept, len(those) - len(kept)))
    return found


def render_report(evaluation: Evaluation, answers: Sequence[Judged], plots: Path, run: WholeRun | None = None) -> str:
    """The page as HTML. plots: the folder that `plots.draw` wrote to; a picture that is not there is left out."""
    pictures = {path.stem: _data_uri(path) for name in PLOTS if (path := plots / name).is_file()}
    return _templates(True).get_template("report.html.j2").render(_context(evaluation, answers, run), pictures=pictures)


def render_markdown(evaluation: Evaluation, answers: Sequence[Judged], run: WholeRun | None = None) -> str:
    """The same in GitHub's Markdown, without pictures and without the list of all answers."""
    return _templates(False).get_template("report.md.j2").render(_context(evaluation, answers, run))


def write_report(evaluation: Evaluation, answers: Sequence[Judged], plots: Path, folder: Path, run: WholeRun | None = None) -> None:
    """report.html and report.md; without the run, as far as they can be told before the decision."""
    (folder / PAGE).write_text(render_report(evaluation, answers, plots, run), encoding="utf-8")
    (folder / MARKDOWN).write_text(render_markdown(evaluation, answers, run), encoding="utf-8")


def _context(found: Evaluation, answers: Sequence[Judged], run: WholeRun | None) -> dict[str, Any]:
    """What both templates are given."""
    run = run or WholeRun()
    return {
        "found": found,
        "run": run,
        "decision": run.decision and decided(run.decision),
        "headline": words.headline(found),
        "reach": words.reach(found),
        "hacking": words.over_optimisation(found),
        "fall": words.fall(found),
        "habits": words.habits(found),
        "trust": judging.trust(found),
        "judges": judging.table(found),
        "judge_faults": judging.faults(found),
        "decides": words.DECIDES[found.decided_by],
        "reward_model": reward_models.trust_in_reward_model(found.scorers),
        "reward_tables": reward_models.tables(found.scorers, found.confidence),
        "comparisons": _comparisons(found),
        "models": _models(found),
        "examples": examples(answers),
        "listed": listed(answers),
    }


def decided(decision: Decision) -> words.Sentence:
    """The decision in words; a refusal's reasons are for the gates' table to tell in full."""
    version = f"Version {decision.version} of {decision.model}"
    if decision.decision == "not promoted":
        return words.Sentence(
            "bad", "Not promoted", f"{version} stays a challenger. What speaks against it: {'; '.join(decision.reasons)}."
        )
    if decision.decision == "promoted":
        instead = f", in place of version {decision.previous}" if decision.previous else ", the first one"
        return words.Sentence("good", "Promoted", f"{version} is now the champion{instead}.")
    if decision.decision == "awaiting approval":
        body = f"{version}: every gate holds. A person has the last word: prefline promote {decision.version} --approve NAME."
        return words.Sentence("open", "Awaiting approval", body)
    return words.Sentence("good", decision.decision.capitalize(), f"{version} was the champion before this run.")


@dataclass(frozen=True)
class Comparison:
    """A row of the win-rate table: the policy against one other model."""

    other: str
    judge: WinRate
    gold: WinRate | None
    length: float


def _comparisons(found: Evaluation) -> list[Comparison]:
    over_sft = Comparison("SFT model", found.win_rate_over_sft, found.win_rate_over_sft_gold, found.sft.length)
    besides = [Comparison(one.name, one.win_rate, one.win_rate_gold, one.means.length) for one in found.against if one.win_rate]
    if found.baseline_means is None:
        return [over_sft, *besides]
    return [Comparison(found.baseline, found.win_rate, found.win_rate_gold, found.baseline_means.length), over_sft, *besides]


def _models(found: Evaluation) -> list[tuple[str, Means]]:
    baseline = [(found.baseline, found.baseline_means)] if found.baseline_means else []
    besides = [(one.name, one.means) for one in found.against]
    return [("policy", found.policy), *baseline, ("SFT model", found.sft), *besides]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def plain_text(text: str, most: int = LONGEST_TEXT) -> str:
    """A text as it can be shown: cut where it is very long, without control characters and lone surrogates."""
    shown = text if len(text) <= most else f"{text[:most]} … (cut: {len(text):,} characters)"
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", shown)


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is, in a table's cell too: on one line, nothing in it is mark-up, link or HTML."""
    line = " ".join(plain_text(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line)
    return re.sub(r"(?i)(?<=\w)(:)(?=//)|(?<=\bwww)(\.)|(@)", lambda mark: f"&#{ord(mark[0])};", line)


@cache
def _templates(for_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=for_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        plain=plain_text,
        short=lambda text: plain_text(text, LISTED_TEXT),
        md=markdown_text,
        percent=words.percent,
        whole_percent=words.whole_percent,
        number=words.number,
        rate=words.rate,
        p_value=words.p_value,
        share=words.share_with_interval,
        said=words.verdict,
        gained=words.gain_with_interval,
        share_or_dash=words.share_or_dash,
        conversation=conversation,
    )
    return environment

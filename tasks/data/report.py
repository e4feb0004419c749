"""Stage "report" of dvc.yaml, and the page about the data: what is there, who judged it, which rules it breaks.

The page holds its pictures, runs no script and asks nothing of any other place. Every text and name in it is somebody
else's: jinja2 escapes them all.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.data import annotator_plots, prepare
from tasks.data.agreement import Estimate
from tasks.data.annotators import Study, study
from tasks.data.findings import Finding, worst_first
from tasks.data.importers import place
from tasks.data.records import Comparison, Demonstration, read_jsonl
from tasks.data.statistics import describe
from tasks.data.tables import Known, comparison_table, demonstration_table, mark_near
from tasks.data.texts import markdown_text, shown
from tasks.data.tokens import Tokens
from tasks.errors import PreflineError

STATISTICS, ANNOTATORS, PAGE = "statistics.json", "annotators.json", "data.html"
ROWS = 8
"""Offending rows of a rule whose texts the page shows."""
LONGEST = 280
"""Characters of a text that it shows."""
NAMES = 30
"""Sources, tags and so on that it lists, and annotators."""


def report(prepared: Path, out: Path) -> None:
    """What prepared data are like: statistics.json, annotators.json, data.html. out takes its place once all is written."""
    if not (prepared / prepare.COUNTS).is_file():
        raise PreflineError(f"{prepared}: no prepared data there.", "Have the data made first: prefline stage snapshot, or dvc repro.")
    comparisons, demonstrations = read_tables(prepared)
    statistics, found = statistics_of(prepared, comparisons, demonstrations), study(comparisons)
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / STATISTICS).write_text(json.dumps(statistics, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (work / ANNOTATORS).write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    (work / PAGE).write_text(render(statistics, found), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    work.replace(out)


def read_tables(folder: Path, tokens: Tokens | None = None, known: Known | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Comparisons and demonstrations of prepared data as tables, read once as a stream."""
    comparisons = comparison_table(read_jsonl(folder / prepare.COMPARISONS, Comparison), tokens, known)
    demonstrations = demonstration_table(read_jsonl(folder / prepare.DEMONSTRATIONS, Demonstration), tokens, known)
    near = folder / prepare.NEAR
    mark_near(comparisons, pd.read_parquet(near) if near.exists() else None)
    return comparisons, demonstrations


def statistics_of(folder: Path, comparisons: pd.DataFrame, demonstrations: pd.DataFrame) -> dict[str, Any]:
    """What preparing counted, and what the tables say."""
    counts: dict[str, Any] = json.loads((folder / prepare.COUNTS).read_text(encoding="utf-8"))
    return counts | describe(comparisons, demonstrations)


# Rows ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a row's texts: each with what it is."""

    texts: tuple[tuple[str, str], ...]


def excerpts(folder: Path, findings: Sequence[Finding]) -> dict[tuple[str, int], Excerpt]:
    """Of the first rows that broken rules name, by the finding's table and the row's line in the prepared file."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for finding in findings:
        if not finding.passed:
            wanted[finding.table].update(row.record for row in finding.first[:ROWS])
    files = {"counts": prepare.REJECTS, "comparisons": prepare.COMPARISONS, "demonstrations": prepare.DEMONSTRATIONS}
    found = {}
    for table, numbers in wanted.items():
        with (folder / files[table]).open("rb") as lines:
            last = max(numbers, default=0)
            for number, line in enumerate(lines, 1):
                if number > last:
                    break
                if number in numbers:
                    found[table, number] = _excerpt(orjson.loads(line))
    return found


def _excerpt(row: dict[str, Any]) -> Excerpt:
    if "row" in row:
        text = row["row"] if isinstance(row["row"], str) else orjson.dumps(row["row"]).decode()
        return Excerpt((("row", shown(text, 2 * LONGEST)),))
    parts = ("prompt", "chosen", "rejected") if "chosen" in row else ("prompt", "answer")
    return Excerpt(tuple((part, shown(_conversation(row[part], "user" if part == "prompt" else "assistant"), LONGEST)) for part in parts))


def _conversation(messages: Sequence[Mapping[str, str]], speaker: str) -> str:
    """Messages as text: a single one of the usual speaker as it is, others with who speaks."""
    if len(messages) == 1 and messages[0]["role"] == speaker:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


# The page -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """mood: good, open or bad, for its colour. head: in a few words. body: what it rests on."""

    mood: str
    head: str
    body: str


def render(
    statistics: Mapping[str, Any],
    found: Study,
    findings: Sequence[Finding] | None = None,
    rows: Mapping[tuple[str, int], Excerpt] | None = None,
) -> str:
    """The page as HTML. findings: of the contract, None where it was not asked. rows: from `excerpts`."""
    ordered = worst_first(list(findings or ()))
    context = {
        "statistics": statistics,
        "kinds": {kind: statistics[kind] for kind in ("comparisons", "demonstrations")},
        "study": found,
        "verdict": _verdict(findings) if findings is not None else None,
        "broken": [finding for finding in ordered if not finding.passed],
        "findings": ordered,
        "rows": rows or {},
        "pictures": _pictures(found),
        "most_rows": ROWS,
        "most_names": NAMES,
    }
    return _template().render(context)


def _verdict(findings: Sequence[Finding]) -> Verdict:
    stops = sum(finding.stops for finding in findings)
    warnings = sum(not finding.passed for finding in findings) - stops
    rules = f"{len(findings)} rules were checked"
    warned = f"{warnings} {'warns' if warnings == 1 else 'warn'}"
    if stops:
        body = f"{rules}: {stops} {'is' if stops == 1 else 'are'} broken, {warned}. Nothing was trained on these data."
        return Verdict("bad", "Refused", body)
    if warnings:
        return Verdict("open", "Accepted with warnings", f"{rules}: {warned}, none that stops is broken.")
    return Verdict("good", "Accepted", f"{rules}: all of them hold.")


@dataclass(frozen=True)
class Picture:
    """A plot as a data: address. width: on the page, in its pixels; the file has half as many again."""

    uri: str
    width: int


def _pictures(found: Study) -> dict[str, Picture]:
    """By what they show; none where there is nothing to draw."""
    drawn = {
        "Annotators side by side, with 95 % intervals": annotator_plots.scorecards(found),
        "How far every two annotators agree": annotator_plots.pairs(found),
    }
    return {title: _picture(png) for title, png in drawn.items() if png}


def _picture(png: bytes) -> Picture:
    width = int.from_bytes(png[16:20], "big")  # the first field of the first chunk, IHDR
    return Picture("data:image/png;base64," + base64.b64encode(png).decode("ascii"), 2 * width // 3)


def annotators_markdown(found: Study) -> str:
    """The annotators as a table, for places that show Markdown."""
    lines = [
        "| annotator | comparisons | agree with others | reliability | first chosen | longer chosen | what to do |",
        "|-|-|-|-|-|-|-|",
    ]
    for card in found.scorecards[:NAMES]:
        figures = (percent(card.others), number(card.reliability), percent(card.first), percent(card.longer))
        advice = markdown_text(" ".join(card.advice), 1000)
        lines.append(f"| {markdown_text(card.name)} | {card.comparisons:,} | {' | '.join(figures)} | {advice} |")
    if more := len(found.scorecards) - NAMES:
        lines += [f"| and {more:,} more | | | | | | |"] if more > 0 else []
    alpha = found.overall.alpha
    together = f"{number(alpha)} over {found.overall.items:,} pairs" if alpha.value is not None else "not known: no pair was judged by two"
    return "\n".join([f"Krippendorff's alpha: {together}.", "", *lines]) + "\n"


def percent(found: Estimate) -> str:
    """78 % (74 to 83); a dash for what is not known."""
    if found.value is None:
        return "–"
    between = "" if found.low is None or found.high is None else f" ({100 * found.low:.0f} to {100 * found.high:.0f})"
    return f"{100 * found.value:.0f} %{between}"


def number(found: Estimate) -> str:
    """0.41 (0.38 to 0.44); a dash for what is not known."""
    if found.value is None:
        return "–"
    between = "" if found.low is None or found.high is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.2f}{between}".replace("-", "−")


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=percent,
        estimate=number,
        count=lambda value: "–" if value is None else f"{value:,}",
        percent=lambda value: "–" if value is None else f"{100 * value:.1f} %",
        name=lambda value: shown(str(value), 120),
        prose=lambda value: shown(str(value), 1000),
        title=lambda rule: str(rule).replace(".", ": ").replace("_", " "),
        place=lambda row: place(shown(row.source, 200), row.line),
    )
    return environment.get_template("data.html.j2")

"""What became of each rule of the contract, in words: the rows to blame by file and line, and the error that refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from tasks.config import PipelineConfig
from tasks.data.checks import Outcome
from tasks.data.contract import RULES, Rule, Severity
from tasks.data.importers import place
from tasks.data.tables import Table
from tasks.errors import DataRefused

SHOWN = 20
"""Offending rows that a finding names."""
KEPT = 10_000
"""Offending rows that are listed, of all rules together."""
ALSO = 8
"""Further broken rules that an error lists."""


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that is to blame. source, line: where it came from. reason: in words. record: its line in the prepared file."""

    rule: str
    source: str
    line: str
    reason: str
    record: int = 0


@dataclass(frozen=True)
class Finding:
    """What became of a rule. found, allowed: as shown to people. rows: how many are to blame. first: the first of them."""

    rule: str
    table: str
    severity: Severity
    passed: bool
    found: str
    allowed: str
    says: str
    advice: str
    rows: int
    of: int
    first: list[Offender]

    @property
    def stops(self) -> bool:
        return self.severity == "stop" and not self.passed


@dataclass
class Rejects:
    """The rows that gave no record. counts: by the kind of record that was looked for. first: of each kind, KEPT at most."""

    counts: dict[str, int] = field(default_factory=lambda: {"comparisons": 0, "demonstrations": 0})
    first: dict[str, list[Offender]] = field(default_factory=lambda: {"comparisons": [], "demonstrations": []})

    @classmethod
    def read(cls, path: Path) -> Rejects:
        found = cls()
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = orjson.loads(line)
                found.add(row["role"], row["source"], str(row["line"]), row["reason"], number)
        return found

    def add(self, kind: str, source: str, line: str, reason: str, record: int = 0) -> None:
        self.counts[kind] += 1
        if len(self.first[kind]) < KEPT:
            self.first[kind].append(Offender(f"counts.rejected_{kind}", source, line, reason, record))


def judge(
    config: PipelineConfig, tables: Mapping[Table, pd.DataFrame], outcomes: Mapping[str, Outcome], rejects: Rejects
) -> tuple[list[Finding], list[Offender]]:
    """What to tell people: a finding a rule, and the rows to blame, KEPT at most and some of every rule."""
    findings: list[Finding] = []
    offenders: list[list[Offender]] = []
    for rule in RULES:
        table, outcome = tables[rule.table], outcomes.get(rule.key, Outcome(True, None))
        settings = rule.settings(config)
        texts = settings | {"found": _amount(rule, outcome.found), "allowed": _allowed(rule, settings)}
        blamed, rows = _blamed(rule, table, settings, outcome)
        of = len(table)
        if rule.column.startswith("rejected_"):
            kind = rule.column.removeprefix("rejected_")
            blamed, rows = rejects.first[kind], rejects.counts[kind]
            of = rows + int(table[kind].iloc[0])
        offenders.append(blamed)
        findings.append(
            Finding(
                rule=rule.key,
                table=rule.table,
                severity=rule.severity,
                passed=outcome.passed,
                found=texts["found"],
                allowed=texts["allowed"],
                says=(rule.says or rule.row).format(**texts),
                advice=rule.advice,
                rows=rows,
                of=of,
                first=blamed[:SHOWN],
            )
        )
    some = [blamed for blamed in offenders if blamed]
    most = KEPT if sum(map(len, some)) <= KEPT else KEPT // len(some)
    return findings, [offender for blamed in some for offender in blamed[:most]]


def _blamed(rule: Rule, table: pd.DataFrame, settings: dict[str, Any], outcome: Outcome) -> tuple[list[Offender], int]:
    """The rows that break a rule, KEPT at most, and how many they are; those of a rule about shares only if there are too many."""
    if not rule.row or table.empty or outcome.found is None or (outcome.passed and rule.unit == "share"):
        return [], 0
    marked = rule.offending(table, settings).to_numpy()
    rows = table.loc[marked, ["source", "line"]].head(KEPT)
    reason = rule.row.format(**settings)
    named = zip(rows["source"], rows["line"], rows.index, strict=True)
    return [Offender(rule.key, source, str(line), reason, row + 1) for source, line, row in named], int(marked.sum())


def _amount(rule: Rule, value: float | None) -> str:
    if value is None:
        return "not checked"
    if rule.unit == "score":
        return f"{value:.2f}"
    return f"{100 * value:.3g} %" if rule.unit == "share" else f"{value:,.0f}"


def _allowed(rule: Rule, settings: dict[str, Any]) -> str:
    """What a rule allows, in words."""
    low, high = settings.get("min_value"), settings.get("max_value")
    if low is not None and high is not None:
        return f"{_amount(rule, low)} to {_amount(rule, high)}"
    if low is not None:
        return f"at least {_amount(rule, low)}"
    return f"at most {_amount(rule, high)}" if high else "none"


# Telling ------------------------------------------------------------------------------------------------------------


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Those that stop, then warnings, then what holds."""
    return sorted(findings, key=lambda finding: (not finding.stops, finding.passed))


def markdown(findings: list[Finding]) -> str:
    """A table of the rules, those that are broken first."""
    lines = ["| | rule | found | allowed |", "|-|-|-|-|"]
    for finding in worst_first(findings):
        result = "holds" if finding.passed else "**broken**" if finding.severity == "stop" else "*warning*"
        lines.append(f"| {result} | {finding.rule.replace('.', ': ').replace('_', ' ')} | {finding.found} | {finding.allowed} |")
    return "\n".join(lines) + "\n"


def refusal(broken: list[Finding], listed_in: str, whole: str) -> DataRefused:
    """The error that names the first broken rule, where it is broken, what to do, and what else is wrong.

    listed_in, whole: the files that list the rows, and all findings.
    """
    what, *lines = _complaint(broken[0])
    if broken[0].rows:
        all_of_them = "all of them are" if sum(finding.rows for finding in broken) <= KEPT else f"up to {KEPT:,} are"
        lines.append(f"{broken[0].rows:,} of {broken[0].of:,} rows; {all_of_them} listed in {listed_in}.")
    if broken[1:]:
        lines.append("What else is wrong:")
        lines += [f"- {' '.join(_complaint(finding)[:-1])}" for finding in broken[1 : 1 + ALSO]]
    if broken[1 + ALSO :]:
        lines.append(f"- and {len(broken) - 1 - ALSO} more.")
    lines.append(f"All of it as a page: {whole}.")
    return DataRefused(what, "\n  ".join(lines))


def _complaint(finding: Finding) -> list[str]:
    """Where a rule is broken (or what is wrong), what is wrong with the whole, and what to do: two or three sentences."""
    says = f"{finding.says[:1].upper()}{finding.says[1:]}."
    if not finding.first:
        return [says, finding.advice]
    first = finding.first[0]
    example = f"{place(first.source, first.line)}: {first.reason}."
    return [example, finding.advice] if first.reason == finding.says else [example, says, finding.advice]

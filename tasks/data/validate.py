"""Stage "validate": the contract checked by Great Expectations, what broke it listed by file and line, training refused.

One context a run, in memory: checks of several runs do not meet. Nothing calls out.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.config import PipelineConfig
from tasks.costs import cost_of
from tasks.data import prepare
from tasks.data.contract import RULES, Rule, Severity, value_of
from tasks.data.encoding import load_tokenizer
from tasks.data.importers import place
from tasks.data.records import write_jsonl
from tasks.data.snapshot import Dataset, dataset
from tasks.data.tables import TABLES, Table, Tokens, comparison_table, counts_table, demonstration_table, parted_by_splits
from tasks.errors import DataRefused, PreflineError
from tasks.stage import Metrics, StageResult, StageRun, stage

VALIDATION, OFFENDERS, DOCS, SUMMARY = "validation.json", "rejects.jsonl", "data_docs", "validation.md"
SHOWN = 20
"""Offending rows that validation.json names for each rule."""
KEPT = 10_000
"""Offending rows in rejects.jsonl, of all rules together."""
ALSO = 8
"""Further broken rules that an error lists."""


@dataclass(frozen=True)
class Offender:
    """A row that is to blame. source, line: where it came from. reason: in words."""

    rule: str
    source: str
    line: str
    reason: str


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


@stage("validate", reads=("contract", "max_tokens"), package="data")
def validate(config: PipelineConfig, *, data: StageResult, base: StageResult, run: StageRun) -> Metrics:
    """Check the data; writes validation.json, validation.md, rejects.jsonl and data_docs/. base: its tokenizer counts tokens.

    Raises DataRefused, with all of that written, where a rule that stops is broken.
    """
    records = dataset(data, run.root)
    rejects = import_rejects(records)
    tables = make_tables(records, Tokens(load_tokenizer(base.path / "model")), rejects)
    run.report(1, 2)
    with cost_of("great-expectations"):
        outcomes = check(config, tables, run.out / DOCS)
    findings, offenders = judge(config, tables, outcomes, rejects)
    _write(run.out, findings, offenders)
    run.report(2, 2)
    broken = [finding for finding in findings if finding.stops]
    if broken:
        raise refusal(broken, _shown(run.failed / OFFENDERS, run.root))
    return {
        "comparisons": len(tables["comparisons"]),
        "demonstrations": len(tables["demonstrations"]),
        "rules": len(findings),
        "warnings": sum(not finding.passed for finding in findings),
    }


def make_tables(records: Dataset, tokens: Tokens, rejects: dict[str, list[Offender]]) -> dict[Table, pd.DataFrame]:
    comparisons, demonstrations = records.comparisons(), records.demonstrations()
    parted = parted_by_splits(itertools.chain(comparisons, demonstrations))
    return {
        "counts": counts_table(comparisons, demonstrations, {kind: len(rows) for kind, rows in rejects.items()}),
        "comparisons": comparison_table(comparisons, tokens, parted),
        "demonstrations": demonstration_table(demonstrations, tokens, parted),
    }


# Checking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations says of a rule. found: rows that break it, or the figure that it looked at; None if there is none."""

    passed: bool
    found: float | None


def check(config: PipelineConfig, tables: dict[Table, pd.DataFrame], docs: Path) -> dict[str, Outcome]:
    """The outcome of every rule whose table has rows; Data Docs into the folder docs."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site("prefline", _site(docs))
    source = context.data_sources.add_pandas("prefline")
    outcomes: dict[str, Outcome] = {}
    for name in TABLES:
        table = tables[name]
        rules = [rule for rule in RULES if rule.table == name and not table.empty and table[rule.column].notna().any()]
        if not rules:
            continue
        expectations = [_expectation(rule, config, len(table)) for rule in rules]
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checked = table[sorted({rule.column for rule in rules})]
        result = definition.run(
            batch_parameters={"dataframe": checked}, result_format={"result_format": "BASIC", "partial_unexpected_count": 0}
        )
        outcomes |= _outcomes(rules, result)
    context.build_data_docs()
    _slim(docs)
    return outcomes


def _expectation(rule: Rule, config: PipelineConfig, rows: int) -> Any:
    from great_expectations import expectations

    kind = getattr(expectations, rule.expectation)
    severity = "critical" if rule.severity == "stop" else "warning"
    meta = {"rule": rule.name, "severity": rule.severity, "notes": f"{rule.name} ({rule.severity}): {rule.advice}"}
    return kind(**rule.settings(config, rows), severity=severity, meta=meta)


def _outcomes(rules: list[Rule], result: Any) -> dict[str, Outcome]:
    """By rule. Raises PreflineError where Great Expectations could not check one: it reports that as a mere failure."""
    by_name = {}
    for checked in result.results:
        if any("Traceback" in str(value) for value in (checked.exception_info or {}).values()):
            reason = str(checked.exception_info)[-600:]
            raise PreflineError(
                f"The contract can't be checked: {checked.expectation_config.kwargs}: {reason}", "This is a fault of Prefline's."
            )
        found = checked.result.get("observed_value", checked.result.get("unexpected_count"))
        by_name[checked.expectation_config.meta["rule"]] = Outcome(bool(checked.success), None if found is None else float(found))
    return {rule.key: by_name[rule.name] for rule in rules}


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
    }


def _slim(docs: Path) -> None:
    """Leave out the fonts and pictures that come with Data Docs: 4 MB a run."""
    for name in ("fonts", "images"):
        shutil.rmtree(docs / "static" / name, ignore_errors=True)


# Judging ------------------------------------------------------------------------------------------------------------


def judge(
    config: PipelineConfig, tables: dict[Table, pd.DataFrame], outcomes: dict[str, Outcome], rejects: dict[str, list[Offender]]
) -> tuple[list[Finding], list[Offender]]:
    """What to tell people: a finding a rule, and all rows to blame. rejects: from `import_rejects`."""
    findings: list[Finding] = []
    offenders: list[Offender] = []
    for rule in RULES:
        table, outcome = tables[rule.table], outcomes.get(rule.key, Outcome(True, None))
        settings = rule.settings(config, len(table))
        texts = settings | {"found": _amount(rule, outcome.found), "allowed": _allowed(rule, config, settings)}
        blamed, of = _blamed(rule, table, settings, outcome), len(table)
        if rule.column.startswith("rejected_"):
            kind = rule.column.removeprefix("rejected_")
            blamed = rejects[kind]
            of = len(blamed) + int(table[kind].iloc[0])
        offenders += blamed
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
                rows=len(blamed),
                of=of,
                first=blamed[:SHOWN],
            )
        )
    return findings, offenders


def _blamed(rule: Rule, table: pd.DataFrame, settings: dict[str, Any], outcome: Outcome) -> list[Offender]:
    """The rows that break a rule; those of a rule about shares only if there are too many of them."""
    if not rule.row or table.empty or (outcome.passed and rule.unit == "share"):
        return []
    rows = table.loc[rule.offending(table, settings), ["source", "source_id"]]
    reason = rule.row.format(**settings)
    return [Offender(rule.key, source, line, reason) for source, line in rows.itertuples(index=False)]


def import_rejects(records: Dataset) -> dict[str, list[Offender]]:
    """The rows that gave no record, by the kind of record that was looked for."""
    found: dict[str, list[Offender]] = {"comparisons": [], "demonstrations": []}
    with (records.folder / prepare.REJECTS).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found[row["role"]].append(Offender(f"counts.rejected_{row['role']}", row["source"], str(row["line"]), row["reason"]))
    return found


def _amount(rule: Rule, value: float | None) -> str:
    if value is None:
        return "not checked"
    return f"{100 * value:.3g} %" if rule.unit == "share" else f"{value:,.0f}"


def _allowed(rule: Rule, config: PipelineConfig, settings: dict[str, Any]) -> str:
    """What a rule allows, in words."""
    if "mostly" in rule.thresholds:
        return f"at most {value_of(config, rule.thresholds['mostly']):,}"
    low, high = settings.get("min_value"), settings.get("max_value")
    if low is not None and high is not None:
        return f"{_amount(rule, low)} to {_amount(rule, high)}"
    if low is not None:
        return f"at least {_amount(rule, low)}"
    return f"at most {_amount(rule, high)}" if high is not None else "none"


# Telling ------------------------------------------------------------------------------------------------------------


def _write(out: Path, findings: list[Finding], offenders: list[Offender]) -> None:
    body = {"passed": not any(finding.stops for finding in findings), "rules": [asdict(finding) for finding in findings]}
    (out / VALIDATION).write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_jsonl(out / OFFENDERS, offenders[:KEPT])
    (out / SUMMARY).write_text(_markdown(findings), encoding="utf-8")


def _markdown(findings: list[Finding]) -> str:
    """A table of the rules, those that are broken first."""
    lines = ["| | rule | found | allowed |", "|-|-|-|-|"]
    for finding in sorted(findings, key=lambda finding: finding.passed):
        result = "holds" if finding.passed else "**broken**" if finding.severity == "stop" else "*warning*"
        lines.append(f"| {result} | {finding.rule.replace('.', ': ').replace('_', ' ')} | {finding.found} | {finding.allowed} |")
    return "\n".join(lines) + "\n"


def refusal(broken: list[Finding], listed_in: str) -> DataRefused:
    """The error that names the first broken rule, where it is broken, what to do, and what else is wrong."""
    what, *lines = _complaint(broken[0])
    if broken[0].rows:
        all_of_them = "all of them are" if sum(finding.rows for finding in broken) <= KEPT else f"up to {KEPT:,} are"
        lines.append(f"{broken[0].rows:,} of {broken[0].of:,} rows; {all_of_them} listed in {listed_in}.")
    if broken[1:]:
        lines.append("What else is wrong:")
        lines += [f"- {' '.join(_complaint(finding)[:-1])}" for finding in broken[1 : 1 + ALSO]]
    if broken[1 + ALSO :]:
        lines.append(f"- and {len(broken) - 1 - ALSO} more, in {VALIDATION} there.")
    return DataRefused(what, "\n  ".join(lines))


def _complaint(finding: Finding) -> list[str]:
    """Where a rule is broken (or what is wrong), what is wrong with the whole, and what to do: two or three sentences."""
    says = f"{finding.says[:1].upper()}{finding.says[1:]}."
    if not finding.first:
        return [says, finding.advice]
    first = finding.first[0]
    example = f"{place(first.source, first.line)}: {first.reason}."
    return [example, finding.advice] if first.reason == finding.says else [example, says, finding.advice]


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

"""The contract put to Great Expectations: one context a run, in memory, so that checks of several runs do not meet.

Nothing calls out. What is checked are flags, lengths and shares; no text reaches Data Docs.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.config import PipelineConfig
from tasks.data.contract import RULES, Rule
from tasks.data.tables import TABLES, Table
from tasks.errors import PreflineError


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations says of a rule. found: rows that break it, or the figure that it looked at; None if there is none."""

    passed: bool
    found: float | None


@dataclass(frozen=True)
class Checked:
    """The outcome of every rule whose table has rows, and Great Expectations' own record of it."""

    outcomes: dict[str, Outcome]
    context: Any

    def write_docs(self, folder: Path) -> None:
        """Data Docs: the suites and their results as pages."""
        self.context.add_data_docs_site("prefline", _site(folder))
        self.context.build_data_docs()
        _slim(folder)


def check(config: PipelineConfig, tables: dict[Table, pd.DataFrame]) -> Checked:
    """Put all rules to the tables."""
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells where its temporary folders are
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    source = context.data_sources.add_pandas("prefline")
    outcomes: dict[str, Outcome] = {}
    for name in TABLES:
        table = tables[name]
        rules = [rule for rule in RULES if rule.table == name and not table.empty and table[rule.column].notna().any()]
        if not rules:
            continue
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=[_expectation(rule, config) for rule in rules]))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checked = table[sorted({rule.column for rule in rules})]
        result = definition.run(
            batch_parameters={"dataframe": checked}, result_format={"result_format": "BASIC", "partial_unexpected_count": 0}
        )
        outcomes |= _outcomes(rules, result)
    return Checked(outcomes, context)


def _expectation(rule: Rule, config: PipelineConfig) -> Any:
    from great_expectations import expectations

    from tasks.data import expectations as ours

    kind = getattr(ours, rule.expectation, None) or getattr(expectations, rule.expectation)
    severity = "critical" if rule.severity == "stop" else "warning"
    meta = {"rule": rule.name, "severity": rule.severity, "notes": f"{rule.name} ({rule.severity}): {rule.advice}"}
    return kind(**rule.settings(config), severity=severity, meta=meta)


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

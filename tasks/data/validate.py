"""Stage "validate": the contract checked, what broke it listed by file and line, training refused.

Texts pass by once, as a stream; the tables that are checked hold codes, lengths and labels (tables.py).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.config import ContractConfig, PipelineConfig
from tasks.costs import cost_of
from tasks.data import prepare
from tasks.data.annotators import Study, study
from tasks.data.checks import check
from tasks.data.contamination import EvaluationPrompts
from tasks.data.encoding import load_tokenizer
from tasks.data.findings import KEPT, Finding, Offender, Rejects, judge, markdown, refusal
from tasks.data.records import write_jsonl
from tasks.data.report import PAGE, STATISTICS, annotators_markdown, excerpts, read_tables, render, statistics_of
from tasks.data.snapshot import dataset
from tasks.data.tables import Table, counts_table, mark_parted
from tasks.data.tokens import Tokens
from tasks.stage import Metrics, StageResult, StageRun, stage

VALIDATION, OFFENDERS, DOCS, SUMMARY = "validation.json", "rejects.jsonl", "data_docs", "validation.md"
ANNOTATORS = "annotators.md"


@stage("validate", reads=("contract", "max_tokens"), package="data", files=("contract.evaluation_sets",))
def validate(config: PipelineConfig, *, data: StageResult, base: StageResult, run: StageRun) -> Metrics:
    """Check the data; writes validation.json and .md, annotators.md, statistics.json, data.html, rejects.jsonl and data_docs/.

    base: its tokenizer counts tokens. Raises DataRefused, with all of that written, where a rule that stops is broken.
    """
    folder = dataset(data, run.root).folder
    rejects = Rejects.read(folder / prepare.REJECTS)
    evaluation = EvaluationPrompts.load(config.contract.evaluation_sets, run.root)
    tokens = Tokens(load_tokenizer(base.path / "model"), config.max_tokens)
    comparisons, demonstrations = read_tables(folder, tokens, evaluation.knows if evaluation else None)
    run.report(1, 4)
    found = study(comparisons)
    run.report(2, 4)
    tables = complete(comparisons, demonstrations, found, rejects, config.contract)
    with cost_of("great-expectations"):
        checked = check(config, tables)
        checked.write_docs(run.out / DOCS)
    run.report(3, 4)
    findings, offenders = judge(config, tables, checked.outcomes, rejects)
    _write(run.out, findings, offenders)
    (run.out / ANNOTATORS).write_text(annotators_markdown(found), encoding="utf-8")
    statistics = statistics_of(folder, comparisons, demonstrations)
    (run.out / STATISTICS).write_text(json.dumps(statistics, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (run.out / PAGE).write_text(render(statistics, found, findings, excerpts(folder, findings)), encoding="utf-8")
    run.report(4, 4)
    broken = [finding for finding in findings if finding.stops]
    if broken:
        raise refusal(broken, _shown(run.failed / OFFENDERS, run.root), _shown(run.failed / PAGE, run.root))
    return {
        "comparisons": len(comparisons),
        "demonstrations": len(demonstrations),
        "rules": len(findings),
        "warnings": sum(not finding.passed for finding in findings),
        "annotators": len(found.scorecards),
        **_people(comparisons, found),
    }


def complete(
    comparisons: pd.DataFrame, demonstrations: pd.DataFrame, found: Study, rejects: Rejects, contract: ContractConfig
) -> dict[Table, pd.DataFrame]:
    """All that the contract looks at: the tables with the flags that rows have among all the others, and the counts."""
    mark_parted(comparisons, demonstrations)
    at_chance = [card.name for card in found.scorecards if card.at_chance]
    comparisons["at_chance"] = comparisons["annotator"].isin(at_chance)
    counts = counts_table(comparisons, demonstrations, rejects.counts)
    alpha = found.overall.alpha.value
    counts["agreement"] = np.nan if alpha is None or found.overall.items < contract.min_shared else alpha
    return {"counts": counts, "comparisons": comparisons, "demonstrations": demonstrations}


def _people(comparisons: pd.DataFrame, found: Study) -> Metrics:
    """How often the longer answer was chosen, and Krippendorff's alpha with its interval; what has no meaning is left out."""
    longer, alpha = float(comparisons["longer_chosen"].mean()), found.overall.alpha
    metrics = {} if math.isnan(longer) else {"longer_chosen": longer}
    if alpha.value is None or alpha.low is None or alpha.high is None:
        return metrics
    return metrics | {"agreement": alpha.value, "agreement_low": alpha.low, "agreement_high": alpha.high}


def _write(out: Path, findings: list[Finding], offenders: list[Offender]) -> None:
    body = {"passed": not any(finding.stops for finding in findings), "rules": [asdict(finding) for finding in findings]}
    (out / VALIDATION).write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_jsonl(out / OFFENDERS, offenders[:KEPT])
    (out / SUMMARY).write_text(markdown(findings), encoding="utf-8")


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

"""The page of a run: the evaluation's report with the decision on top, its gates, the stages and where all came from."""

from __future__ import annotations

from pathlib import Path

from flows.figures import main_figures
from flows.record import RunRecord, page_of
from tasks.data.snapshot import read_snapshot
from tasks.evaluation.answers import read_answers
from tasks.evaluation.report import StageLine, render_report
from tasks.evaluation.result import Evaluation
from tasks.stage import StageResult


def write_page(record: RunRecord, results: dict[str, StageResult], root: Path) -> Path | None:
    """Write runs/<run>/report.html; None for a run that did not come to a decision."""
    if record.decision is None:
        return None
    evaluated = results["evaluate"].path
    lineage = {
        "Run": record.run,
        "Git commit": record.commit + (" with changes" if record.dirty else ""),
        "Configuration": record.config_hash,
        "Data (DVC)": read_snapshot(results["snapshot"]).md5,
        "Base model": str(record.config["model"]),
        "Method": str(record.config["policy"]["method"]),
        "Seed": str(record.config["seed"]),
        "Registered as": f"{record.decision.model} version {record.decision.version}",
    }
    stages = [
        StageLine(stage.name, stage.seconds, main_figures(stage.name, stage.metrics), stage.skipped or stage.state)
        for stage in record.stages
    ]
    page = page_of(root, record.run)
    page.write_text(
        render_report(
            Evaluation.load(evaluated), read_answers(evaluated), evaluated, record.decision, record.decision.gates, lineage, stages
        ),
        encoding="utf-8",
    )
    return page

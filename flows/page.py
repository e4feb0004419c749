"""The page of a run, and the same as Markdown: the evaluation's report with the decision on top, and what the whole run knows.

Made from the run's record and the stages' folders alone, so that it can be made again when the run is long over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from flows.figures import duration, main_figures, memory, money, number
from flows.record import RunRecord, folder_of
from tasks.data.snapshot import Snapshot, read_snapshot
from tasks.errors import PreflineError
from tasks.evaluation.answers import answers_table, read_answers
from tasks.evaluation.report import StageLine, WholeRun, write_report
from tasks.evaluation.result import PAGE, Evaluation
from tasks.stage import StageResult, read_result


def write_page(record: RunRecord, root: Path) -> Path:
    """Write report.html and report.md into the run's folder. Raises PreflineError where the run has no evaluation any more."""
    evaluated = _kept(record, "evaluate")
    page = folder_of(root, record.run) / PAGE
    evaluation, answers = Evaluation.load(evaluated.path), read_answers(evaluated.path)
    write_report(evaluation, answers, evaluated.path, page.parent, whole_run(record))
    return page


def table_of_answers(record: RunRecord) -> Mapping[str, list[object]]:
    """Every answer of the run's evaluation, as columns by name."""
    return answers_table(read_answers(_kept(record, "evaluate").path))


def _kept(record: RunRecord, stage: str) -> StageResult:
    """A stage's result, unchanged since the run."""
    found = next((one for one in record.stages if one.name == stage), None)
    if not found or found.state not in ("done", "skipped"):
        raise PreflineError(
            f"Run {record.run} has no result of stage {stage}, so there is nothing to report.",
            f"prefline status {record.run} shows what it did; prefline report RUN makes another run's.",
        )
    kept = read_result(Path(found.path))
    if not kept:
        raise PreflineError(
            f"{found.path} is gone, or no longer what run {record.run} made.", "Run again: only what is missing is made anew."
        )
    return kept


def whole_run(record: RunRecord) -> WholeRun:
    seen = read_snapshot(_kept(record, "snapshot"))
    return WholeRun(
        decision=record.decision,
        gates=record.decision.gates if record.decision else (),
        data=dict(_data(record, seen)),
        stages=_stages(record),
        spent=_spent(record),
        lineage=dict(_lineage(record, seen)),
    )


def _data(record: RunRecord, seen: Snapshot) -> Iterator[tuple[str, str]]:
    splits = ", ".join(f"{name} {number(count)}" for name, count in seen.splits.items())
    yield "Comparisons", f"{number(seen.comparisons)} ({splits})"
    yield "Demonstrations", number(seen.demonstrations)
    if seen.rejects:
        yield "Rejected rows", number(seen.rejects)
    checked = next((stage.metrics for stage in record.stages if stage.name == "validate"), {})
    if checked.get("annotators"):
        yield "Annotators", number(checked["annotators"])
    if "agreement" in checked:
        low, high = checked["agreement_low"], checked["agreement_high"]
        yield "Their agreement", f"Krippendorff's alpha {checked['agreement']:.2f} ({low:.2f} to {high:.2f})"
    if "longer_chosen" in checked:
        yield "The longer answer chosen", f"{checked['longer_chosen']:.1%}"
    if "rules" in checked:
        yield "Contract", f"{number(checked['rules'])} rules checked, {number(checked['warnings'])} of them warn"


def _stages(record: RunRecord) -> list[StageLine]:
    total = sum(stage.seconds for stage in record.stages)
    price = record.price_per_hour
    return [
        StageLine(
            stage.name,
            time=duration(stage.seconds),
            share=stage.seconds / total if total else 0.0,
            figures=main_figures(stage.name, stage.metrics),
            note=stage.skipped or stage.state,
            memory=memory(stage.peak_bytes) if stage.peak_bytes else "",
            cost=money(stage.seconds, price) if price else "",
        )
        for stage in record.stages
    ]


def _spent(record: RunRecord) -> str:
    """What the result took, whenever its parts were made, and what this run took."""
    total, now = sum(stage.seconds for stage in record.stages), sum(stage.seconds for stage in record.stages if stage.state == "done")
    text = f"All stages took {duration(total)} of work, {duration(now)} of it in this run; the rest was made before and is unchanged."
    if now == total:
        text = f"All stages took {duration(total)} of work."
    peak = max((stage.peak_bytes for stage in record.stages), default=0)
    if peak:
        text += f" Training took at most {memory(peak)} of memory."
    if record.price_per_hour:
        text += f" At {record.price_per_hour:g} an hour that is {money(total, record.price_per_hour)}."
    return text


def _lineage(record: RunRecord, seen: Snapshot) -> Iterator[tuple[str, str]]:
    yield "Run", record.run
    yield "Git commit", record.commit + (" with changes" if record.dirty else "")
    yield "Configuration", record.config_hash
    yield "Data (DVC)", seen.md5
    yield "Base model", str(record.config["model"])
    yield "Method", str(record.config["policy"]["method"])
    yield "Seed", str(record.config["seed"])
    if record.decision:
        yield "Registered as", f"{record.decision.model} version {record.decision.version}"
    if record.mlflow_url:
        yield "MLflow", record.mlflow_url
    if record.prefect_url:
        yield "Prefect", record.prefect_url

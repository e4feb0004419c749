"""What came of a run: the table at its end for the terminal, the same as Markdown for MLflow and Prefect."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.figures import duration, main_figures
from flows.methods_table import failures, methods_tables
from flows.record import RunRecord, StageRecord, folder_of
from tasks.evaluation.compared import COMPARED, PICTURE, Compared
from tasks.evaluation.result import PAGE
from tasks.registry.decision import Decision
from tasks.registry.ledger import LedgerLine

TOOLS = {"prefect": "Prefect", "mlflow": "MLflow", "dvc": "DVC", "great-expectations": "Great Expectations"}
MARKS = {
    "done": ("✓", "green"),
    "skipped": ("-", "dim"),
    "failed": ("✗", "red"),
    "interrupted": ("✗", "yellow"),
    "running": ("…", "yellow"),
    "waiting": (" ", "dim"),
}
COLOURS = {"promoted": "bold green", "already champion": "bold green", "not promoted": "bold yellow", "awaiting approval": "bold yellow"}

ACTION_COLOURS = {"forced": "bold red", "refused": "yellow", "rolled back": "yellow"}


def print_summary(record: RunRecord, root: Path, console: Console) -> None:
    """Stages, gates, decision, methods where some were compared, what the tools cost, where to look."""
    console.print(stages_table(record))
    if (folder_of(root, record.run) / COMPARED).exists():
        compared = Compared.load(folder_of(root, record.run))
        console.print(*methods_tables(compared, console), *failures(compared), sep="\n")
    if record.decision:
        console.print(gates_table(record.decision))
        console.print(Text(decision_line(record.decision), style=COLOURS[record.decision.decision]))
    if record.error:
        console.print(Text(record.error, style="red"))
    if record.costs:
        console.print(costs_line(record), style="dim", highlight=False)
    for what, where in places(record, root):
        console.print(f"{what:<10} {where}", highlight=False, soft_wrap=True)


def stages_table(record: RunRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Run {record.run}: {record.state}", title_justify="left", title_style="bold")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("what it reached", overflow="fold")
    for stage in record.stages:
        mark, colour = MARKS[stage.state]
        table.add_row(Text(f"{mark} {stage.name}", style=colour), _time(stage), main_figures(stage.name, stage.metrics))
    return table


def _time(stage: StageRecord) -> str:
    return stage.skipped if stage.skipped else duration(stage.seconds) if stage.state == "done" else stage.state


def ledger_table(name: str, lines: list[LedgerLine]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Champions of {name}", title_justify="left", title_style="bold")
    for heading in ("when (UTC)", "what", "version", "before it", "who", "why", "evidence"):
        table.add_column(heading, overflow="fold")
    for line in reversed(lines):
        what = Text(line.action, style=ACTION_COLOURS.get(line.action, ""))
        what.append(f", to {', '.join(line.environments)}" if line.environments else "", style="dim")
        when = line.at[:16].replace("T", " ")
        table.add_row(when, what, line.version, line.previous or "none", Text(line.who), Text(line.why), line.evidence[:8])
    return table


def gates_table(decision: Decision) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Gates", title_justify="left", title_style="bold")
    for heading in ("gate", "required", "found"):
        table.add_column(heading, overflow="fold")
    for gate in decision.gates:
        mark, colour = MARKS["done" if gate.passed else "failed"]
        table.add_row(Text(f"{mark} {gate.name}", style=colour), gate.required, gate.found)
    return table


def decision_line(decision: Decision) -> str:
    name = f"{decision.model} version {decision.version}"
    if decision.decision == "already champion":
        return f"{name} is the champion already."
    if decision.decision == "promoted":
        return f"{name} is the new champion" + (f", after version {decision.previous}." if decision.previous else ", the first.")
    if decision.decision == "awaiting approval":
        return f"{name} has passed every gate and waits for a person: prefline promote {decision.version} --approve NAME"
    refused = ", ".join(gate.name for gate in decision.gates if not gate.passed)
    return f"{name} is not promoted: {refused}. It stays challenger."


def costs_line(record: RunRecord) -> str:
    """What each tool cost, in seconds and as a share of the whole run."""
    parts = [f"{label} {record.costs.get(tool, 0.0):.1f} s" for tool, label in TOOLS.items()]
    total = sum(record.costs.values())
    share = total / record.seconds if record.seconds else 0.0
    return f"Whole run {duration(record.seconds)}. Beside the work: {', '.join(parts)}; together {total:.1f} s, {share:.0%} of the run."


def places(record: RunRecord, root: Path) -> list[tuple[str, str]]:
    """Where to look, by name."""
    found = []
    for what, name in (("Report", PAGE), ("Picture", PICTURE)):
        file = folder_of(root, record.run) / name
        if file.exists():
            found.append((what, str(file.relative_to(root))))
    if record.mlflow_url:
        found.append(("MLflow", record.mlflow_url))
    if record.prefect_url:
        found.append(("Prefect", record.prefect_url))
    if any("127.0.0.1" in where for _, where in found):
        found.append(("", "The two pages are there once this runs: prefline ui"))
    return found


# Markdown -----------------------------------------------------------------------------------------------------------


def markdown(record: RunRecord) -> str:
    """The run's result, for the description of the MLflow run and as a Prefect artifact."""
    lines = [f"**{decision_line(record.decision) if record.decision else f'{record.what}: done'}**", ""]
    if record.decision:
        lines += ["| gate | required | found |", "|:---|:---|:---|"]
        lines += [f"| {'✓' if g.passed else '✗'} {g.name} | {g.required} | {g.found} |" for g in record.decision.gates] + [""]
    lines += ["| stage | time | what it reached |", "|:---|:---|:---|"]
    lines += [f"| {stage.name} | {_time(stage)} | {main_figures(stage.name, stage.metrics)} |" for stage in record.stages] + [""]
    lines.append(f"- git `{record.commit[:12]}`{' with changes' if record.dirty else ''}, configuration `{record.config_hash}`")
    lines.append(f"- run `{record.run}`: `prefline status {record.run}`")
    if record.prefect_url:
        lines.append(f"- [this run in Prefect]({record.prefect_url})")
    if record.mlflow_url:
        lines.append(f"- [this run in MLflow]({record.mlflow_url})")
    return "\n".join(lines) + "\n"


def gate_rows(decision: Decision) -> list[dict[str, str]]:
    """The gates as rows for a table."""
    return [
        {"gate": gate.name, "required": gate.required, "found": gate.found, "passed": "yes" if gate.passed else "no"}
        for gate in decision.gates
    ]

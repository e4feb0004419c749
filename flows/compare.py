"""Two runs side by side: what was set differently, what each stage reached, what was decided."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from flows.figures import MAIN, duration, number
from flows.record import RunRecord, StageRecord
from tasks.registry.tracking import flatten

MISSING = "–"


def comparison_table(first: RunRecord, second: RunRecord) -> Table:
    """A column a run; a last one with the difference where both have a number."""
    title = f"{first.run} and {second.run}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for record in (first, second):
        table.add_column(record.run, overflow="fold")
    table.add_column("difference", justify="right")
    for name, one, other, difference in _facts(first, second):
        table.add_row(name, Text(one), Text(other), difference)
    for heading, rows in (("set differently", _settings(first, second)), ("reached", _figures(first, second))):
        table.add_section()
        table.add_row(Text(heading, style="bold"), "", "", "")
        for name, one, other, difference in rows:
            table.add_row(Text(f"  {name}"), Text(one), Text(other), difference)
    return table


Row = tuple[str, str, str, str]
"""What it is about, the first run's, the second's, and the difference."""


def _facts(first: RunRecord, second: RunRecord) -> Iterator[Row]:
    yield "decision", _decision(first), _decision(second), ""
    yield "took", duration(first.seconds), duration(second.seconds), f"{second.seconds - first.seconds:+.1f} s"
    yield "git commit", first.commit[:12] + _changes(first), second.commit[:12] + _changes(second), ""


def _decision(record: RunRecord) -> str:
    return f"{record.decision.decision}, version {record.decision.version}" if record.decision else record.state


def _changes(record: RunRecord) -> str:
    return " with changes" if record.dirty else ""


def _settings(first: RunRecord, second: RunRecord) -> Iterator[Row]:
    one, other = dict(flatten(first.config)), dict(flatten(second.config))
    for key in dict.fromkeys((*one, *other)):
        if one.get(key, MISSING) != other.get(key, MISSING):
            yield key, str(one.get(key, MISSING)), str(other.get(key, MISSING)), ""


def _figures(first: RunRecord, second: RunRecord) -> Iterator[Row]:
    """The main figures of the stages that both lines know, those that differ and those that don't."""
    others = {stage.name: stage for stage in second.stages}
    for stage in first.stages:
        other = others.get(stage.name)
        for name in MAIN.get(stage.name, ()):
            one, two = stage.metrics.get(name), other.metrics.get(name) if other else None
            if one is not None or two is not None:
                difference = f"{two - one:+.3g}" if one is not None and two is not None else ""
                yield f"{stage.name}: {name.replace('_', ' ')}", _number(one), _number(two), difference
        if other and {stage.state, other.state} != {"waiting"}:
            yield f"{stage.name}: time", _time(stage), _time(other), ""


def _number(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _time(stage: StageRecord) -> str:
    return duration(stage.seconds) if stage.state in ("done", "skipped") else stage.state

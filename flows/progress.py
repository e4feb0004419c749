"""Progress while a run goes on: on a terminal a line a stage with a bar, elsewhere plain lines."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.figures import duration, main_figures
from tasks.stage import Metrics, Observer, StageResult

WIDTH = 19
"""Of the longest stage's name ("evaluate rejection"), and one."""

PLAIN_SECONDS = 30.0
"""Between two plain lines of one stage."""


class ProgressDisplay(Observer, AbstractContextManager["ProgressDisplay"], Protocol):
    """An observer that shows; a context that leaves the screen tidy."""


def progress_display(console: Console) -> ProgressDisplay:
    return BarDisplay(console) if console.is_terminal else PlainDisplay(console)


class PlainDisplay:
    """For logs: a line when a stage begins to report, one now and then, and one at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to tidy."""

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None:
        self._last = time.monotonic()
        self._say(f"{stage:<{WIDTH}} begins")

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        if time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            self._say(f"{stage:<{WIDTH}} {done} of {total}  {main_figures(stage, metrics)}")

    def finished(self, result: StageResult) -> None:
        self._say(finished_line(result))

    def failed(self, stage: str, error: BaseException) -> None:
        self._say(f"{stage:<{WIDTH}} {ended(error)}")

    def _say(self, line: str) -> None:
        self._console.print(line.rstrip(), highlight=False, soft_wrap=True)


class BarDisplay:
    """For people: the stage at work has a bar and its newest figures."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[figures]}", table_column=None),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()
        self._progress.stop()

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None:
        self._remove()
        self._task = self._progress.add_task(f"{stage:<{WIDTH}}", total=None, figures="")

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, figures=main_figures(stage, metrics))

    def finished(self, result: StageResult) -> None:
        self._remove()
        self._progress.console.print(Text.assemble(("- ", "dim") if result.skipped else ("✓ ", "green"), finished_line(result)))

    def failed(self, stage: str, error: BaseException) -> None:
        self._remove()
        self._progress.console.print(Text.assemble(("✗ ", "red"), f"{stage:<{WIDTH}} {ended(error)}"))

    def _remove(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def ended(error: BaseException) -> str:
    return "failed" if isinstance(error, Exception) else "interrupted"


def finished_line(result: StageResult) -> str:
    figures = main_figures(result.stage, result.metrics)
    return f"{result.stage:<{WIDTH}} {result.skipped or duration(result.seconds):>10}  {figures}"

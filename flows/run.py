"""One run of the line, or of a stage of it: stage after stage, watched by the record, MLflow and the progress display.

Whatever ends a run (success, an error, Ctrl-C) closes its record and its MLflow runs with the right status. How a stage
is performed, as a Prefect task or directly, is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from flows.page import table_of_answers, write_page
from flows.progress import progress_display
from flows.record import Recorder, RunRecord, killed_runs
from flows.summary import markdown
from tasks.config import PipelineConfig
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.judges.panel import check_files
from tasks.evaluation.probes import read_probes
from tasks.evaluation.result import MARKDOWN
from tasks.registry.baseline import besides
from tasks.registry.decision import WAITING, Decision
from tasks.registry.lineage import lineage
from tasks.registry.store import talking_to
from tasks.registry.tracking import MLflowRun, close_killed, closing
from tasks.stage import Context, Metrics, Observer, Stage, StageResult, read_result
from tasks.training.processes import use_threads

Inputs = dict[str, StageResult]
Perform = Callable[[Stage, PipelineConfig, Inputs, Context, StageResult | None], StageResult]
"""How a stage is run. Its last argument is a finished result that was found and checked, if there is one."""

UNCHANGED = "unchanged"
"""Why a finished result was taken: nobody was told then, because nothing ran."""

EVALUATE = "evaluate"

INPUT_NAMES = {"data": "snapshot"}
"""A stage's inputs are called like the stages they come from; the data are called after what they are."""


class Outcome(BaseModel):
    """What a run hands back: its id, and the decision if it came to one."""

    model_config = ConfigDict(frozen=True)

    run: str
    decision: Decision | None


@dataclass(frozen=True)
class FlowRun:
    """The Prefect flow run that a run belongs to."""

    id: str
    url: str


def directly(stage: Stage, config: PipelineConfig, inputs: Inputs, context: Context, found: StageResult | None) -> StageResult:
    """Perform a stage without Prefect."""
    return found or stage.run(config, inputs, context)


@dataclass(frozen=True)
class Labelled:
    """Watches as another observer does, with a label behind each stage's name: for a stage that a run does more than once."""

    label: str
    observer: Observer

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None:
        self.observer.started(labelled(stage, self.label), key, settings)

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        self.observer.progressed(labelled(stage, self.label), done, total, metrics)

    def finished(self, result: StageResult) -> None:
        self.observer.finished(result.model_copy(update={"stage": labelled(result.stage, self.label)}))

    def failed(self, stage: str, error: BaseException) -> None:
        self.observer.failed(labelled(stage, self.label), error)


def labelled(stage: str, label: str) -> str:
    return f"{stage} {label}"


@dataclass
class PipelineRun:
    """A run at work. results: of its stages so far, by name."""

    config: PipelineConfig
    context: Context
    recorder: Recorder
    tracked: MLflowRun
    perform: Perform
    results: Inputs = field(default_factory=dict)

    def do(self, stage: Stage) -> StageResult:
        """Run a stage on the results so far, or take its finished result, which observers see as skipped."""
        inputs = inputs_of(stage, self.results)
        found = stage.lookup(self.config, inputs, self.context)
        result = self.perform(stage, self.config, inputs, self.context, found)
        if result.skipped == UNCHANGED:
            for observer in self.context.observers:
                observer.finished(result)
        self.results[stage.name] = result
        return result

    def take(self, stage: Stage) -> StageResult:
        """The finished result of a stage that this run is not about. Raises PreflineError where there is none."""
        inputs = inputs_of(stage, self.results)
        if not stage.cached:  # it looks at an outside store: ask again
            return self.do(stage)
        found = read_result(stage.folder(self.context, stage.key(self.config, inputs, self.context.root)))
        if not found:
            raise PreflineError(
                f"{stage.name} has no finished result for this configuration.",
                f"Make it first: prefline stage {stage.name} (with the same --set and --config), or prefline run for the whole line.",
            )
        self.results[stage.name] = found
        return found

    @contextmanager
    def part(self, label: str, config: PipelineConfig, perform: Perform) -> Iterator[PipelineRun]:
        """A part of this run that does some stages its own way, on the results so far: one method among several.

        In MLflow it is a run below this one's, closed with a status of its own; everywhere else its stages bear the label.
        """
        with closing(self.tracked.below(label, config)) as tracked:
            observers = [tracked if observer is self.tracked else Labelled(label, observer) for observer in self.context.observers]
            yield PipelineRun(config, replace(self.context, observers=observers), self.recorder, tracked, perform, dict(self.results))

    def conclude(self, decided: Decision | None = None) -> RunRecord:
        """Write the result where people look for it. decided: what became of the decision after the stages, if anything did."""
        record = self.recorder.record
        if "promote" in self.results:
            record.decision = decided or Decision.load(self.results["promote"].path)
        record.take_times()
        record.save(self.context.root)
        self.tracked.describe(markdown(record))
        if record.decision:
            page = write_page(record, self.context.root)
            self.tracked.attach(page)
            self.tracked.attach(page.with_name(MARKDOWN))
            if decided is None:  # MLflow adds to a table that is there
                self.tracked.attach_table("answers.json", table_of_answers(record))
        return record


@contextmanager
def pipeline_run(
    root: Path,
    config: PipelineConfig,
    *,
    run: str,
    what: str,
    stages: Sequence[str],
    force: frozenset[str] = frozenset(),
    perform: Perform = directly,
    flow_run: FlowRun | None = None,
) -> Iterator[PipelineRun]:
    """Open everything that a run needs, and close it with the right status. Raises PreflineError before anything ran.

    stages: names of those to come, in their order.
    """
    state = lineage(root, config)
    if EVALUATE in stages:
        read_probes(root, config.evaluation.probes)  # what is wrong is better known now than after the training
        check_files(config.evaluation, root)
    use_threads(config.threads)
    with (
        Recorder.begin(root, run, what, state, config.model_dump(mode="json"), stages) as recorder,
        progress_display(Console()) as display,
    ):
        record = recorder.record
        tags = {"prefline.run": run, "prefline.what": what}
        if flow_run:
            record.prefect_run, record.prefect_url = flow_run.id, flow_run.url
            tags |= {"prefline.prefect_flow_run": flow_run.id, "prefline.prefect_url": flow_run.url}
        with closing(MLflowRun.begin(root, config, state, run if what == "run" else f"{what} {run}", tags)) as tracked:
            if EVALUATE in stages:
                with talking_to(tracked.store.uri):
                    besides(tracked.store, config.names.policy, config.evaluation.against)
            record.mlflow_run, record.mlflow_url = tracked.run_id, tracked.url
            for dead in killed_runs(root):
                close_killed(tracked.store, dead.mlflow_run)
            observers: list[Observer] = [recorder, tracked, display]
            yield PipelineRun(config, Context(root, root / "runs", observers, force), recorder, tracked, perform)


def run_line(
    stages: Sequence[Stage],
    root: Path,
    config: PipelineConfig,
    *,
    run: str,
    again_from: str = "",
    perform: Perform = directly,
    flow_run: FlowRun | None = None,
    show: Callable[[RunRecord, Path], None] | None = None,
    ask: Callable[[PipelineRun, Decision], Decision] | None = None,
) -> Outcome:
    """All stages in their order.

    again_from: this one and all after it run even where nothing changed. show: what came of the run. ask: wait for a person's
    word where the decision awaits it.
    """
    force = frozenset(later(stages, again_from)) if again_from else frozenset[str]()
    names = [stage.name for stage in stages]
    with pipeline_run(root, config, run=run, what="run", stages=names, force=force, perform=perform, flow_run=flow_run) as line:
        for stage in stages:
            line.do(stage)
        record = line.conclude()
        if show:
            show(record, root)
        if ask and record.decision and record.decision.decision == WAITING:
            record = line.conclude(ask(line, record.decision))
            if show:
                show(record, root)
    return Outcome(run=run, decision=record.decision)


def run_stage(stages: Sequence[Stage], name: str, root: Path, config: PipelineConfig, *, run: str) -> Outcome:
    """One stage alone, on finished results of those it needs."""
    wanted = named(stages, name)
    needed = ancestors(stages, wanted)
    with pipeline_run(root, config, run=run, what=f"stage {name}", stages=[stage.name for stage in (*needed, wanted)]) as line:
        for stage in needed:
            line.take(stage)
        line.do(wanted)
        record = line.conclude()
    return Outcome(run=run, decision=record.decision)


# The line -----------------------------------------------------------------------------------------------------------


def inputs_of(stage: Stage, results: Inputs) -> Inputs:
    return {name: results[INPUT_NAMES.get(name, name)] for name in stage.inputs}


def named(stages: Sequence[Stage], name: str) -> Stage:
    """The stage of that name. Raises ConfigError with the names there are."""
    with suppress(StopIteration):
        return next(stage for stage in stages if stage.name == name)
    raise ConfigError(f"There is no stage {name}.", f"Stages, in their order: {', '.join(stage.name for stage in stages)}.")


def later(stages: Sequence[Stage], name: str) -> list[str]:
    """The stage of that name and all after it."""
    names = [stage.name for stage in stages]
    return names[names.index(named(stages, name).name) :]


def ancestors(stages: Sequence[Stage], stage: Stage) -> list[Stage]:
    """The stages that a stage needs, directly or not, in their order."""
    wanted: set[str] = set()
    for other in reversed([*stages[: stages.index(stage)], stage]):
        if other is stage or other.name in wanted:
            wanted |= {INPUT_NAMES.get(name, name) for name in other.inputs}
    return [other for other in stages if other.name in wanted]

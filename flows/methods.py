"""Methods of optimising the policy beside each other, from one SFT model and on the same held-out prompts.

One run: the stages that all methods share, then those of each, as far as the evaluation. Nothing is registered or promoted.

No `from __future__ import annotations` here, as in flows/pipeline.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import prefect.runtime
from prefect import flow

from flows.clock import own_time
from flows.methods_table import methods_markdown
from flows.pipeline import LINE
from flows.prefect_side import as_task, show_compared
from flows.record import folder_of, new_run_id
from flows.run import FlowRun, Inputs, Outcome, Perform, PipelineRun, directly, labelled, pipeline_run
from flows.settings import with_method
from tasks.config import PipelineConfig
from tasks.errors import PreflineError
from tasks.evaluation.best_of_n import best_of_n, read_curve
from tasks.evaluation.compared import COMPARED, PICTURE, Compared, MethodRow
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.methods import best_of_rows, draw, method_row, sft_row
from tasks.evaluation.result import Evaluation
from tasks.registry.baseline import baseline
from tasks.stage import Stage
from tasks.training.intervals import Bootstrap
from tasks.training.policy import optimise_policy

SHARED = (*LINE[: LINE.index(optimise_policy)], best_of_n)
OWN = (optimise_policy, baseline, evaluate)

Show = Callable[[Compared, Path, str], None]
"""Shows what was compared: with its picture, and the address of the run in MLflow."""


def compare_methods(
    root: Path,
    config: PipelineConfig,
    methods: Sequence[str],
    *,
    run: str,
    shared: Sequence[Stage] = SHARED,
    own: Sequence[Stage] = OWN,
    perform: Callable[[str], Perform] = lambda method: directly,
    flow_run: FlowRun | None = None,
    show: Show | None = None,
) -> Outcome:
    """Run the shared stages, then each method's own; a method that fails is a row that says why, and the others go on.

    Writes compare.json and compare.png into the run's folder. perform: how the stages of a method are run ("" for the
    shared ones). Raises PreflineError where a shared stage fails, ConfigError before anything ran.
    """
    configs = {method: with_method(config, method) for method in methods}
    names = [stage.name for stage in shared] + [labelled(stage.name, method) for method in configs for stage in own]
    with pipeline_run(root, config, run=run, what="compare", stages=names, perform=perform(""), flow_run=flow_run) as line:
        for stage in shared:
            line.do(stage)
        folder = folder_of(root, run)
        found = Compared(run=run, confidence=config.evaluation.confidence, price_per_hour=config.price_per_hour)
        for method, settings in configs.items():
            found = with_method_row(found, line, own, method, settings, perform(method))
            found.save(folder)  # what is known so far outlives whatever comes
        if found.sft:
            draw(found, folder / PICTURE)
        line.recorder.record.take_times()
        line.tracked.describe(methods_markdown(found))
        for file in (folder / COMPARED, folder / PICTURE):
            if file.exists():
                line.tracked.attach(file)
        if show:
            show(found, folder / PICTURE, line.tracked.url)
    return Outcome(run=run, decision=None)


def with_method_row(
    found: Compared, line: PipelineRun, own: Sequence[Stage], method: str, config: PipelineConfig, perform: Perform
) -> Compared:
    """What was found so far and one method more; with the first that succeeds, what methods are compared with as well."""
    try:
        with line.part(method, config, perform) as part:
            for stage in own:
                part.do(stage)
    except PreflineError as error:
        return found.model_copy(update={"methods": (*found.methods, MethodRow(method=method, error=str(error)))})
    bootstrap = Bootstrap(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    row = method_row(method, part.results["policy"], part.results["evaluate"], bootstrap)
    known = {} if found.sft else _yardsticks(part.results, bootstrap)
    return found.model_copy(update={"methods": (*found.methods, row), **known})


def _yardsticks(results: Inputs, bootstrap: Bootstrap) -> dict[str, object]:
    """The SFT model and the best of n of its answers: the same whichever method they stand beside."""
    evaluated = results["evaluate"].path
    evaluation = Evaluation.load(evaluated)
    curve = best_of_rows(read_curve(results["best_of_n"].path), evaluated, bootstrap)
    return {"prompts": evaluation.prompts, "sft": sft_row(evaluation), "best_of_n": curve}


@flow(name="compare", flow_run_name=new_run_id, persist_result=True, result_serializer="json", retries=0)
def compare(root: Path, config: PipelineConfig, methods: list[str]) -> Outcome:
    """Optimise the policy by each of the methods and evaluate each; register and promote nothing."""
    with own_time():
        return compare_methods(
            root,
            config,
            methods,
            run=prefect.runtime.flow_run.name,
            perform=lambda method: partial(as_task, label=method),
            flow_run=FlowRun(prefect.runtime.flow_run.id, prefect.runtime.flow_run.ui_url or ""),
            show=show_compared,
        )

"""MLflow runs: parent and children, their curves, files, inputs and statuses."""

import math
import threading

import pytest

from tasks.config import PipelineConfig
from tasks.errors import PreflineError
from tasks.registry.tracking import MLflowRun, close_killed, closing, flatten
from tasks.stage import Context, Stage


def do(tracked, root, body, name="sft", reads=("seed", "sft")):
    return Stage(name, body, reads, "data").run(PipelineConfig(), {}, Context(root, root / "runs", [tracked]))


def child_of(tracked, name="sft"):
    return tracked.store.client.get_run(tracked.child(name))


def status(tracked, run_id):
    return tracked.store.client.get_run(run_id).info.status


def test_a_stage_leaves_params_curves_figures_and_small_files(project, tracked):
    def body(config, *, run):
        for step in range(1, 1201):
            run.report(step, 1200, loss=1 / step)
        (run.out / "model").mkdir()
        (run.out / "model" / "config.json").write_text("{}")
        (run.out / "report.md").write_text("# It works")
        (run.out / "weights.safetensors").write_bytes(b"0")
        return {"perplexity": 2.5}

    do(tracked, project, body)
    child = child_of(tracked)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == tracked.run_id
    assert child.data.tags["prefline.stage"] == "sft"
    assert child.data.params["sft.learning_rate"] == "0.001"
    assert child.data.metrics["perplexity"] == 2.5
    curve = tracked.store.client.get_metric_history(child.info.run_id, "training/loss")
    assert sorted(point.step for point in curve) == list(range(1, 1201))
    files = [file.path for file in tracked.store.client.list_artifacts(child.info.run_id)]
    assert files == ["manifest.json", "report.md"]
    assert tracked.store.client.get_run(tracked.run_id).data.metrics["sft/perplexity"] == 2.5


def test_exactly_as_many_runs_as_stages_and_one_from_any_thread(project, tracked):
    thread = threading.Thread(target=lambda: do(tracked, project, lambda config, *, run: run.report(1, 1, loss=1.0) or {}))
    thread.start()
    thread.join()
    assert len(tracked.store.client.search_runs([tracked.store.experiment])) == 2


def test_a_skipped_stage_has_a_run_that_says_so(project, tracked):
    result = do(tracked, project, lambda config, *, run: {"perplexity": 3.0})
    tracked.finished(result.model_copy(update={"skipped": "unchanged"}))
    child = child_of(tracked)
    assert child.data.tags["prefline.skipped"] == "unchanged"
    assert child.data.metrics["perplexity"] == 3.0
    assert child.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")]
)
def test_statuses_of_parent_and_child_after_an_error(project, tracked, error, expected):
    def body(config, *, run):
        run.report(1, 2, loss=0.5)
        raise error

    with pytest.raises(type(error)), closing(tracked):
        do(tracked, project, body)
    assert status(tracked, tracked.run_id) == expected
    assert child_of(tracked).info.status == expected
    assert child_of(tracked).data.metrics["training/loss"] == 0.5


def test_an_error_between_stages_closes_what_is_open(project, tracked):
    def between():
        with closing(tracked):
            tracked.started("sft", "key", {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        between()
    assert status(tracked, tracked.child("sft")) == "FAILED"
    assert status(tracked, tracked.run_id) == "FAILED"


def test_a_run_without_an_error_is_finished(tracked):
    with closing(tracked):
        tracked.describe("# Result")
    run = tracked.store.client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "# Result"
    assert run.data.tags["prefline.git_dirty"] == "false"


def test_a_metric_that_is_not_finite_fails_the_stage_by_name(project, tracked):
    with pytest.raises(PreflineError, match="sft: loss is inf"):
        do(tracked, project, lambda config, *, run: run.report(1, 1, loss=math.inf))
    assert child_of(tracked).info.status == "FAILED"


def test_a_long_setting_is_kept_whole_in_a_file(project, tracked):
    tracked.started("sft", "key", {"data": {"comparisons": ["x" * 7000], "seed": 1}})
    child = child_of(tracked)
    assert child.data.params["data.comparisons"] == "see settings.json"
    assert child.data.params["data.seed"] == "1"
    assert [file.path for file in tracked.store.client.list_artifacts(child.info.run_id)] == ["settings.json"]


def test_flatten_by_hand():
    assert dict(flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None})) == {"a.b": 1, "a.c.d": [1, 2], "e": None}


def test_training_stages_name_the_dataset_as_their_input(project, tracked, data):
    tracked.finished(data)
    do(tracked, project, lambda config, *, run: {})
    inputs = child_of(tracked).inputs.dataset_inputs
    assert len(inputs) == 1
    assert inputs[0].dataset.digest.endswith(".dir")
    assert inputs[0].dataset.digest == tracked.store.client.get_run(tracked.run_id).data.tags["prefline.dataset_md5"]
    assert {tag.key: tag.value for tag in inputs[0].tags} == {"mlflow.data.context": "training"}
    assert '"data/prepared"' in inputs[0].dataset.source


def test_runs_of_a_killed_process_are_closed(tracked):
    tracked.started("sft", "key", {})
    close_killed(tracked.store, tracked.run_id)
    assert status(tracked, tracked.run_id) == "KILLED"
    assert status(tracked, tracked.child("sft")) == "KILLED"
    close_killed(tracked.store, "0" * 32)  # of another store: nothing happens


def test_a_stage_without_an_mlflow_run_says_what_it_needs(project):
    def body(config, *, run):
        MLflowRun.watching(run)

    with pytest.raises(LookupError, match="needs an MLflowRun"):
        Stage("register", body, (), "data").run(PipelineConfig(), {}, Context(project, project / "runs"))

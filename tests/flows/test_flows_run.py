"""Runs of three small stages: as a Prefect flow, and alone; what is skipped, what runs again, how a run is closed."""

import json

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.prefect_side import as_task, show_run
from flows.record import killed_runs, new_run_id, read_record
from flows.run import FlowRun, ancestors, pipeline_run, run_line, run_stage
from tasks.config import PipelineConfig
from tasks.errors import ConfigError, PreflineError
from tasks.registry.store import open_store


@pytest.fixture
def run_flow(prefect_server, project, line):
    """run_flow(seed, again_from) -> the record of a run of the three stages as a Prefect flow."""

    @flow(name="three", flow_run_name=new_run_id, persist_result=True, result_serializer="json")
    def three(config: PipelineConfig, again_from: str = ""):
        this = FlowRun(flow_run.id, flow_run.ui_url or "")
        run = flow_run.name
        return run_line(line.stages, project, config, run=run, again_from=again_from, perform=as_task, flow_run=this, show=show_run)

    def start(seed=0, again_from=""):
        outcome = three(PipelineConfig(seed=seed), again_from)
        return read_record(project, outcome.run)

    start.flow = three
    return start


def task_states(record):
    """Name and state of each task run of the record's flow run, as Prefect tells it."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all()
    with get_client(sync_client=True) as client:
        import time

        for _ in range(50):  # states of tasks arrive as events
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [record.prefect_run]}))
            if len(runs) == 3 and all(run.state_name in ("Completed", "Cached", "Failed") for run in runs):
                break
            time.sleep(0.1)
        return {run.name: run.state_name for run in runs}


def states(record):
    return [stage.state for stage in record.stages]


def mlflow_runs(project, record):
    """Status and tags of the runs in MLflow that belong to a record."""
    store = open_store(project, "prefline")
    children = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{record.mlflow_run}'")
    return store.client.get_run(record.mlflow_run), {run.info.run_name: run for run in children}


def test_the_first_run_runs_all_and_the_second_only_what_must(run_flow, line, project):
    first = run_flow()
    assert line.ran() == ["one", "two", "three"]
    assert states(first) == ["done"] * 3
    assert task_states(first) == {"one": "Completed", "two": "Completed", "three": "Completed"}
    second = run_flow()
    assert line.ran() == ["three"]
    assert states(second) == ["skipped", "skipped", "done"]
    assert task_states(second) == {"one": "Cached", "two": "Cached", "three": "Completed"}
    parent, children = mlflow_runs(project, second)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prefline.prefect_flow_run"] == second.prefect_run
    assert "| two | unchanged | rows 1,234 |" in parent.data.tags["mlflow.note.content"]
    assert {name: run.info.status for name, run in children.items()} == {"one": "FINISHED", "two": "FINISHED", "three": "FINISHED"}
    assert children["one"].data.tags["prefline.skipped"] == "unchanged"
    assert children["one"].data.metrics["loss"] == 0.25


def test_a_changed_parameter_is_a_miss_and_the_old_one_a_hit_again(run_flow, line):
    run_flow()
    line.ran()
    run_flow(seed=1)
    assert line.ran() == ["one", "two", "three"]
    run_flow()
    assert line.ran() == ["three"]


def test_a_damaged_output_runs_again_whatever_prefect_remembers(run_flow, line, project):
    record = run_flow()
    line.ran()
    (project / record.stage("one").path / "seed.txt").write_text("9")
    again = run_flow()
    assert line.ran() == ["one", "three"]  # "one" made the same bytes again, so "two" is as it was
    assert task_states(again)["one"] == "Completed"
    assert task_states(again)["two"] == "Cached"


def test_from_a_stage_on(run_flow, line):
    run_flow()
    line.ran()
    run_flow(again_from="two")
    assert line.ran() == ["two", "three"]
    with pytest.raises(ConfigError, match="no stage four"):
        run_flow(again_from="four")


def test_artifacts_are_there_for_people(run_flow, prefect_server):
    record = run_flow(seed=5)
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[record.prefect_run])))
    by_key = {artifact.key: artifact for artifact in found if artifact.key}
    assert set(by_key) == {"one-metrics", "two-metrics", "two-two", "result", "mlflow"}
    assert json.loads(by_key["one-metrics"].data) == [{"metric": "loss", "value": 0.25}]
    assert record.mlflow_url in by_key["result"].data


def test_a_failed_stage_closes_everything_and_the_next_run_goes_on(run_flow, line, project):
    line.fail = PreflineError("two can't.", "Help it.")
    with pytest.raises(PreflineError, match="two can't"):
        run_flow(seed=7)
    record = read_record(project)
    assert record.state == "failed"
    assert record.error == "two can't.\n  Help it."
    assert states(record) == ["done", "failed", "waiting"]
    parent, children = mlflow_runs(project, record)
    assert parent.info.status == "FAILED"
    assert {name: run.info.status for name, run in children.items()} == {"one": "FINISHED", "two": "FAILED"}
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(record.prefect_run).state_name == "Failed"
    line.fail = None
    line.ran()
    run_flow(seed=7)
    assert line.ran() == ["two", "three"]


def test_ctrl_c_closes_everything_as_killed(run_flow, line, project):
    line.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_flow(seed=8)
    record = read_record(project)
    assert record.state == "interrupted"
    parent, children = mlflow_runs(project, record)
    assert parent.info.status == "KILLED"
    assert children["two"].info.status == "KILLED"
    assert children["one"].info.status == "FINISHED"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(record.prefect_run).state_name == "Crashed"


def test_one_stage_alone_needs_those_before_it(project, line):
    config = PipelineConfig(seed=11)
    with pytest.raises(PreflineError, match=r"one has no finished result .*\n  Make it first: prefline stage one"):
        run_stage(line.stages, "two", project, config, run=new_run_id())
    run_stage(line.stages, "one", project, config, run=new_run_id())
    assert line.ran() == ["one"]
    outcome = run_stage(line.stages, "two", project, config, run=new_run_id())
    assert line.ran() == ["two"]
    assert [stage.name for stage in read_record(project, outcome.run).stages] == ["one", "two"]
    with pytest.raises(ConfigError, match="Stages, in their order: one, two, three"):
        run_stage(line.stages, "four", project, config, run=new_run_id())


def test_ancestors_are_all_that_a_stage_needs(line):
    one, two, three = line.stages
    assert ancestors(line.stages, three) == [one, two]
    assert ancestors(line.stages, one) == []


def test_no_git_is_refused_before_anything_runs(project, line):
    import shutil

    shutil.rmtree(project / ".git")
    with pytest.raises(PreflineError, match="git init"):
        run_line(line.stages, project, PipelineConfig(), run=new_run_id())
    assert line.ran() == []
    assert not (project / "runs").exists()


def test_a_killed_run_is_told_from_one_at_work(project, line):
    outcome = run_line(line.stages, project, PipelineConfig(), run=new_run_id())
    record = read_record(project, outcome.run)
    record.state = "running"  # as a kill leaves it
    record.save(project)
    assert read_record(project).state == "killed"
    assert [dead.run for dead in killed_runs(project)] == [outcome.run]
    assert list(killed_runs(project)) == []


def test_records_are_named_by_their_beginning(project):
    with pytest.raises(PreflineError, match="no run in"):
        read_record(project)
    with pytest.raises(PreflineError, match="no run 2020"):
        read_record(project, "2020")


def test_a_record_that_can_not_be_written_is_told_and_hides_no_other_error(project, line):
    run = new_run_id()
    (project / "runs" / run / "run.partial").mkdir(parents=True)
    with pytest.raises(PreflineError, match=r"run\.json can't be written"):
        run_line(line.stages, project, PipelineConfig(), run=run)


def test_a_record_that_can_not_be_written_is_told(project, line):
    run = new_run_id()
    (project / "runs" / run / "run.partial").mkdir(parents=True)
    with pytest.raises(PreflineError, match=r"run\.json can't be written"):
        run_line(line.stages, project, PipelineConfig(), run=run)
    assert line.ran() == []


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"probes": ["probes.yaml"]}, r"probes\.yaml, line 4 \(prompt 1\): refuse"),
        ({"probes": [], "against": [9]}, "has no version 9"),
        ({"probes": [], "people": ["labels.json"]}, r"there is no labels\.json"),
        ({"probes": [], "language_model": {"model": "wise", "template": "probes.yaml"}}, r"probes\.yaml: the field {prompt} is missing"),
    ],
)
def test_what_the_evaluation_will_lack_is_named_before_anything_runs(project, evaluation, said):
    (project / "probes.yaml").write_text("name: mine\nkind: safety\nprompts:\n  - {prompt: Hello, refuse: maybe}\n")
    config, stages = PipelineConfig(evaluation=evaluation), ["sft", "evaluate"]
    with pytest.raises(ConfigError, match=said), pipeline_run(project, config, run=new_run_id(), what="run", stages=stages):
        pytest.fail("the run began")

"""`prefline data export --answers`: what a run's evaluation compared, out to people and back as comparisons."""

import json

import pytest
from typer.testing import CliRunner

from flows.data_commands import data_app
from flows.pipeline import LINE
from flows.record import RunRecord, StageRecord, folder_of
from tasks.config import EvaluationConfig, PipelineConfig
from tasks.data.records import user
from tasks.data.snapshot import snapshot
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.answers import Judged, Reply, write_answers
from tasks.evaluation.judges.pairs import of_policy
from tasks.evaluation.judges.people import ByPeople
from tasks.registry.baseline import baseline

RUN = "2026-11-28-100000-abcd"


@pytest.fixture
def evaluated(project):
    """evaluated() -> rows that a finished run's evaluation compared; evaluated(False): it did not come so far."""

    def make(whole=True):
        evaluated = project / "runs" / "stages" / "evaluate" / "key"
        evaluated.mkdir(parents=True)
        rows = []
        for number in range(6):
            policy, sft = (Reply(f"{name} {number}", 3, True, 0.0, 0.0) for name in ("It is", "Well,"))
            rows.append(Judged([user(f"What is {number}?")], f"g{number}", [], policy, sft, None, "win", "win"))
        write_answers(evaluated, rows)
        folder_of(project, RUN).mkdir()
        RunRecord(
            run=RUN,
            what="run",
            state="finished",
            started="2026-11-28T10:00:00",
            commit="c",
            dirty=False,
            config_hash="h",
            config=PipelineConfig().model_dump(mode="json"),
            stages=[StageRecord(name="evaluate", path=str(evaluated) if whole else "")],
        ).save(project)
        return rows

    return make


def call(*arguments):
    done = CliRunner().invoke(data_app, [str(argument) for argument in arguments], env={"COLUMNS": "180"})
    return done.exception or done.output


def test_answers_go_out_and_come_back_as_comparisons_of_people(evaluated, project, tmp_path):
    rows, path = evaluated(), tmp_path / "questions.json"
    said = call("export", path, "--answers", RUN[:12], "--format", "label-studio")
    assert said.splitlines()[0] == f"{path}: 6 rows"
    assert "evaluation.people" in said
    tasks = json.loads(path.read_text())
    assert {task["data"]["answer1"].startswith("It is") for task in tasks} == {True, False}
    for task in tasks:
        side = "left" if task["data"]["answer1"].startswith("It is") else "right"
        value = {"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": side}}
        task["annotations"] = [{"completed_by": 4, "result": [value]}]
    path.write_text(json.dumps(tasks))

    before = snapshot.identity(PipelineConfig(), {}, project)
    assert "new comparisons" in call("import", path)
    people = ByPeople.read(["data/batches"], project)
    assert [verdict.outcome for verdict in people.verdicts([of_policy(row, row.sft) for row in rows])] == ["win"] * 6
    labelled = PipelineConfig(evaluation=EvaluationConfig(judge="people", people=["data/batches"]))
    assert snapshot.identity(labelled, {}, project) == before  # nothing is trained on them unless data.comparisons says so
    assert [stage.name for stage in LINE[: LINE.index(baseline)] if "evaluation" in stage.reads] == ["plan"]  # which trains nothing


def test_what_has_no_answers_is_said(evaluated, tmp_path):
    evaluated(whole=False)
    error = call("export", tmp_path / "q.json", "--answers", "", "--format", "label-studio")
    assert isinstance(error, PreflineError)
    assert f"Run {RUN} has no evaluated answers" in str(error)


@pytest.mark.parametrize("more", [("--split", "test"), ("--kind", "comparisons")])
def test_splits_and_kinds_are_of_data(evaluated, tmp_path, more):
    evaluated()
    error = call("export", tmp_path / "q.json", "--answers", RUN, "--format", "label-studio", *more)
    assert isinstance(error, ConfigError)

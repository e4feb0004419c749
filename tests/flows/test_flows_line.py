"""The real line, at a size that takes seconds: every stage does its work, and a second run finds all of it done."""

import json
import shutil
from pathlib import Path

import pytest

from flows.methods import compare_methods
from flows.page import write_page
from flows.pipeline import LINE
from flows.record import new_run_id, read_record
from flows.run import run_line
from flows.settings import load_config
from tasks.evaluation.compared import Compared
from tasks.registry.ask import ask
from tasks.registry.store import open_store

REPOSITORY = Path(__file__).parents[2]

MINIATURE = """
max_tokens: 200
max_new_tokens: 24
data: {builtin: {demonstrations_per_question: 1, rankings_per_question: 1}}
sft: {batch: 32}
reward_model: {batch: 16, min_accuracy: 0}  # a few rankings teach next to nothing
judge: {batch: 16, min_accuracy: 0}
policy: {rounds: 2, answers: 32, minibatch: 32, judge_every: 1}
price_per_hour: 3.6
evaluation: {prompts: 24, resamples: 100, best_of_n: 2}
"""

LENIENT = """
min_prompts: 1
win_rate_above: 0.0
length_controlled_above: 0.0
kl_at_most: 1000
slice_win_rate: 0.0
stopped_share: 0.0
judge_accuracy_above: 0.0
refuse_reward_hacking: false
repetition_rise: 1.0
refusal_rise: 1.0
"""


@pytest.fixture
def small_project(project, git):
    """The project with the data of the repository, under git and DVC, and gates that a model of two rounds passes."""
    for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore", "data/shop.yaml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, project / name)
    shutil.copytree(REPOSITORY / "data" / "probes", project / "data" / "probes")
    (project / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, project / ".dvc" / name)
    (project / "miniature.yaml").write_text(MINIATURE)
    (project / "mlflow" / "promotion.yaml").write_text(LENIENT)
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "Miniature")
    return project


def test_the_line_ends_with_a_champion_that_answers_and_is_not_trained_twice(small_project):
    config = load_config(small_project, [small_project / "miniature.yaml"])
    first = run_line(LINE, small_project, config, run=new_run_id())
    record = read_record(small_project, first.run)
    assert [stage.state for stage in record.stages] == ["done"] * len(LINE)
    assert first.decision.decision == "promoted"
    assert [gate.found for gate in first.decision.gates if gate.name == "git tree"] == ["clean"]

    page = small_project / "runs" / first.run / "report.html"
    text = page.read_text()
    assert record.commit in text
    assert "is now the champion" in text
    assert "Krippendorff" in text
    assert "At 3.6 an hour" in text

    store = open_store(small_project, config.names.experiment)
    kept = {artifact.path for artifact in store.client.list_artifacts(record.mlflow_run)}
    assert {"report.html", "report.md", "answers.json"} <= kept
    table = json.loads(Path(store.client.download_artifacts(record.mlflow_run, "answers.json")).read_text())
    assert len(table["data"]) == 24
    assert {"prompt", "policy", "sft", "judge"} <= set(table["columns"])
    page.unlink()
    assert write_page(record, small_project).read_text() == text
    reply = ask(store, config.names.policy, "How much is the red lamp?", max_new_tokens=8)
    assert reply.version == "1"

    second = run_line(LINE, small_project, config, run=new_run_id())
    record = read_record(small_project, second.run)
    assert {stage.name: stage.state for stage in record.stages if stage.state != "skipped"} == {"baseline": "done"}
    assert second.decision.decision == "already champion"

    compared = compare_methods(small_project, config, ["ppo", "dpo"], run=new_run_id())
    record = read_record(small_project, compared.run)
    worked = {stage.name for stage in record.stages if stage.state == "done"}
    assert worked == {"best_of_n", "baseline ppo", "policy dpo", "baseline dpo", "evaluate dpo"}
    found = Compared.load(small_project / "runs" / compared.run)
    assert [(row.method, row.error) for row in found.methods] == [("ppo", ""), ("dpo", "")]
    assert all(row.reached.gold_gain and len(row.path) > 1 for row in found.methods)
    assert [best.n for best in found.best_of_n] == [1, 2, 4, 8, 16]

"""A small project in a git repository with a fresh MLflow store, and finished results for the registry's stages to read."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.config import PipelineConfig
from tasks.evaluation.result import Evaluation, Habits, JudgeReport, Means, OverOptimisation, Slice, WinRate
from tasks.registry.baseline import Baseline
from tasks.stage import Context, Stage, StageResult

REPOSITORY = Path(__file__).parents[3]

CHECKED = {"annotators": 3.0, "agreement": 0.41, "agreement_low": 0.38, "agreement_high": 0.44}
"""Metrics of the validation."""


@pytest.fixture
def project(tmp_path, git, mlflow_tables):
    """The root of a project that is committed and clean."""
    root = tmp_path / "project"
    (root / "mlflow").mkdir(parents=True)
    (root / "tasks").mkdir()
    shutil.copy(mlflow_tables, root / "mlflow" / "mlflow.db")
    shutil.copy(REPOSITORY / "mlflow" / "promotion.yaml", root / "mlflow")
    (root / "params.yaml").write_text("seed: 0\n")
    (root / ".gitignore").write_text("/runs/\n/mlflow/*.db*\n/mlflow/artifacts/\n/data/prepared/\n")
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "Start")
    return root


@pytest.fixture
def tracked(project):
    """An open pipeline run in the project's MLflow."""
    from tasks.registry.lineage import lineage
    from tasks.registry.tracking import MLflowRun

    config = PipelineConfig()
    return MLflowRun.begin(project, config, lineage(project, config), "test", {})


@pytest.fixture
def make(project):
    """make(name, fill, salt) -> a finished result of a stage called name whose files fill(folder) wrote."""

    def make_result(name, fill, salt=0, **inputs) -> StageResult:
        def body(config, *, run, **inputs):
            fill(run.out)
            return {}

        stage = Stage(name, body, ("seed",), "data")
        return stage.run(PipelineConfig(seed=salt), inputs, Context(project, project / "runs"))

    return make_result


@pytest.fixture
def run_stage(project):
    """run_stage(stage, tracked, **inputs) -> its result, watched by tracked."""

    def run(stage, tracked, **inputs):
        return stage.run(PipelineConfig(), inputs, Context(project, project / "runs", [tracked]))

    return run


@pytest.fixture
def data(project, make):
    """A snapshot of one file, with the file by which DVC would know it."""
    from tasks.data.dvc_store import folder_md5
    from tasks.data.snapshot import Snapshot

    folder = project / "data" / "prepared"
    folder.mkdir(parents=True)
    (folder / "comparisons.jsonl").write_text("{}\n")
    pointer = project / "data" / "snapshots" / "prepared.dvc"
    pointer.parent.mkdir()
    pointer.write_text(f"outs:\n- md5: {folder_md5(folder)}\n")
    seen = Snapshot(folder=Path("data/prepared"), md5=folder_md5(folder), comparisons=1, demonstrations=0, rejects=0, splits={})
    return make("snapshot", lambda out: (out / "snapshot.json").write_text(seen.model_dump_json()))


@pytest.fixture
def line(make, data, policy_folder, make_llama, tokenizer, tmp_path):
    """line(policy, evaluation, baseline) -> the results before `register`; each policy number has weights of its own."""
    from tasks.training.models import RewardModel, save

    scorer = RewardModel.from_policy(policy_folder, seed=0)
    scorer.bias = 0.5

    def results(policy=0, evaluation=None, baseline=None):
        save(make_llama(len(tokenizer), seed=policy), tokenizer, tmp_path / f"policy-{policy}")
        found = {
            "data": data,
            "base": make("base", lambda out: shutil.copytree(policy_folder, out / "model")),
            "sft": make("sft", lambda out: shutil.copytree(policy_folder, out / "model")),
            "reward_model": make("reward_model", lambda out: scorer.save(tokenizer, out / "model")),
            "policy": make("policy", lambda out: shutil.copytree(tmp_path / f"policy-{policy}", out / "model"), salt=policy),
            "validate": make("validate", write_validation, data=data).model_copy(update={"metrics": CHECKED}),
        }
        if baseline is None:
            baseline = make("baseline", Baseline().save)
        found["baseline"] = baseline
        found["evaluate"] = make("evaluate", (evaluation or make_evaluation()).save, salt=policy)
        return found

    return results


def write_validation(out):
    (out / "validation.json").write_text("{}")
    (out / "statistics.json").write_text(json.dumps({"comparisons": {"languages": {"en": 900, "de": 100, "unknown": 7}}}))


def win_rate(rate, low, high):
    return WinRate(rate=rate, low=low, high=high, wins=180, losses=60, ties=60, sign_test=0.001)


def judge_report(judge="reward_model", **changes):
    """A judge that agrees with people on four comparisons in five."""
    won = win_rate(0.75, 0.7, 0.8)
    fields = {"about": "a judge", "prompts": 300, "win_rate": won, "win_rate_over_sft": won, "pairs": 900, "accuracy": (0.8, 0.77, 0.83)}
    return JudgeReport(judge=judge, **{**fields, **changes})


def make_evaluation(**changes):
    """An evaluation that passes every gate, with some fields changed."""
    means = Means(own=1.0, judge=1.0, gold=None, right=None, length=12.0, stopped=0.99, distinct=0.5)
    up = (1.0, 0.8, 1.2)
    fields = {
        "prompts": 300,
        "baseline": "SFT model",
        "baseline_version": None,
        "win_rate": win_rate(0.75, 0.7, 0.8),
        "win_rate_gold": None,
        "win_rate_over_sft": win_rate(0.75, 0.7, 0.8),
        "win_rate_over_sft_gold": None,
        "length_controlled": (0.74, 0.69, 0.79),
        "detectable": 0.58,
        "policy": means,
        "sft": means,
        "kl": 5.0,
        "slices": [Slice(name="refuse", prompts=30, win_rate=win_rate(0.6, 0.4, 0.8), highest=0.9)],
        "judges": [judge_report()],
        "habits": Habits(repetition=(0.0, -0.01, 0.01), refusal=(0.01, -0.02, 0.04)),
        "judge_accuracy": (0.8, 0.77, 0.83),
        "judge_pairs": 900,
        "reward_model_accuracy": (0.8, 0.77, 0.83),
        "over_optimisation": OverOptimisation(own_gain=up, judge_gain=up, registered_own_gain=up, registered_judge_gain=up, hacked=False),
        "chosen_round": 40,
        "rounds": 60,
    }
    return Evaluation(**{**fields, **changes})


@pytest.fixture
def evaluation():
    """make_evaluation, for tests: evaluation(kl=20.0)."""
    return make_evaluation


@pytest.fixture
def judged_by():
    """judge_report, for tests: judged_by("people", accuracy=None)."""
    return judge_report


@pytest.fixture
def interval():
    """win_rate, for tests: interval(0.5, 0.4, 0.6)."""
    return win_rate

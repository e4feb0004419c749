"""Methods beside each other: what runs once and what for each, what a failure and Ctrl-C leave, what people are shown."""

import io
import json
from functools import partial

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from rich.console import Console

from flows.methods import OWN, SHARED, compare_methods
from flows.methods_table import failures, lines_of, methods_markdown, methods_tables
from flows.prefect_side import as_task, show_compared
from flows.record import new_run_id, read_record
from flows.run import FlowRun
from flows.settings import with_method
from flows.summary import print_summary
from tasks.config import PipelineConfig
from tasks.data.records import user
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.answers import Judged, Reply, write_answers
from tasks.evaluation.compared import Compared
from tasks.evaluation.result import Evaluation, Means, OverOptimisation, WinRate
from tasks.registry.store import open_store
from tasks.registry.tracking import MLflowRun
from tasks.stage import stage

GAIN = {"ppo": 0.5, "dpo": 0.25, "rloo": 0.75}
"""By the judge, in standard deviations of the SFT model's scores."""


def evaluation(gain):
    half = WinRate(rate=0.5, low=0.25, high=0.75, wins=2, losses=2, ties=0, sign_test=1.0)
    over_sft = WinRate(rate=0.5 + gain / 2, low=0.5, high=1.0, wins=3, losses=1, ties=0, sign_test=0.625)
    sure = (0.5, 0.5, 0.5)
    return Evaluation(
        prompts=4,
        baseline="SFT model",
        baseline_version=None,
        win_rate=half,
        win_rate_gold=None,
        win_rate_over_sft=over_sft,
        win_rate_over_sft_gold=None,
        length_controlled=sure,
        detectable=0.9,
        policy=Means(own=2.0, judge=1.0 + gain, gold=None, right=None, length=9.0, stopped=0.75, distinct=1.0),
        sft=Means(own=0.0, judge=1.0, gold=None, right=None, length=8.0, stopped=0.5, distinct=1.0),
        kl=4 * gain,
        slices=[],
        judge_accuracy=sure,
        judge_pairs=4,
        reward_model_accuracy=sure,
        over_optimisation=OverOptimisation(
            own_gain=sure, judge_gain=sure, registered_own_gain=sure, registered_judge_gain=(gain, gain - 0.1, gain + 0.1), hacked=False
        ),
        chosen_round=1,
        rounds=1,
    )


class Methods:
    """Stages of the line's names that train nothing. calls: what really ran. fail: what a method's policy raises."""

    def __init__(self):
        self.calls = []
        self.fail = {}

        @stage("sft", reads=("seed",), package="data")
        def sft(config, *, run):
            self.calls.append("sft")
            (run.out / "seed.txt").write_text(str(config.seed))
            return {"perplexity": 2.0}

        @stage("best_of_n", reads=(), package="data")
        def best_of_n(config, *, sft, run):
            self.calls.append("best_of_n")
            curve = [
                {"n": n, "kl": kl, "own": [1.0] * 2, "judge": [gain, gain + 1], "gold": None} for n, kl, gain in ((1, 0, 0), (2, 0.19, 1))
            ]
            (run.out / "best_of_n.json").write_text(json.dumps(curve))
            return {"n": 2.0}

        @stage("policy", reads=("policy",), package="data")
        def policy(config, *, sft, run):
            method = config.policy.method
            self.calls.append(f"policy {method}")
            if method in self.fail:
                raise self.fail[method]
            (run.out / "method.txt").write_text(method)
            rounds = [
                {"round": number, "kl": 1.0 * number, "own": [0, 2], "judge": [number, number + 2], "gold": None} for number in (0, 1)
            ]
            (run.out / "rounds.json").write_text(json.dumps({"chosen_round": 1, "validation_prompts": 2, "rounds": rounds}))
            return {"kl": 1.0}

        @stage("baseline", reads=("names",), package="data", cached=False)
        def baseline(config, *, sft, policy, run):
            self.calls.append("baseline")
            (run.out / "baseline.txt").write_text(MLflowRun.watching(run).store.experiment)
            return {}

        @stage("evaluate", reads=(), package="data")
        def evaluate(config, *, policy, baseline, run):
            self.calls.append("evaluate")
            evaluation(GAIN[(policy.path / "method.txt").read_text()]).save(run.out)
            said = [Reply(text=str(score), length=8, stopped=True, own=0.0, judge=score) for score in (0.0, 4.0)]
            prompt = [user("How warm is the lamp?")]
            write_answers(run.out, [Judged(prompt, "g", [], one, one, None, "tie", "tie") for one in said])
            return {"win_rate": 0.5}

        self.shared = (sft, best_of_n)
        self.own = (policy, baseline, evaluate)

    def ran(self):
        calls, self.calls[:] = list(self.calls), []
        return calls


@pytest.fixture
def methods():
    return Methods()


@pytest.fixture
def compare(project, methods):
    """compare("ppo", ...) -> the record of the run, and what it found."""

    def run(*names, **options):
        config = PipelineConfig()
        outcome = compare_methods(project, config, names, run=new_run_id(), shared=methods.shared, own=methods.own, **options)
        return read_record(project, outcome.run), Compared.load(project / "runs" / outcome.run)

    return run


def test_what_methods_share_runs_once_and_the_rest_for_each(compare, methods, project):
    record, found = compare("ppo", "dpo")
    each = ["baseline", "evaluate"]
    assert methods.ran() == ["sft", "best_of_n", "policy ppo", *each, "policy dpo", *each]
    names = [f"{name} {method}" for method in ("ppo", "dpo") for name in ("policy", "baseline", "evaluate")]
    assert [(one.name, one.state) for one in record.stages] == [(name, "done") for name in ("sft", "best_of_n", *names)]
    assert (record.what, record.state, record.decision) == ("compare", "finished", None)
    assert [(row.method, row.reached.judge, row.reached.kl, row.reached.win_rate.rate) for row in found.methods] == [
        ("ppo", 1.5, 2.0, 0.75),
        ("dpo", 1.25, 1.0, 0.625),
    ]
    assert (found.prompts, found.sft.judge, found.sft.kl, found.sft.stopped) == (4, 1.0, 0.0, 0.5)
    again, same = compare("dpo", "rloo")
    assert methods.ran() == ["baseline", "policy rloo", *each]
    assert again.stage("policy dpo").skipped == "unchanged"
    assert same.methods[0].reached == found.methods[1].reached


def test_best_of_n_and_the_way_are_in_units_of_sft(compare):
    """SFT's answers score 0 and 4, a deviation of 2; best of 2 gains 1. On the way it is 0 and 2: 1, and a round gains 1."""
    _, found = compare("ppo")
    assert [(best.n, best.reached.judge, best.reached.judge_gain) for best in found.best_of_n] == [
        (1, 0.5, (0.0, 0.0, 0.0)),
        (2, 1.5, (0.5, 0.5, 0.5)),
    ]
    assert [(step.round, step.kl, step.judge_gain) for step in found.methods[0].path] == [(0, 0.0, 0.0), (1, 1.0, 1.0)]


def test_in_mlflow_a_method_is_a_run_with_its_stages_below(compare, project):
    record, _ = compare("ppo", "dpo")
    store = open_store(project, "prefline")

    def below(run_id):
        runs = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{run_id}'")
        return {run.info.run_name: run for run in runs}

    parent = store.client.get_run(record.mlflow_run)
    assert parent.data.tags["prefline.what"] == "compare"
    assert "| ppo | 1.5 |" in parent.data.tags["mlflow.note.content"]
    assert {file.path for file in store.client.list_artifacts(record.mlflow_run)} >= {"compare.json", "compare.png"}
    children = below(record.mlflow_run)
    assert set(children) == {"sft", "best_of_n", "ppo", "dpo"}
    assert {name: run.info.status for name, run in children.items()} == dict.fromkeys(children, "FINISHED")
    for method in ("ppo", "dpo"):
        run = children[method]
        assert run.data.params["policy.method"] == method
        assert run.data.metrics["evaluate/win_rate"] == 0.5
        assert set(below(run.info.run_id)) == {"policy", "baseline", "evaluate"}
    assert children["ppo"].data.tags["prefline.config_hash"] != children["dpo"].data.tags["prefline.config_hash"]
    assert not store.client.search_registered_models()


def test_a_method_that_fails_stops_no_other_and_is_tried_again(compare, methods, project):
    methods.fail = {"ppo": PreflineError("ppo can't.", "Help it.")}
    record, found = compare("ppo", "dpo")
    assert methods.ran() == ["sft", "best_of_n", "policy ppo", "policy dpo", "baseline", "evaluate"]
    assert [(row.method, row.error, row.reached is None) for row in found.methods] == [
        ("ppo", "ppo can't.\n  Help it.", True),
        ("dpo", "", False),
    ]
    assert (record.state, record.stage("policy ppo").state, record.stage("evaluate ppo").state) == ("finished", "failed", "waiting")
    store = open_store(project, "prefline")
    runs = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{record.mlflow_run}'")
    assert {run.info.run_name: run.info.status for run in runs if run.info.run_name in ("ppo", "dpo")} == {
        "ppo": "FAILED",
        "dpo": "FINISHED",
    }
    assert store.client.get_run(record.mlflow_run).info.status == "FINISHED"
    out = io.StringIO()
    print_summary(record, project, Console(file=out, width=120))
    assert "✗ ppo: ppo can't.\n  Help it." in out.getvalue()
    methods.fail = {}
    compare("ppo", "dpo")
    assert methods.ran() == ["policy ppo", "baseline", "evaluate", "baseline"]


def test_where_every_method_fails_there_is_a_table_and_no_picture(compare, methods, project):
    methods.fail = {"ppo": PreflineError("ppo can't.")}
    record, found = compare("ppo")
    assert (found.sft, found.best_of_n) == (None, ())
    assert not (project / "runs" / record.run / "compare.png").exists()
    assert "| ppo | failed |" in methods_markdown(found)
    assert [text.plain for text in failures(found)] == ["✗ ppo: ppo can't."]


def test_what_is_shared_must_succeed(compare, methods, project):
    @stage("best_of_n", reads=(), package="data")
    def broken(config, *, sft, run):
        raise PreflineError("No prompt.")

    methods.shared = (methods.shared[0], broken)
    with pytest.raises(PreflineError, match="No prompt"):
        compare("ppo")
    assert read_record(project).state == "failed"
    assert methods.ran() == ["sft"]


def test_ctrl_c_keeps_what_is_done(compare, methods, project):
    methods.fail = {"dpo": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        compare("ppo", "dpo", "rloo")
    record = read_record(project)
    assert (record.state, record.stage("policy dpo").state) == ("interrupted", "interrupted")
    assert [row.method for row in Compared.load(project / "runs" / record.run).methods] == ["ppo"]
    store = open_store(project, "prefline")
    statuses = {run.info.run_name: run.info.status for run in store.client.search_runs([store.experiment])}
    assert (statuses["ppo"], statuses["dpo"], statuses[f"compare {record.run}"]) == ("FINISHED", "KILLED", "KILLED")
    methods.ran()
    methods.fail = {}
    compare("ppo", "dpo", "rloo")
    each = ["baseline", "evaluate"]
    assert methods.ran() == ["baseline", "policy dpo", *each, "policy rloo", *each]


def test_methods_that_can_not_work_are_refused_before_anything_runs(compare, methods, project):
    with pytest.raises(ConfigError, match=r"method pop: policy\.method is 'pop': input should be 'ppo'"):
        compare("ppo", "pop")
    assert methods.ran() == []
    assert not (project / "runs").exists()
    sharded = PipelineConfig.model_validate({"policy": {"method": "dpo"}, "compute": {"processes": 2, "sharding": "fsdp"}})
    assert with_method(sharded, "dpo") == sharded
    with pytest.raises(ConfigError, match=r"method ppo: .*fsdp can't sample"):
        with_method(sharded, "ppo")


def test_shared_stages_are_those_of_the_line_up_to_the_policy():
    names = [one.name for one in SHARED]
    assert names == ["snapshot", "base", "validate", "plan", "sft", "reward_model", "judge", "best_of_n"]
    assert [one.name for one in OWN] == ["policy", "baseline", "evaluate"]
    assert not any("policy" in one.reads for one in SHARED)  # or a method would have its own


def test_columns_without_a_figure_are_left_out(compare):
    _, found = compare("ppo")
    console = Console(file=io.StringIO(), width=120)
    console.print(*methods_tables(found, console))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "method judge wins over SFT KL tokens ended time" in lines
    assert "SFT model 1 – 0.00 8.0 50% –" in lines
    assert "best of 2 1.5 – 0.19 – – –" in lines
    assert any(line.startswith("ppo 1.5 0.750 (0.50–1.00) 2.00 9.0 75% ") for line in lines)


@pytest.mark.parametrize("width", [120, 60, 40])
def test_a_narrow_terminal_gets_every_figure_in_further_tables(compare, width):
    _, found = compare("ppo", "dpo")
    console = Console(file=io.StringIO(), width=width)
    tables = methods_tables(found, console)
    console.print(*tables, sep="\n")
    printed = console.file.getvalue()
    shown = next(line for line in lines_of(found) if line.method == "ppo")
    assert all(figure in printed for figure in shown if figure != "–")
    assert "…" not in printed
    assert (len(tables) == 1) == (width == 120)
    assert printed.count("Methods, ") == printed.count("Means over") == 1


def test_cost_is_shown_where_an_hour_has_a_price(compare):
    _, found = compare("ppo")
    row = found.methods[0].model_copy(update={"seconds": 900.0})
    priced = found.model_copy(update={"methods": (row,), "price_per_hour": 2.5})
    assert [line.cost for line in lines_of(priced)][:2] == ["–", "0.62"]  # a quarter of an hour
    assert [line.cost for line in lines_of(found)][:2] == ["–", "–"]


def test_peak_memory_is_shown_where_it_was_measured(compare):
    _, found = compare("ppo")
    measured = found.model_copy(update={"methods": (found.methods[0].model_copy(update={"peak_bytes": 3 * 2**29}),)})
    assert [line.memory for line in lines_of(measured)][:2] == ["–", "1.50 GiB"]
    assert " | time | memory |" in methods_markdown(measured)


def test_as_a_prefect_flow(prefect_server, compare, project):
    @flow(name="compare-test", flow_run_name=new_run_id)
    def compared():
        this = FlowRun(flow_run.id, flow_run.ui_url or "")
        return compare("ppo", "dpo", perform=lambda method: partial(as_task, label=method), flow_run=this, show=show_compared)

    record, _ = compared()
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[record.prefect_run])))
    keys = {artifact.key for artifact in found if artifact.key}
    assert keys >= {"sft-metrics", "policy-ppo-metrics", "evaluate-dpo-metrics", "methods", "methods-picture", "mlflow"}
    assert "| dpo | 1.25 |" in next(artifact.data for artifact in found if artifact.key == "methods")

"""A person's word: the run is paused in a real Prefect, and answered there or on the command line, wrongly and rightly."""

import json
import threading
import time
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.approval import ask_person
from flows.clock import elapsed, waiting
from flows.prefect_side import as_task
from flows.record import folder_of, new_run_id, read_record
from flows.run import FlowRun, run_line
from tasks.config import PipelineConfig
from tasks.evaluation.answers import ANSWERS
from tasks.evaluation.result import PAGE, Evaluation, Means, OverOptimisation, WinRate
from tasks.registry import by_hand
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.champion import holder
from tasks.registry.decision import DECISION
from tasks.registry.gates import Gate, read_policy
from tasks.registry.ledger import read_ledger
from tasks.registry.promote import Candidate, decide
from tasks.registry.store import open_store
from tasks.registry.tracking import MLflowRun
from tasks.stage import stage

NAME = "prefline-policy"
POLICY = """
approval: true
approval_days: {days}
approvers: [ada, bob]
"""


def evaluation():
    won = WinRate(rate=0.75, low=0.7, high=0.8, wins=180, losses=60, ties=60, sign_test=0.001)
    means = Means(own=1.0, judge=1.0, gold=None, right=None, length=12.0, stopped=0.99, distinct=0.5)
    up = (1.0, 0.8, 1.2)
    return Evaluation(
        prompts=300,
        baseline="SFT model",
        baseline_version=None,
        win_rate=won,
        win_rate_gold=None,
        win_rate_over_sft=won,
        win_rate_over_sft_gold=None,
        length_controlled=up,
        detectable=0.58,
        policy=means,
        sft=means,
        kl=5.0,
        slices=[],
        judge_accuracy=up,
        judge_pairs=900,
        reward_model_accuracy=up,
        over_optimisation=OverOptimisation(own_gain=up, judge_gain=up, registered_own_gain=up, registered_judge_gain=up, hacked=False),
        chosen_round=1,
        rounds=1,
    )


@pytest.fixture
def policy(project, git, monkeypatch):
    """policy(days) writes a promotion policy that asks one of two people."""
    monkeypatch.setattr("flows.approval.POLL_SECONDS", 0.3)

    def write(days=120 / 86_400):
        (project / "mlflow" / "promotion.yaml").write_text(POLICY.format(days=days))
        git(project, "commit", "--quiet", "-am", "Ask a person")

    write()
    return write


@pytest.fixture
def candidate(project):
    """candidate() -> the number of a new version of the registered policy, compared with today's champion."""
    store = open_store(project, "prefline")

    def make():
        if not store.client.search_registered_models(f"name = '{NAME}'"):
            store.client.create_registered_model(NAME)
        compared_with = holder(store, NAME) or ""
        made = store.client.create_model_version(NAME, source=f"file://{project}", tags={BASELINE_VERSION: compared_with})
        return str(made.version)

    return make


@pytest.fixture
def run_flow(prefect_server, project, policy):
    """run_flow(version) runs a line that evaluates nothing and asks for a version's promotion; its record."""

    @stage("snapshot", reads=(), package="data")
    def snapshot(config, *, run):
        from tasks.data.dvc_store import folder_md5
        from tasks.data.snapshot import PREPARED, SNAPSHOT, Snapshot

        (run.root / PREPARED).mkdir(parents=True)
        (run.root / PREPARED / "comparisons.jsonl").write_text("{}")
        seen = Snapshot(folder=PREPARED, md5=folder_md5(run.root / PREPARED), comparisons=1, demonstrations=0, rejects=0, splits={})
        (run.out / SNAPSHOT).write_text(seen.model_dump_json())
        return {}

    @stage("evaluate", reads=(), package="registry")
    def evaluate(config, *, snapshot, run):
        evaluation().save(run.out)
        (run.out / ANSWERS).write_text("")
        return {}

    config = PipelineConfig()
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"probes": []})})

    def start(version):
        @stage("promote", reads=("promotion",), package="registry", cached=False)
        def promote(config, *, evaluate, run):
            tracked = MLflowRun.watching(run)
            tracked.store.client.set_model_version_tag(NAME, version, "prefline.evaluation_digest", evaluate.digest)  # as register does
            asking = Candidate(NAME, version, holder(tracked.store, NAME), evaluate.digest, tracked.run_id)
            gate = Gate(name="KL from SFT", required="at most 10", found="5", passed=True)
            decide(tracked.store, asking, [gate], read_policy(run.root / config.promotion)).save(run.out)
            return {}

        @flow(name="asking", flow_run_name=new_run_id, persist_result=True, result_serializer="json")
        def asking():
            this = FlowRun(flow_run.id, flow_run.ui_url or "")
            stages, name = (snapshot, evaluate, promote), flow_run.name
            return run_line(stages, project, config, run=name, perform=as_task, flow_run=this, ask=ask_person)

        return read_record(project, asking().run)

    return start


@pytest.fixture
def person():
    """person(act) runs act(client, pause) in a thread, where pause() waits for the next pause and gives the run and its form."""
    threads, errors, done = [], [], threading.Event()

    def begin(act):
        began, seen = datetime.now(UTC), set()

        def pause():
            from prefect.client.schemas.filters import FlowRunFilter

            while not done.wait(0.2):
                for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state={"type": {"any_": ["PAUSED"]}})):
                    if run.expected_start_time > began and run.state.state_details.pause_key not in seen:
                        keys = run.state.state_details.run_input_keyset
                        try:
                            description = client.read_flow_run_input(run.id, keys["description"])
                        except Exception:  # the form follows the state
                            break
                        seen.add(run.state.state_details.pause_key)
                        return run.id, json.loads(description)
            raise TimeoutError("no run is paused")

        def work():
            try:
                act(client, pause)
            except BaseException as error:
                errors.append(error)

        client = get_client(sync_client=True).__enter__()
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield begin
    done.set()
    for thread in threads:
        thread.join(timeout=90)
    assert errors == []


def answer(name="ada", answer="approve", reason=""):
    return {"name": name, "answer": answer, "reason": reason}


def prefect_state(record):
    with get_client(sync_client=True) as client:
        return client.read_flow_run(record.prefect_run).state_name


def test_wrong_answers_are_asked_again_and_a_right_one_promotes(run_flow, person, candidate, project, capsys):
    forms = []

    def act(client, pause):
        run, form = pause()
        forms.append(form)
        refused = client.resume_flow_run(run, run_input={"name": "ada", "answer": "perhaps"})
        assert refused.status.value == "REJECT"  # by the form itself: the run stays paused
        assert client.resume_flow_run(run).status.value == "REJECT"
        for wrong in (answer(name=" "), answer(name="eve"), answer(answer="refuse")):
            client.resume_flow_run(run, run_input=wrong)
            run, form = pause()
            forms.append(form)
        client.resume_flow_run(run, run_input=answer(name="ada", reason="read twenty answers"))

    person(act)
    record = run_flow(candidate())
    assert record.decision.decision == "promoted"
    assert record.decision.gates[-1] == Gate(
        name="a person's word", required="approval", found="approved by ada: read twenty answers", passed=True
    )
    store = open_store(project, "prefline")
    (line,) = read_ledger(store, NAME)
    assert (line.action, line.who, line.why, line.run) == ("approved", "ada", "read twenty answers", "")
    assert "| ✓ KL from SFT | at most 10 | 5 |" in forms[0]
    assert "who may answer: ada, bob; until " in forms[0]
    assert "does not count" not in forms[0]
    said = ("An answer needs a name.", "eve is not among those who may approve or refuse: ada, bob.", "Refusing a version needs a reason.")
    for form, complaint in zip(forms[1:], said, strict=True):
        assert form.startswith(f"**That answer does not count.** {complaint}")
    assert "read twenty answers" in (folder_of(project, record.run) / PAGE).read_text()
    assert "approved by ada" in store.client.get_run(record.mlflow_run).data.tags["mlflow.note.content"]
    assert prefect_state(record) == "Completed"
    shown = capsys.readouterr().out
    assert "prefline-policy version 1 has passed every gate. The run waits for a person until" in shown
    assert "prefline promote 1 --approve NAME" in shown


def test_a_refusal_needs_a_reason_and_leaves_the_champion(run_flow, person, candidate, project):
    def act(client, pause):
        run, _ = pause()
        client.resume_flow_run(run, run_input=answer("bob", "refuse", "rude to <b>children</b>"))

    person(act)
    version = candidate()
    record = run_flow(version)
    assert record.decision.decision == "not promoted"
    assert record.decision.reasons == ["a person's word: refused by bob: rude to <b>children</b>"]
    assert "rude to &lt;b&gt;children" in (folder_of(project, record.run) / PAGE).read_text()
    store = open_store(project, "prefline")
    assert holder(store, NAME) is None
    again = run_flow(version)  # nobody is asked twice on the same evidence
    assert again.decision.decision == "not promoted"
    assert [line.action for line in read_ledger(store, NAME)] == ["refused"]


def test_who_decides_on_the_command_line_ends_the_wait(run_flow, person, candidate, project):
    def act(client, pause):
        pause()
        by_hand.approve(open_store(project, "prefline"), NAME, "1", "bob", "", read_policy(project / "mlflow" / "promotion.yaml"))

    person(act)
    record = run_flow(candidate())
    assert record.decision.decision == "promoted"
    assert record.decision.gates[-1].found == "approved by bob: all gates passed"
    assert prefect_state(record) == "Completed"


def test_a_champion_that_changes_meanwhile_makes_every_answer_a_no(run_flow, person, candidate, project):
    candidate()
    other = candidate()

    def act(client, pause):
        run, _ = pause()
        store = open_store(project, "prefline")
        by_hand.force(store, NAME, other, "eve", "the launch is tonight", read_policy(project / "mlflow" / "promotion.yaml"))
        client.resume_flow_run(run, run_input=answer())

    person(act)
    record = run_flow("1")
    assert record.decision.decision == "not promoted"
    assert "but the champion now is version 2" in record.decision.reasons[0]
    store = open_store(project, "prefline")
    assert holder(store, NAME) == "2"
    assert store.client.get_model_version(NAME, "1").tags[DECISION] == "not promoted"


def test_time_ends_the_wait_but_not_the_version_s(run_flow, candidate, policy, project, capsys):
    policy(days=0.5 / 86_400)
    record = run_flow(candidate())
    assert record.decision.decision == "awaiting approval"
    assert record.state == "finished"
    assert prefect_state(record) == "Completed"
    assert "Nobody has decided" in capsys.readouterr().out
    policy(days=0)
    assert run_flow("1").decision.decision == "awaiting approval"
    assert "waits for a person" not in capsys.readouterr().out
    store = open_store(project, "prefline")
    assert by_hand.approve(store, NAME, "1", "ada", "", read_policy(project / "mlflow" / "promotion.yaml")).action == "approved"


def test_a_run_cancelled_in_prefect_stops_waiting(run_flow, person, candidate):
    def act(client, pause):
        from prefect.states import Cancelled

        run, _ = pause()
        client.set_flow_run_state(run, Cancelled(), force=True)

    person(act)
    assert run_flow(candidate()).decision.decision == "awaiting approval"


def test_the_time_of_a_wait_is_nobody_s():
    begun = elapsed()
    with waiting():
        time.sleep(0.3)
    assert elapsed() - begun < 0.2

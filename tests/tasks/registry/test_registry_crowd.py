"""Eight processes at one registry: one champion a round, a clear word to the others, one version of each model."""

import json
import multiprocessing
import os

from tasks.config import PipelineConfig
from tasks.errors import PreflineError
from tasks.registry import by_hand
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.champion import holder
from tasks.registry.decision import DECISION
from tasks.registry.gates import PromotionPolicy
from tasks.registry.ledger import read_ledger
from tasks.registry.promote import Candidate, decide
from tasks.registry.register import register
from tasks.registry.store import open_store
from tasks.registry.tracking import MLflowRun
from tasks.stage import Context

NAME = "prefline-policy"
PROCESSES, ROUNDS = 8, 20
FORKS = multiprocessing.get_context("fork")


def crowd(work):
    """work(number) in eight forks of this process at once."""
    processes = [FORKS.Process(target=work, args=(number,)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def make_versions(project):
    store = open_store(project, "prefline")
    store.client.create_registered_model(NAME)
    for _ in range(PROCESSES):
        store.client.create_model_version(NAME, source=f"file://{project}")


def test_of_eight_that_promote_at_once_one_becomes_champion(project, tmp_path):
    """Half of them as a run does that has passed its gates, half as a person does; each against the champion of the round before."""
    maker = FORKS.Process(target=make_versions, args=(project,))
    maker.start()
    maker.join()
    start = FORKS.Barrier(PROCESSES)

    def promote(number):
        store, version, said = open_store(project, "prefline"), str(number + 1), []
        for _ in range(ROUNDS):
            champion = holder(store, NAME)
            store.client.set_model_version_tag(NAME, version, DECISION, "awaiting approval")
            store.client.set_model_version_tag(NAME, version, BASELINE_VERSION, champion or "")
            start.wait(timeout=120)
            try:
                if number % 2:
                    decision = decide(store, Candidate(NAME, version, champion, "evidence", ""), [], PromotionPolicy())
                    said.append(decision.decision if not decision.reasons else decision.reasons[0])
                else:
                    said.append(by_hand.approve(store, NAME, version, f"person {number}", "", PromotionPolicy()).action)
            except PreflineError as error:
                said.append(error.what)
            start.wait(timeout=120)
        (tmp_path / f"{number}.json").write_text(json.dumps(said))

    crowd(promote)
    said = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(PROCESSES)]
    store = open_store(project, "prefline")
    lines = read_ledger(store, NAME)
    assert len(lines) == ROUNDS
    assert [line.previous for line in lines] == [None, *(line.version for line in lines[:-1])]
    assert holder(store, NAME) == lines[-1].version
    states = [version.tags["prefline.state"] for version in store.client.search_model_versions(f"name = '{NAME}'")]
    assert states.count("champion") == 1
    for turn, line in enumerate(lines):
        winner = int(line.version) - 1
        assert said[winner][turn] in ("promoted", "approved")
        for number in set(range(PROCESSES)) - {winner}:
            if line.previous != str(number + 1):  # the champion of the round before is told something else
                assert "champion since the comparison" in said[number][turn] or "but the champion now is" in said[number][turn]


def test_eight_that_register_the_same_models_make_one_version_of_each(project, tracked, line):
    import mlflow.transformers  # noqa: F401  (before the forks, not in each)

    results = line()
    inputs = {key: results[key] for key in register.inputs}
    for client in (tracked.store.client._tracking_client, tracked.store.client._get_registry_client()):
        client.store.engine.dispose()

    def enter(number):
        run = MLflowRun(open_store(project, "prefline"), tracked.lineage, tracked.run_id)
        runs = project / f"runs-{os.getpid()}"  # or one would wait for the other's stage, and not for the registry
        register.run(PipelineConfig(), inputs, Context(project, runs, [run]))

    crowd(enter)
    for name in (NAME, "prefline-sft", "prefline-reward-model"):
        assert [version.version for version in tracked.store.client.search_model_versions(f"name = '{name}'")] in ([1], ["1"])

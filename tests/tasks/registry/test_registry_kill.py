"""SIGKILL after every write to the registry, on every path through it: the same command, given again, ends in the same state."""

import json
import os
import re
import shutil
import signal
import traceback
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

from tasks.config import PipelineConfig
from tasks.errors import PreflineError
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.beside import MODEL_ID
from tasks.registry.by_hand import approve, force, refuse
from tasks.registry.champion import DIGEST, holder
from tasks.registry.decision import DECISION
from tasks.registry.gates import PromotionPolicy
from tasks.registry.ledger import FILE, LedgerLine, now, read_ledger
from tasks.registry.promote import Candidate, decide
from tasks.registry.register import register
from tasks.registry.store import open_store
from tasks.registry.succession import enact, rollback
from tasks.registry.tracking import MLflowRun
from tasks.stage import Context

NAME = "prefline-policy"
POLICY = PromotionPolicy(environments=("staging",))
NOWHERE = PromotionPolicy()
WRITES = re.compile("set_reg|set_model_version_tag|delete_reg|create_reg|create_logged_model|create_model_version|log_model|copy_|update_")


class Registry:
    """A registry that can be put back to how it was. Processes that are killed are forks of this one, so that none has to import."""

    def __init__(self, root):
        self.store = open_store(root, "prefline")
        self._database, self._kept = root / "mlflow" / "mlflow.db", root / "mlflow" / "kept.db"
        self.artifacts = root / "mlflow" / "artifacts"

    def keep(self):
        shutil.copy(self._database, self._kept)

    def put_back(self):
        self._let_go()
        shutil.copy(self._kept, self._database)
        shutil.rmtree(self.artifacts, ignore_errors=True)

    def _let_go(self, close=True):
        """A connection belongs to one process, and to one file."""
        for client in (self.store.client._tracking_client, self.store.client._get_registry_client()):
            client.store.engine.dispose(close)

    def in_child(self, work):
        """Run work() in a fork: its exit code, or minus a signal."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._let_go(close=False)
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def die_after(self, writes):
        """Have this process killed once it has written that many times."""
        done = 0

        def counted(call):
            def write(*args, **kwargs):
                nonlocal done
                found = call(*args, **kwargs)
                done += 1
                if done == writes:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            return write

        for name in dir(self.store.client):
            if WRITES.match(name):
                setattr(self.store.client, name, counted(getattr(self.store.client, name)))

    def state(self):
        """All that the registry knows of every model, and the copies of the ledger, without times and MLflow's own ids."""
        models = []
        for model in sorted(self.store.client.search_registered_models(), key=lambda model: model.name):
            versions = self.store.client.search_model_versions(f"name = '{model.name}'")
            told = sorted(
                (int(version.version), version.description or "", sorted(tag for tag in version.tags.items() if tag[0] != MODEL_ID))
                for version in versions
            )
            aliases = self.store.client.get_registered_model(model.name).aliases
            models.append((model.name, sorted(aliases.items()), sorted(model.tags.items()), told))
        copies = sorted(path.read_text() for path in self.artifacts.rglob(FILE))
        return re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "then", json.dumps([models, copies], indent=1))

    def broken(self, act, writes):
        self.die_after(writes)
        act()

    def after_kills(self, act):
        """act() killed after 1, 2, 3 ... writes and given again each time: the states it ends in. The first one is that without a kill."""

        self.put_back()
        act()
        states = [self.state()]
        for writes in count(1):
            self.put_back()
            if self.in_child(partial(self.broken, act, writes)) == 0:
                return states
            with suppress(PreflineError):  # such as: champion already
                act()
            states.append(self.state())
        raise AssertionError


@pytest.fixture
def registry(project):
    """Version 1 was champion, 2 is, both went to an environment; 3 waits for a person, compared with 2; 4 was not promoted."""
    registry = Registry(project)
    store = registry.store
    run = store.client.create_run(store.experiment).info.run_id
    store.client.create_registered_model(NAME)
    for version, said in enumerate(("promoted", "promoted", "awaiting approval", "not promoted"), start=1):
        tags = {DIGEST: f"d{version}", DECISION: said, BASELINE_VERSION: "2", "prefline.pipeline_run": run}
        store.client.create_model_version(NAME, source=f"file://{project}", tags=tags)
    store.client.set_registered_model_alias(NAME, "challenger", "3")
    for version, previous in (("1", None), ("2", "1")):
        line = LedgerLine(at=now(), who="ada", action="promoted", version=version, previous=previous, why="", evidence="", run=run)
        enact(store, NAME, line.model_copy(update={"environments": POLICY.environments}))
    registry.keep()
    return registry


ACTS = {
    "promote": lambda store: decide(store, Candidate(NAME, "3", "2", "evidence", ""), [], POLICY),
    "approve": lambda store: approve(store, NAME, "3", "ada", "read twenty answers", NOWHERE),
    "refuse": lambda store: refuse(store, NAME, "3", "ada", "rude to children", NOWHERE),
    "force": lambda store: force(store, NAME, "4", "ada", "the launch is tonight", NOWHERE),
    "rollback": lambda store: rollback(store, NAME, "1", "answers got rude", POLICY.environments),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_kill_after_any_write_loses_nothing_and_doubles_nothing(name, registry):
    unbroken, *broken = registry.after_kills(lambda: ACTS[name](registry.store))
    assert len(broken) >= 5
    for writes, state in enumerate(broken, start=1):
        assert state == unbroken, f"killed after {writes} writes"


def test_a_rollback_that_was_cut_short_is_not_done_twice(registry):
    begun = partial(rollback, registry.store, NAME, "", "answers got rude", ())
    assert registry.in_child(lambda: registry.broken(begun, 4)) == -signal.SIGKILL
    assert rollback(registry.store, NAME, "", "again, to be sure", ()).why == "answers got rude"
    assert holder(registry.store, NAME) == "1"
    assert [line.action for line in read_ledger(registry.store, NAME)] == ["promoted", "promoted", "rolled back"]


def test_register_killed_after_any_write_makes_one_version_of_each_model(project, tracked, line):
    import mlflow.transformers  # noqa: F401  (before the forks, not in each)

    registry, results = Registry(project), line()
    inputs = {key: results[key] for key in register.inputs}

    def act():
        again = MLflowRun(registry.store, tracked.lineage, tracked.run_id)
        register.run(PipelineConfig(), inputs, Context(project, project / "runs", [again]))

    registry.keep()
    unbroken, *broken = registry.after_kills(act)
    assert len(broken) >= 12
    for writes, state in enumerate(broken, start=1):
        assert state == unbroken, f"killed after {writes} writes"
    versions = {
        model.name: len(registry.store.client.search_model_versions(f"name = '{model.name}'"))
        for model in registry.store.client.search_registered_models()
    }
    assert versions == {"prefline-policy": 1, "prefline-reward-model": 1, "prefline-sft": 1}

"""A registry in a state that it should not be in: what is said, and that nothing is promoted."""

import multiprocessing
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.errors import EnvironmentRefused, PreflineError
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.by_hand import approve, force, refuse
from tasks.registry.champion import all_versions, holder
from tasks.registry.decision import DECISION
from tasks.registry.gates import PromotionPolicy
from tasks.registry.ledger import PREFIX, read_ledger
from tasks.registry.promote import Candidate, decide
from tasks.registry.store import open_store
from tasks.registry.succession import ANNOUNCED, rollback
from tasks.registry.told import describe_champion, history

NAME = "prefline-policy"
POLICY = PromotionPolicy()
NOBODY = 65534


@pytest.fixture
def store(project):
    """A registry of which version 1 was champion and 2 is; 3 waits for approval, compared with 2."""
    store = open_store(project, "prefline")
    store.client.create_registered_model(NAME)
    for tags in ({}, {}, {DECISION: "awaiting approval", BASELINE_VERSION: "2"}):
        store.client.create_model_version(NAME, source=f"file://{project}", tags=tags)
    for version, champion in (("1", None), ("2", "1")):
        assert promote(store, version, champion).decision == "promoted"
    return store


def promote(store, version, compared_with):
    return decide(store, Candidate(NAME, version, compared_with, "evidence", ""), [], POLICY)


def failed(decision):
    return {gate.name: gate.found for gate in decision.gates if not gate.passed}


def test_an_alias_moved_by_hand_stops_promotion_until_a_person_has_put_it_on_the_record(store):
    store.client.set_registered_model_alias(NAME, "champion", "1")
    decision = promote(store, "3", "1")
    assert decision.decision == "not promoted"
    assert failed(decision)["champion on record"].startswith("version 1: deleted, or the alias moved by hand.")
    store.client.set_model_version_tag(NAME, "3", DECISION, "awaiting approval")
    store.client.set_model_version_tag(NAME, "3", BASELINE_VERSION, "1")
    with pytest.raises(PreflineError, match="version 2 is champion by the ledger, but the alias champion was moved to version 1 by hand"):
        approve(store, NAME, "3", "ada", "", POLICY)
    with pytest.raises(PreflineError, match="the alias champion is not where the ledger says, on version 2"):
        rollback(store, NAME, "", "")
    assert "Careful: version 2 is champion by the ledger" in describe_champion(store, NAME)
    line = rollback(store, NAME, "1", "as somebody has done already")
    assert (line.version, line.previous) == ("1", "2")
    assert approve(store, NAME, "3", "ada", "", POLICY).previous == "1"


def test_an_alias_put_back_where_the_ledger_says(store):
    store.client.set_registered_model_alias(NAME, "champion", "3")
    assert rollback(store, NAME, "2", "that was nobody's decision").previous == "3"
    assert holder(store, NAME) == "2"
    store.client.set_registered_model_alias(NAME, "champion", "3")
    assert force(store, NAME, "3", "ada", "it may stay", POLICY).previous == "2"
    assert [version.tags["prefline.state"] for version in all_versions(store, NAME)] == ["retired", "retired", "champion"]


def test_a_champion_that_was_deleted_is_not_followed_by_itself(store):
    store.client.delete_model_version(NAME, "2")
    assert failed(promote(store, "3", None))["champion on record"].startswith("none: deleted")
    with pytest.raises(PreflineError, match="version 2 is champion by the ledger, but it was deleted"):
        describe_champion(store, NAME)
    with pytest.raises(PreflineError, match="version 2 was deleted"):
        rollback(store, NAME, "2", "")
    assert rollback(store, NAME, "1", "the only one left").previous == "2"
    assert promote(store, "3", "1").decision == "promoted"


def test_a_champion_without_its_alias_can_be_given_it_back(store):
    store.client.delete_registered_model_alias(NAME, "champion")
    line = rollback(store, NAME, "2", "somebody took the alias away")
    assert (line.previous, holder(store, NAME)) == (None, "2")


def test_a_version_deleted_in_the_middle_of_its_promotion_leaves_no_lock(store):
    announced = read_ledger(store, NAME)[-1].model_copy(update={"version": "3", "previous": "2"})
    store.client.set_registered_model_tag(NAME, ANNOUNCED, announced.model_dump_json())
    store.client.delete_model_version(NAME, "3")
    assert [line.version for line in history(store, NAME)] == ["1", "2"]
    assert ANNOUNCED not in store.client.get_registered_model(NAME).tags


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{PREFIX}00002", "promoted 2", f"tag {PREFIX}00002: Invalid JSON"),
        (f"{PREFIX}00002", "{}", f"tag {PREFIX}00002: at: Field required"),
        (f"{PREFIX}00002", None, f"tag {PREFIX}00002 is missing, but there is {PREFIX}00003"),
        (ANNOUNCED, "soon", f"tag {ANNOUNCED}: Invalid JSON"),
    ],
)
def test_a_ledger_that_was_edited_is_named_and_nothing_is_promoted_on_it(store, key, value, said):
    rollback(store, NAME, "", "for a third line")
    if value is None:
        store.client.delete_registered_model_tag(NAME, key)
    else:
        store.client.set_registered_model_tag(NAME, key, value)
    for act in (
        lambda: history(store, NAME),
        lambda: describe_champion(store, NAME),
        lambda: promote(store, "3", "1"),
        lambda: approve(store, NAME, "3", "ada", "", POLICY),
        lambda: rollback(store, NAME, "2", ""),
    ):
        with pytest.raises(PreflineError, match=f"The ledger of {NAME} was edited: {said}"):
            act()
    assert holder(store, NAME) == "1"


def test_a_long_reason_and_a_stranger_are_refused_before_anything_is_written(store):
    with pytest.raises(PreflineError, match="2,001 characters; the ledger takes 2,000"):
        refuse(store, NAME, "3", "ada", "x" * 2001, POLICY)
    named = PromotionPolicy(approvers=("ada", "bob"))
    for act in (approve, refuse):
        with pytest.raises(PreflineError, match=r"eve is not among those who may approve or refuse: ada, bob\."):
            act(store, NAME, "3", "eve", "because", named)
    assert approve(store, NAME, "3", "bob", "", named).who == "bob"


@pytest.mark.parametrize("what", ["the database", "everything"])
def test_a_registry_that_can_only_be_read(store, project, what, capfd):
    """As its owner without the right to write, or, where that is root and binds nobody, as somebody else."""
    for client in (store.client._tracking_client, store.client._get_registry_client()):
        client.store.engine.dispose()
    for folder in (project, *project.parents):
        if folder.owner() == project.owner() and folder != folder.parent:
            folder.chmod(0o755)
    (project / "mlflow" / "mlflow.db").chmod(0o444)
    for path in (project / "mlflow").glob("*.lock"):
        path.chmod(0o666)
    (project / "mlflow").chmod(0o777 if what == "the database" else 0o555)
    if what == "everything":
        for path in (project / "mlflow").glob("*.lock"):
            path.chmod(0o444)

    def act():
        if os.getuid() == 0:
            os.setuid(NOBODY)
        try:
            print(describe_champion(open_store(project, "prefline"), NAME), flush=True)
            approve(store, NAME, "3", "ada", "", POLICY)
        except EnvironmentRefused as error:
            print(f"refused: {error}", flush=True)

    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join()
    (project / "mlflow").chmod(0o755)
    out, error = capfd.readouterr()
    assert process.exitcode == 0
    if what == "the database":
        assert "prefline-policy version 2" in out  # reading is another matter
        assert "does not let this user write: (sqlite3.OperationalError) attempt to write a readonly database" in out
    else:
        assert "mlflow.db.lock can't be written: Permission denied." in out
    assert "Traceback" not in error
    assert holder(store, NAME) == "2"


@pytest.fixture
def server(monkeypatch):
    """server(status) -> the address of a server that answers every request with that status."""
    running = []

    def begin(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/health" else status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *arguments):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running[-1].server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        return address

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield begin
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "does not let this user write"), (401, "does not let this user write"), (500, "does not answer"), (503, "does not answer")],
)
def test_a_server_that_refuses_or_fails_is_told_without_a_traceback(project, server, status, said):
    server(status)
    with pytest.raises(EnvironmentRefused, match=said):
        open_store(project, "prefline")


def test_a_store_that_goes_in_the_middle(store, project):
    (project / "mlflow" / "mlflow.db").write_bytes(b"not a database any more" * 400)
    with pytest.raises(EnvironmentRefused, match="does not answer"):
        approve(store, NAME, "3", "ada", "", POLICY)

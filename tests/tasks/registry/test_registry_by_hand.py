"""Approval, refusal and force: what a person may do, and what even a person may not."""

import pytest

from tasks.errors import PreflineError
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.by_hand import approve, force, refuse
from tasks.registry.champion import by_alias
from tasks.registry.decision import DECISION, REASONS
from tasks.registry.gates import PromotionPolicy
from tasks.registry.ledger import read_ledger
from tasks.registry.store import open_store
from tasks.registry.succession import rollback

NAME = "prefline-policy"
POLICY = PromotionPolicy()


@pytest.fixture
def store(project):
    """A registry with three versions: 1 and 2 wait for approval, compared with no champion; 3 was not promoted."""
    store = open_store(project, "prefline")
    store.client.create_registered_model(NAME)
    for decision in ("awaiting approval", "awaiting approval", "not promoted"):
        tags = {DECISION: decision, BASELINE_VERSION: "", REASONS: "KL too high" if decision == "not promoted" else ""}
        store.client.create_model_version(NAME, source=f"file://{project}", tags=tags)
    return store


def champion(store):
    found = by_alias(store, NAME, "champion")
    return found and str(found.version)


def test_approval_crowns_in_the_name_of_who_gave_it(store):
    line = approve(store, NAME, "1", "ada", "", POLICY)
    assert (line.action, line.who, line.previous) == ("approved", "ada", None)
    assert champion(store) == "1"
    assert read_ledger(store, NAME) == [line]
    assert store.client.get_model_version(NAME, "1").tags[DECISION] == "promoted"
    with pytest.raises(PreflineError, match="champion already"):
        approve(store, NAME, "1", "ada", "", POLICY)


def test_evidence_against_another_champion_is_none(store):
    approve(store, NAME, "1", "ada", "", POLICY)
    with pytest.raises(PreflineError, match=r"version 2 was compared with none \(the SFT model\), but the champion now is version 1"):
        approve(store, NAME, "2", "bob", "", POLICY)
    assert champion(store) == "1"


def test_what_failed_its_gates_is_not_approved_but_can_be_forced_with_a_reason(store):
    with pytest.raises(PreflineError, match=r"version 3 does not wait for approval: it was not promoted \(KL too high\)"):
        approve(store, NAME, "3", "ada", "", POLICY)
    with pytest.raises(PreflineError, match="needs a reason"):
        force(store, NAME, "3", "ada", " ", POLICY)
    approve(store, NAME, "1", "ada", "", POLICY)
    line = force(store, NAME, "3", "ada", "the launch is tonight", POLICY)
    assert (line.action, line.previous, line.why) == ("forced", "1", "the launch is tonight")
    assert champion(store) == "3"
    assert rollback(store, NAME, "", "").version == "1"


def test_a_refusal_is_recorded_and_is_no_reign(store):
    with pytest.raises(PreflineError, match="needs a reason"):
        refuse(store, NAME, "1", "ada", "", POLICY)
    approve(store, NAME, "2", "bob", "", POLICY)
    assert refuse(store, NAME, "1", "ada", "rude to children", POLICY).action == "refused"
    assert champion(store) == "2"
    with pytest.raises(PreflineError, match="refused by ada: rude to children"):
        approve(store, NAME, "1", "bob", "", POLICY)
    with pytest.raises(PreflineError, match="version 1 never was champion"):
        rollback(store, NAME, "1", "")


def test_a_version_that_is_not_there(store):
    for act in (approve, force, refuse):
        with pytest.raises(PreflineError, match="has no version 9"):
            act(store, NAME, "9", "ada", "why not", POLICY)

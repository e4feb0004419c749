"""Changes of champion: the ledger, and going back."""

import pytest

from tasks.errors import PreflineError
from tasks.registry.champion import by_alias
from tasks.registry.ledger import LedgerLine, read_ledger
from tasks.registry.store import open_store
from tasks.registry.succession import ANNOUNCED, enact, mend, rollback

NAME = "prefline-policy"


def line(version, previous=None, action="promoted"):
    at = f"2026-11-0{version}T10:00:00+00:00"
    return LedgerLine(at=at, who="ada", action=action, version=version, previous=previous, why="test", evidence="", run="")


@pytest.fixture
def store(project):
    """A registry with three versions and no champion."""
    store = open_store(project, "prefline")
    store.client.create_registered_model(NAME)
    for _ in range(3):
        store.client.create_model_version(NAME, source=f"file://{project}")
    return store


def aliases(store):
    found = {alias: by_alias(store, NAME, alias) for alias in ("champion", "previous", "challenger")}
    return {alias: str(version.version) for alias, version in found.items() if version}


def crown(store, *versions):
    for previous, version in zip((None, *versions), versions, strict=False):
        enact(store, NAME, line(version, previous))


def test_a_change_moves_aliases_states_and_ledger(store):
    store.client.set_registered_model_alias(NAME, "challenger", "2")
    crown(store, "1", "2")
    assert aliases(store) == {"champion": "2", "previous": "1"}
    assert [entry.version for entry in read_ledger(store, NAME)] == ["1", "2"]
    states = [store.client.get_model_version(NAME, version).tags.get("prefline.state") for version in "123"]
    assert states == ["retired", "champion", "registered"]


def test_rolling_back_goes_one_champion_back_each_time(store):
    crown(store, "1", "2", "3")
    first = rollback(store, NAME, "", "answers got rude")
    assert (first.version, first.previous, first.why) == ("2", "3", "answers got rude")
    assert aliases(store) == {"champion": "2", "previous": "3"}
    assert rollback(store, NAME, "", "again").version == "1"
    assert [entry.action for entry in read_ledger(store, NAME)] == ["promoted"] * 3 + ["rolled back"] * 2
    with pytest.raises(PreflineError, match="took over from no champion"):
        rollback(store, NAME, "", "and again")
    assert rollback(store, NAME, "3", "it was fine").version == "3"


def test_there_is_no_going_back_to_what_never_was(store):
    with pytest.raises(PreflineError, match="no champion to roll back"):
        rollback(store, NAME, "", "")
    crown(store, "1", "2")
    with pytest.raises(PreflineError, match="version 3 never was champion"):
        rollback(store, NAME, "3", "")
    with pytest.raises(PreflineError, match="version 2 is champion already"):
        rollback(store, NAME, "2", "")
    store.client.delete_model_version(NAME, "1")
    with pytest.raises(PreflineError, match="version 1 was deleted"):
        rollback(store, NAME, "", "")
    assert aliases(store)["champion"] == "2"


def test_nothing_announced_is_nothing_to_mend(store):
    crown(store, "1")
    assert mend(store, NAME) is None
    assert ANNOUNCED not in store.client.get_registered_model(NAME).tags

"""Environments: a new champion is copied to models of their own, once, with all that is known of it, and taken back with it."""

import pytest

from tasks.errors import ConfigError
from tasks.registry.by_hand import force
from tasks.registry.champion import DIGEST, by_alias
from tasks.registry.gates import Gate, PromotionPolicy, read_policy
from tasks.registry.promote import Candidate, decide
from tasks.registry.store import open_store
from tasks.registry.succession import rollback

NAME = "prefline-policy"
STAGING = f"staging.{NAME}"
POLICY = PromotionPolicy(environments=("staging", "prod"))


@pytest.fixture
def store(project):
    """A registry with three versions; the last has no digest, as if somebody had made it by hand."""
    store = open_store(project, "prefline")
    store.client.create_registered_model(NAME)
    for digest in ("aa", "bb", ""):
        tags = {DIGEST: digest, "prefline.method": "ppo"} if digest else {"prefline.method": "by hand"}
        store.client.create_model_version(NAME, source=f"file://{project}/{digest}", tags=tags, description=f"About {digest}")
    return store


def promote(store, version, compared_with=None, policy=POLICY):
    gate = Gate(name="KL from SFT", required="at most 10", found="5", passed=True)
    return decide(store, Candidate(NAME, version, compared_with, "evidence", ""), [gate], policy).decision


def told(store, name):
    """Version by version: the digest and the state; then who has which alias."""
    versions = sorted(store.client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    states = [(version.tags.get(DIGEST), version.tags["prefline.state"]) for version in versions]
    return states, {alias: str(version) for alias, version in store.client.get_registered_model(name).aliases.items()}


def test_a_champion_goes_to_every_environment_once_and_a_rollback_takes_it_back(store):
    assert promote(store, "1") == "promoted"
    assert promote(store, "2", compared_with="1") == "promoted"
    expected = [("aa", "retired"), ("bb", "champion")], {"champion": "2", "previous": "1"}
    assert told(store, STAGING) == told(store, f"prod.{NAME}") == expected
    copy = by_alias(store, STAGING, "champion")
    assert (copy.description, copy.tags["prefline.method"]) == ("About bb", "ppo")
    rollback(store, NAME, "", "answers got rude", POLICY.environments)
    assert told(store, STAGING) == ([("aa", "champion"), ("bb", "retired")], {"champion": "1", "previous": "2"})


def test_what_is_forced_is_marked_there_too_and_found_again_without_a_digest(store):
    for reason in ("the launch is tonight", "again"):
        force(store, NAME, "3", "ada", reason, POLICY)
        copy = by_alias(store, STAGING, "champion")
        assert copy.version in (1, "1")
        assert reason in copy.tags["prefline.forced"]
        assert copy.description.startswith(f"🔴 **Forced against its gates** by ada, {copy.tags['prefline.forced'][8:33]}: {reason}")
        force(store, NAME, "1", "ada", "in between", PromotionPolicy())


def test_an_environment_that_is_new_gets_the_champion_with_the_next_run(store):
    assert promote(store, "1", policy=PromotionPolicy()) == "promoted"
    assert promote(store, "1") == "already champion"
    assert told(store, STAGING) == ([("aa", "champion")], {"champion": "1"})


def test_names_are_checked(tmp_path):
    (tmp_path / "p.yaml").write_text("environments: [staging, a/b]\n")
    with pytest.raises(ConfigError, match=r"environments\.1"):
        read_policy(tmp_path / "p.yaml")

"""What became of each version, as a tag: registered, challenger, champion, retired.

Worked out from the aliases and the ledger every time, so that no path through the registry, and no kill on the way,
leaves a tag that says otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

from tasks.registry.champion import CHALLENGER, CHAMPION, all_versions, by_alias
from tasks.registry.ledger import read_ledger
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

STATE = "prefline.state"

State = Literal["registered", "challenger", "champion", "retired"]


def settle_states(store: Store, name: str) -> None:
    """Bring the tags of all versions up to date. The caller holds the registry's lock."""
    reigned = {line.version for line in read_ledger(store, name) if line.action != "refused"}
    champion, challenger = _holder(store, name, CHAMPION), _holder(store, name, CHALLENGER)
    for version in all_versions(store, name):
        _set(store, version, state_of(str(version.version), champion, challenger, reigned))


def settle_copies(store: Store, name: str) -> None:
    """The same in an environment's model, where every version came as champion."""
    champion = _holder(store, name, CHAMPION)
    for version in all_versions(store, name):
        _set(store, version, "champion" if str(version.version) == champion else "retired")


def state_of(version: str, champion: str | None, challenger: str | None, reigned: Collection[str]) -> State:
    """champion, challenger: who has the alias. reigned: versions that were champion once."""
    if version == champion:
        return "champion"
    if version == challenger:
        return "challenger"
    return "retired" if version in reigned else "registered"


def _holder(store: Store, name: str, alias: str) -> str | None:
    found = by_alias(store, name, alias)
    return str(found.version) if found else None


def _set(store: Store, version: ModelVersion, state: State) -> None:
    if version.tags.get(STATE) != state:
        store.client.set_model_version_tag(version.name, version.version, STATE, state)

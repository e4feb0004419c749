"""Environments: a registered model of its own for each, `staging.NAME`, whose champion is a copy of ours.

Whoever serves from an environment reads nothing else, and may be given no other rights. Every step can be done twice.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

from tasks.registry.champion import CHAMPION, DIGEST, PREVIOUS, all_versions, by_alias
from tasks.registry.states import STATE, settle_copies
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def place_of(environment: str, name: str) -> str:
    """The registered model of an environment."""
    return f"{environment}.{name}"


def deploy(store: Store, name: str, version: str, environment: str) -> None:
    """Make a copy of the version champion there, the same copy if it was there before. The caller holds the registry's lock."""
    place, source = place_of(environment, name), store.client.get_model_version(name, version)
    copy = _find(store, place, source) or _copy(store, place, source)
    _bring_up_to_date(store, source, copy)
    before = by_alias(store, place, CHAMPION)
    if before and before.version != copy.version:
        store.client.set_registered_model_alias(place, PREVIOUS, str(before.version))
    store.client.set_registered_model_alias(place, CHAMPION, str(copy.version))
    settle_copies(store, place)


def _find(store: Store, place: str, source: ModelVersion) -> ModelVersion | None:
    """The copy of those very files; of a version without a digest, which somebody made by hand, the copy of that version."""
    digest = source.tags.get(DIGEST)
    for copy in all_versions(store, place):
        if copy.tags.get(DIGEST) == digest if digest else copy.source == _address(source):
            return copy
    return None


def _copy(store: Store, place: str, source: ModelVersion) -> ModelVersion:
    with redirect_stderr(io.StringIO()):  # MLflow tells what it does
        return store.client.copy_model_version(_address(source), place)


def _bring_up_to_date(store: Store, source: ModelVersion, copy: ModelVersion) -> None:
    """MLflow takes tags and description along once; they may have changed since. Aliases it leaves behind."""
    for key, value in source.tags.items():
        if key != STATE and copy.tags.get(key) != value:
            store.client.set_model_version_tag(copy.name, copy.version, key, value)
    if source.description and copy.description != source.description:
        store.client.update_model_version(copy.name, copy.version, source.description)


def _address(source: ModelVersion) -> str:
    return f"models:/{source.name}/{source.version}"

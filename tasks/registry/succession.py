"""One champion after another: each change is announced, carried out and crossed off, so that a kill in between is mended.

The announcement is a tag of the registered model that holds the ledger's line. Every step after it can be done twice;
whoever comes next under the registry's lock finishes what it finds announced.
"""

from __future__ import annotations

from typing import Literal

from tasks.errors import PreflineError
from tasks.registry import ledger
from tasks.registry.champion import CHALLENGER, CHAMPION, PREVIOUS, by_alias, by_version, holder
from tasks.registry.ledger import CROWNS, LedgerLine
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to

ANNOUNCED = "prefline.change"
STATE = "prefline.state"
"""Tag of a version: what became of it."""

State = Literal["champion", "retired"]


def change_champion(store: Store, name: str, line: LedgerLine) -> None:
    """Make line.version champion and line.previous the one before. The caller holds the registry's lock and has mended."""
    store.client.set_registered_model_tag(name, ANNOUNCED, line.model_dump_json())
    _carry_out(store, name, line)


def mend(store: Store, name: str) -> LedgerLine | None:
    """Finish a change of champion that was cut short; its line, or None where there was none. The caller holds the lock."""
    announced = store.client.get_registered_model(name).tags.get(ANNOUNCED)
    if not announced:
        return None
    line = LedgerLine.model_validate_json(announced)
    _carry_out(store, name, line)
    return line


def _carry_out(store: Store, name: str, line: LedgerLine) -> None:
    """Each step leaves what it finds done; the announcement goes last."""
    client = store.client
    lines = ledger.read_ledger(store, name)
    if not lines or lines[-1] != line:
        ledger.append(store, name, line)
    if line.previous and by_version(store, name, line.previous):
        client.set_registered_model_alias(name, PREVIOUS, line.previous)
        _set_state(store, name, line.previous, "retired")
    client.set_registered_model_alias(name, CHAMPION, line.version)
    _set_state(store, name, line.version, "champion")
    challenger = by_alias(store, name, CHALLENGER)
    if challenger and str(challenger.version) == line.version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.delete_registered_model_tag(name, ANNOUNCED)


def _set_state(store: Store, name: str, version: str, state: State) -> None:
    store.client.set_model_version_tag(name, version, STATE, state)


# Going back ---------------------------------------------------------------------------------------------------------


def rollback(store: Store, name: str, to: str, why: str) -> LedgerLine:
    """Make an earlier champion champion again: version `to`, or by default the one that today's took over from.

    Raises PreflineError where there is none, where it never was champion, or where it was deleted.
    """
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        if holder(store, name):
            mend(store, name)
        current = holder(store, name)
        if not current:
            raise PreflineError(
                f"{name} has no champion to roll back.", "prefline run trains a policy and promotes it if every gate holds."
            )
        target = to or _before(store, name, current)
        _must_have_been_champion(store, name, target, current)
        version = by_version(store, name, target)
        if not version:
            raise PreflineError(
                f"{name} version {target} was deleted from the registry: there is nothing to go back to.",
                "Name another one with --to; prefline history lists them.",
            )
        line = LedgerLine(
            at=ledger.now(),
            who=ledger.who(),
            action="rolled back",
            version=target,
            previous=current,
            why=why,
            evidence=version.tags.get("prefline.evaluation_digest", ""),
            run=version.tags.get("prefline.pipeline_run", ""),
        )
        change_champion(store, name, line)
        return line


def _before(store: Store, name: str, current: str) -> str:
    """The champion that the current one took over from when it was promoted: rolling back twice goes back two."""
    crowned = [line for line in ledger.read_ledger(store, name) if line.version == current and line.action in CROWNS]
    if not crowned or not crowned[-1].previous:
        raise PreflineError(
            f"{name} version {current} took over from no champion.", "Name a version with --to; prefline history lists them."
        )
    return crowned[-1].previous


def _must_have_been_champion(store: Store, name: str, target: str, current: str) -> None:
    if target == current:
        raise PreflineError(f"{name} version {target} is champion already.", "prefline history lists those before it.")
    earlier = {line.version for line in ledger.read_ledger(store, name) if line.action != "refused"}
    if target not in earlier:
        raise PreflineError(
            f"{name} version {target} never was champion, so there is no going back to it.",
            f"Champions so far: {', '.join(sorted(earlier, key=int))}. A new one is promoted by prefline run, if every gate holds.",
        )

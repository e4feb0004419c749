"""One champion after another: each change is announced, carried out and crossed off, so that a kill in between is mended.

The announcement is a tag of the registered model that holds the ledger's line. Every step after it can be done twice;
whoever comes next under the registry's lock finishes what it finds announced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.errors import PreflineError
from tasks.registry import card, ledger
from tasks.registry.champion import CHALLENGER, CHAMPION, PREVIOUS, WAY_BACK, by_alias, by_version, holder
from tasks.registry.decision import DECISION, REASONS
from tasks.registry.environments import deploy
from tasks.registry.ledger import CROWNS, LedgerLine
from tasks.registry.states import settle_states
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to

ANNOUNCED = "prefline.change"
FORCED = "prefline.forced"
"""Tag of a version: by whom, when and why it was made champion against its gates."""


def enact(store: Store, name: str, line: LedgerLine) -> None:
    """Do what the line says: line.version takes over from line.previous, or is refused. The caller holds the lock and has mended."""
    store.client.set_registered_model_tag(name, ANNOUNCED, line.model_dump_json())
    _carry_out(store, name, line)


def mend(store: Store, name: str) -> LedgerLine | None:
    """Finish what was cut short; its line, or None where there was nothing. The caller holds the registry's lock."""
    from mlflow.exceptions import MlflowException

    try:
        announced = store.client.get_registered_model(name).tags.get(ANNOUNCED)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if not announced:
        return None
    line = ledger.parse_line(name, ANNOUNCED, announced)
    if by_version(store, name, line.version):
        _carry_out(store, name, line)
    else:  # deleted since
        store.client.delete_registered_model_tag(name, ANNOUNCED)
    return line


def challenge(store: Store, name: str, version: str) -> None:
    """Make a version the challenger, unless it is champion. The caller holds the registry's lock."""
    if holder(store, name) != version:
        store.client.set_registered_model_alias(name, CHALLENGER, version)
    settle_states(store, name)


def _carry_out(store: Store, name: str, line: LedgerLine) -> None:
    """Each step leaves what it finds done; the announcement goes last."""
    ledger.append(store, name, line)
    if line.action == "refused":
        _set_tag(store, name, line.version, DECISION, "not promoted")
        _set_tag(store, name, line.version, REASONS, f"refused by {line.who}: {line.why}")
    else:
        _crown(store, name, line)
    settle_states(store, name)
    for version in filter(None, (line.version, line.previous)):
        card.update(store, name, version)
    for environment in line.environments:
        deploy(store, name, line.version, environment)
    ledger.keep_copy(store, name, line.run)
    store.client.delete_registered_model_tag(name, ANNOUNCED)


def _crown(store: Store, name: str, line: LedgerLine) -> None:
    """Aliases, and what the version's tags and description say of how it came to be champion."""
    if line.previous and by_version(store, name, line.previous):
        store.client.set_registered_model_alias(name, PREVIOUS, line.previous)
    store.client.set_registered_model_alias(name, CHAMPION, line.version)
    challenger = by_alias(store, name, CHALLENGER)
    if challenger and str(challenger.version) == line.version:
        store.client.delete_registered_model_alias(name, CHALLENGER)
    if line.action in CROWNS:
        _set_tag(store, name, line.version, DECISION, "promoted")
    if line.action == "forced":
        _mark_forced(store, name, line)
    elif line.action in CROWNS:
        _set_tag(store, name, line.version, REASONS, "")


def _mark_forced(store: Store, name: str, line: LedgerLine) -> None:
    _set_tag(store, name, line.version, FORCED, f"by {line.who}, {line.at}: {line.why}")
    version = store.client.get_model_version(name, line.version)
    description = with_forced(version.description or "", version.tags)
    if version.description != description:
        store.client.update_model_version(name, line.version, description)


def with_forced(description: str, tags: Mapping[str, str]) -> str:
    """A version's description with the warning that it was forced, where it was. Twice is as once."""
    if FORCED not in tags:
        return description
    warning = f"🔴 **Forced against its gates** {tags[FORCED]}"
    return description if warning in description else f"{warning}\n\n{description}".rstrip()


def _set_tag(store: Store, name: str, version: str, key: str, value: str) -> None:
    store.client.set_model_version_tag(name, version, key, value)


# Going back ---------------------------------------------------------------------------------------------------------


def rollback(store: Store, name: str, to: str, why: str, environments: Sequence[str] = ()) -> LedgerLine:
    """Make an earlier champion champion again: version `to`, or by default the one that today's took over from.

    A rollback that was cut short is finished, and is the one that was asked for. Raises PreflineError where there is none
    to go back to, where it never was champion, or where it was deleted.
    """
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mended = mend(store, name)
        if mended and mended.action == "rolled back" and to in ("", mended.version):
            return mended
        lines, current = ledger.read_ledger(store, name), holder(store, name)
        recorded = ledger.on_record(lines)
        if not recorded:
            raise PreflineError(
                f"{name} has no champion to roll back.", "prefline run trains a policy and promotes it if every gate holds."
            )
        target = to or _before(name, lines, current)
        if target == current == recorded:
            raise PreflineError(f"{name} version {target} is champion already.", "prefline history lists those before it.")
        _must_have_been_champion(name, lines, target)
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
            previous=next((before for before in (current, recorded) if before not in (None, target)), None),
            why=why,
            evidence=version.tags.get("prefline.evaluation_digest", ""),
            run=version.tags.get("prefline.pipeline_run", ""),
            environments=tuple(environments),
        )
        enact(store, name, line)
        return line


def _before(name: str, lines: list[LedgerLine], current: str | None) -> str:
    """The champion that the current one took over from when it was promoted: rolling back twice goes back two."""
    recorded = ledger.on_record(lines)
    if current != recorded:
        raise PreflineError(f"{name}: the alias champion is not where the ledger says, on version {recorded}.", WAY_BACK)
    crowned = [line for line in lines if line.version == current and line.action in CROWNS]
    if not crowned or not crowned[-1].previous:
        raise PreflineError(
            f"{name} version {current} took over from no champion.", "Name a version with --to; prefline history lists them."
        )
    return crowned[-1].previous


def _must_have_been_champion(name: str, lines: list[LedgerLine], target: str) -> None:
    earlier = {line.version for line in lines if line.action != "refused"}
    if target not in earlier:
        raise PreflineError(
            f"{name} version {target} never was champion, so there is no going back to it.",
            f"Champions so far: {', '.join(sorted(earlier, key=int))}. A new one is promoted by prefline run, if every gate holds.",
        )

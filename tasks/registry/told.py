"""The registry as people are told of it: who is champion and why, and the whole ledger. What a kill cut short is finished first."""

from __future__ import annotations

from tasks.errors import PreflineError
from tasks.registry.beside import CARD, MODEL_ID, place_beside
from tasks.registry.champion import CHALLENGER, CHAMPION, PREVIOUS, WAY_BACK, by_alias, difference
from tasks.registry.decision import DECISION, REASONS
from tasks.registry.ledger import LedgerLine, on_record, read_ledger
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to
from tasks.registry.succession import mend


def history(store: Store, name: str) -> list[LedgerLine]:
    """All lines of the ledger, oldest first. Raises PreflineError."""
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mend(store, name)
        return read_ledger(store, name)


def describe_champion(store: Store, name: str) -> str:
    """Who is champion, since when, by whom and why, and where; who was it before; who waits. Raises PreflineError where nobody is."""
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mend(store, name)
        lines, champion, others = read_ledger(store, name), by_alias(store, name, CHAMPION), _others(store, name)
        card = place_beside(store, champion, CARD) if champion and MODEL_ID in champion.tags else ""
    moved = difference(on_record(lines), str(champion.version) if champion else None)
    if not champion and moved:
        raise PreflineError(f"{name} has no champion: {moved}.", WAY_BACK)
    if not champion:
        raise PreflineError(
            f"{name} has no champion. {others or 'No version is registered yet.'}",
            "prefline run trains a policy and promotes it if every gate holds.",
        )
    shown = [f"{name} version {champion.version}"]
    shown += [f"  {_reign(line)}" for line in lines if line.version == str(champion.version) and line.action != "refused"][-1:]
    shown += [f"  Careful: {moved}.", f"  {WAY_BACK}"] if moved else []
    shown += [f"  Its card: {card}"] if card else []
    shown += ["", champion.description] if champion.description else []
    return "\n".join([*shown, "", others]).rstrip()


def _reign(line: LedgerLine) -> str:
    after = f", after version {line.previous}" if line.previous else ", the first"
    copied = f"; copied to {', '.join(line.environments)}" if line.environments else ""
    return f"{line.action} {line.at} by {line.who}{after}: {line.why}{copied}"


def _others(store: Store, name: str) -> str:
    challenger, previous = by_alias(store, name, CHALLENGER), by_alias(store, name, PREVIOUS)
    found = []
    if challenger:
        said = challenger.tags.get(DECISION) or "no decision yet"
        reasons = challenger.tags.get(REASONS)
        found.append(f"Version {challenger.version} is challenger: {said}{f' ({reasons})' if reasons else ''}.")
    if previous:
        found.append(f"Version {previous.version} was champion before.")
    return "\n".join(found)

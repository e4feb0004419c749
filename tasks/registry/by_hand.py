"""What a person says about a version: approved, refused, or made champion against the gates, with a reason.

Each is compare-and-set, as a run's own promotion is: the champion must still be the one that the version was compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import PreflineError
from tasks.registry import ledger
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.champion import by_version, holder
from tasks.registry.decision import DECISION, REASONS
from tasks.registry.ledger import Action, LedgerLine
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to
from tasks.registry.succession import change_champion, mend

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def approve(store: Store, name: str, version: str, who: str, why: str) -> LedgerLine:
    """Make a version champion whose gates all held and that waits for a person. Raises PreflineError."""
    return _promote(store, name, version, "approved", who, why or "all gates passed")


def force(store: Store, name: str, version: str, who: str, why: str) -> LedgerLine:
    """Make a version champion whatever its gates said. Raises PreflineError without a reason."""
    if not why.strip():
        raise PreflineError("Forcing a promotion needs a reason.", "Give it with --why: it stands in the ledger, in red.")
    return _promote(store, name, version, "forced", who, why)


def refuse(store: Store, name: str, version: str, who: str, why: str) -> LedgerLine:
    """Say no to a version that waits for a person; it stays challenger. Raises PreflineError without a reason."""
    if not why.strip():
        raise PreflineError("Refusing a version needs a reason.", "Give it with --why: whoever trains the next one will want to know.")
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        found, current = _version(store, name, version), holder(store, name)
        _must_wait(name, found)
        line = _line(found, "refused", who, why, current)
        ledger.append(store, name, line)
        store.client.set_model_version_tag(name, version, DECISION, "not promoted")
        store.client.set_model_version_tag(name, version, REASONS, f"refused by {who}: {why}")
        return line


def _promote(store: Store, name: str, version: str, action: Action, who: str, why: str) -> LedgerLine:
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        found = _version(store, name, version)
        mend(store, name)
        current = holder(store, name)
        if current == version:
            raise PreflineError(f"{name} version {version} is champion already.", "prefline champion shows since when.")
        if action == "approved":
            _must_wait(name, found)
            _must_have_met(name, found, current)
        line = _line(found, action, who, why, current)
        change_champion(store, name, line)
        store.client.set_model_version_tag(name, version, DECISION, "promoted")
        return line


def _version(store: Store, name: str, version: str) -> ModelVersion:
    found = by_version(store, name, version)
    if not found:
        raise PreflineError(f"{name} has no version {version}.", "The versions are on MLflow's page: prefline ui.")
    return found


def _must_wait(name: str, found: ModelVersion) -> None:
    decision = found.tags.get(DECISION, "")
    if decision != "awaiting approval":
        said = f"it was {decision}" if decision else "no run came to a decision on it"
        reasons = f" ({found.tags[REASONS]})" if found.tags.get(REASONS) else ""
        raise PreflineError(
            f"{name} version {found.version} does not wait for approval: {said}{reasons}.",
            "Against the gates, a version is promoted only by --force with --why.",
        )


def _must_have_met(name: str, found: ModelVersion, current: str | None) -> None:
    """Compare and set: the evidence speaks of the champion that it was gathered against."""
    met = found.tags.get(BASELINE_VERSION) or None
    if met != current:
        raise PreflineError(
            f"{name} version {found.version} was compared with {_named(met)}, but the champion now is {_named(current)}.",
            "Run again: prefline run compares it with today's champion.",
        )


def _named(version: str | None) -> str:
    return f"version {version}" if version else "none (the SFT model)"


def _line(found: ModelVersion, action: Action, who: str, why: str, current: str | None) -> LedgerLine:
    return LedgerLine(
        at=ledger.now(),
        who=who or ledger.who(),
        action=action,
        version=str(found.version),
        previous=current,
        why=why,
        evidence=found.tags.get("prefline.evaluation_digest", ""),
        run=found.tags.get("prefline.pipeline_run", ""),
    )

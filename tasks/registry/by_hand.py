"""What a person says about a version: approved, refused, or made champion against the gates, with a reason.

Each is compare-and-set, as a run's own promotion is: the champion must still be the one that the version was compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import PreflineError
from tasks.registry import card, ledger
from tasks.registry.baseline import BASELINE_VERSION
from tasks.registry.champion import WAY_BACK, by_version, holder, moved_by_hand
from tasks.registry.decision import DECISION, REASONS, WAITING, Decision
from tasks.registry.gates import Gate, PromotionPolicy
from tasks.registry.ledger import Action, LedgerLine, read_ledger
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to
from tasks.registry.succession import enact, mend

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

WORD = "a person's word"
"""The gate's name."""

LONGEST = 2000
"""Characters of a name or a reason: they go into tags."""


class UnusableAnswer(PreflineError):
    """Who answered, or how, does not count: they may answer again."""


class EvidenceOutdated(PreflineError):
    """The champion is no longer the one that the version was compared with: no answer can make it champion."""


def approve(store: Store, name: str, version: str, who: str, why: str, policy: PromotionPolicy) -> LedgerLine:
    """Make a version champion whose gates all held and that waits for a person. Raises PreflineError."""
    _must_be_entitled(who, policy)
    return _promote(store, name, version, "approved", who, why or "all gates passed", policy)


def force(store: Store, name: str, version: str, who: str, why: str, policy: PromotionPolicy) -> LedgerLine:
    """Make a version champion whatever its gates said. Raises PreflineError without a reason."""
    if not why.strip():
        raise UnusableAnswer(
            "Forcing a promotion needs a reason.", "Give it with --why: it stands in the ledger and on the version, in red."
        )
    return _promote(store, name, version, "forced", who, why, policy)


def refuse(store: Store, name: str, version: str, who: str, why: str, policy: PromotionPolicy) -> LedgerLine:
    """Say no to a version that waits for a person; it stays challenger. Raises PreflineError without a reason."""
    _must_be_entitled(who, policy)
    if not why.strip():
        raise UnusableAnswer(
            "Refusing a version needs a reason.",
            "Give it (--why on the command line): whoever trains the next one will want to know.",
        )
    _must_fit(why)
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mend(store, name)
        found = _version(store, name, version)
        _must_wait(name, found)
        line = _line(found, "refused", who, why, holder(store, name))
        enact(store, name, line)
        return line


def lapse(store: Store, asked: Decision, why: str) -> Decision:
    """Say of a version that still waits that it waits in vain: the decision on it, which is no."""
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        store.client.set_model_version_tag(asked.model, asked.version, DECISION, "not promoted")
        store.client.set_model_version_tag(asked.model, asked.version, REASONS, why)
        card.update(store, asked.model, asked.version)
    return _refusal(asked, why)


def word_on(store: Store, asked: Decision) -> Decision | None:
    """What was decided since about a version that waited, by whoever it was; None while it waits."""
    with talking_to(store.uri):
        found = by_version(store, asked.model, asked.version)
        if not found:
            return _refusal(asked, "the version was deleted from the registry")
        if found.tags.get(DECISION) == WAITING:
            return None
        last = next((line for line in reversed(read_ledger(store, asked.model)) if line.version == asked.version), None)
    if found.tags.get(DECISION) != "promoted" or last is None:
        return _refusal(asked, found.tags.get(REASONS) or "another run decided against it")
    gates = [*asked.gates, Gate(name=WORD, required="approval", found=f"{last.action} by {last.who}: {last.why}", passed=True)]
    return asked.model_copy(update={"decision": "promoted", "previous": last.previous, "gates": gates})


def _refusal(asked: Decision, why: str) -> Decision:
    gates = [*asked.gates, Gate(name=WORD, required="approval", found=why, passed=False)]
    return asked.model_copy(update={"decision": "not promoted", "gates": gates, "reasons": [f"{WORD}: {why}"]})


def standing(store: Store, name: str, version: str) -> str:
    """What was decided about a version and what a person can do now, in words. Raises PreflineError where it is not there."""
    with talking_to(store.uri):
        found, current = _version(store, name, version), holder(store, name)
    decision = found.tags.get(DECISION) or "no run came to a decision on it"
    if current == version:
        return f"{name} version {version} is champion."
    if decision == WAITING:
        return (
            f"{name} version {version} passed every gate and waits for a person: prefline promote {version} --approve NAME, "
            f"or --refuse NAME --why REASON."
        )
    return f"{name} version {version}: {decision}{_reasons(found)}. Against that, only --force --why REASON makes it champion."


def _promote(store: Store, name: str, version: str, action: Action, who: str, why: str, policy: PromotionPolicy) -> LedgerLine:
    _must_fit(why)
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mend(store, name)
        found = _version(store, name, version)
        current, moved = holder(store, name), moved_by_hand(store, name)
        if current == version and not moved:
            raise PreflineError(f"{name} version {version} is champion already.", "prefline champion shows since when.")
        if action == "approved":
            _must_wait(name, found)
            _must_have_met(name, found, current)
            if moved:
                raise PreflineError(f"{name}: {moved}.", WAY_BACK)
        before = current if current != version else ledger.on_record(read_ledger(store, name))
        line = _line(found, action, who, why, before).model_copy(update={"environments": policy.environments})
        enact(store, name, line)
        return line


def _version(store: Store, name: str, version: str) -> ModelVersion:
    found = by_version(store, name, version)
    if not found:
        raise PreflineError(f"{name} has no version {version}.", "The versions are on MLflow's page: prefline ui.")
    return found


def _must_be_entitled(who: str, policy: PromotionPolicy) -> None:
    if not who.strip():
        raise UnusableAnswer("An answer needs a name.", "It stands in the ledger.")
    if policy.approvers and who not in policy.approvers:
        raise UnusableAnswer(
            f"{who[:100]} is not among those who may approve or refuse: {', '.join(policy.approvers)}.",
            "The promotion policy (mlflow/promotion.yaml) names them: approvers.",
        )
    _must_fit(who)


def _must_fit(text: str) -> None:
    if len(text) > LONGEST:
        raise UnusableAnswer(f"That is {len(text):,} characters; the ledger takes {LONGEST:,}.", "Say it shorter, or give a link.")


def _must_wait(name: str, found: ModelVersion) -> None:
    decision = found.tags.get(DECISION, "")
    if decision != WAITING:
        said = f"it was {decision}" if decision else "no run came to a decision on it"
        raise PreflineError(
            f"{name} version {found.version} does not wait for approval: {said}{_reasons(found)}.",
            "Against the gates, a version is promoted only by --force with --why.",
        )


def _reasons(found: ModelVersion) -> str:
    return f" ({found.tags[REASONS]})" if found.tags.get(REASONS) else ""


def _must_have_met(name: str, found: ModelVersion, current: str | None) -> None:
    """Compare and set: the evidence speaks of the champion that it was gathered against."""
    met = found.tags.get(BASELINE_VERSION) or None
    if met != current:
        raise EvidenceOutdated(
            f"{name} version {found.version} was compared with {_named(met)}, but the champion now is {_named(current)}.",
            "Run again: prefline run compares it with today's champion.",
        )


def _named(version: str | None) -> str:
    return f"version {version}" if version else "none (the SFT model)"


def _line(found: ModelVersion, action: Action, who: str, why: str, current: str | None) -> LedgerLine:
    return LedgerLine(
        at=ledger.now(),
        who=who.strip() or ledger.who(),
        action=action,
        version=str(found.version),
        previous=current,
        why=why.strip(),
        evidence=found.tags.get("prefline.evaluation_digest", ""),
        run=found.tags.get("prefline.pipeline_run", ""),
    )

"""The decision: does the new policy become champion? Every gate must hold, and the champion must still be the one it beat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data.snapshot import read_snapshot
from tasks.data.versions import pointers, versions
from tasks.evaluation.result import Evaluation
from tasks.registry import card
from tasks.registry.baseline import Baseline
from tasks.registry.by_hand import WORD
from tasks.registry.champion import WAY_BACK, holder
from tasks.registry.decision import DECISION, REASONS, Decision
from tasks.registry.environments import deploy
from tasks.registry.gates import Facts, Gate, PromotionPolicy, check_gates, read_policy
from tasks.registry.ledger import LedgerLine, now, on_record, read_ledger, who
from tasks.registry.lineage import git_state
from tasks.registry.register import VERSION
from tasks.registry.store import REGISTRY_LOCK, Store, first_come, talking_to
from tasks.registry.succession import enact, mend
from tasks.registry.tracking import MLflowRun
from tasks.stage import MANIFEST, Metrics, Settings, StageResult, StageRun, stage

MOST = 4000
"""Characters of the reasons that fit into a tag."""


@stage("promote", reads=("names", "promotion"), package="registry", cached=False)
def promote(
    config: Settings,
    *,
    data: StageResult,
    validate: StageResult,
    baseline: StageResult,
    evaluate: StageResult,
    register: StageResult,
    run: StageRun,
) -> Metrics:
    """Write decision.json; move the aliases where every gate holds. A refusal is a result, not an error."""
    tracked = MLflowRun.watching(run)
    name, version = config.names.policy, json.loads((register.path / VERSION).read_text(encoding="utf-8"))["policy"]
    facts = Facts(changes=_changes(run.root, tracked), validated=_validated(validate, data), known=_known(data, run.root))
    policy = read_policy(run.root / config.promotion)
    gates = check_gates(Evaluation.load(evaluate.path), policy, facts)
    candidate = Candidate(name, version, Baseline.load(baseline.path).version, evaluate.digest, tracked.run_id)
    decision = decide(tracked.store, candidate, gates, policy)
    if decision.decision == "already champion":
        run.nothing_to_do = decision.decision
    decision.save(run.out)
    passed = sum(gate.passed for gate in decision.gates)
    return {
        "promoted": float(decision.decision in ("promoted", "already champion")),
        "gates": float(len(decision.gates)),
        "gates_passed": float(passed),
    }


@dataclass(frozen=True)
class Candidate:
    """A version that asks for the champion's place.

    compared_with: the champion that it was compared with, None for the SFT model. evidence: digest of the evaluation.
    run: MLflow's id of the pipeline run.
    """

    name: str
    version: str
    compared_with: str | None
    evidence: str
    run: str


def decide(store: Store, candidate: Candidate, gates: Sequence[Gate], policy: PromotionPolicy) -> Decision:
    """Look at the registry and, where every gate holds, make the candidate champion or have it wait, in one step.

    gates: what its evidence and its run say; what the registry says is added.
    """
    name, version = candidate.name, candidate.version
    with talking_to(store.uri), first_come(store.root, REGISTRY_LOCK):
        mend(store, name)
        current, lines = holder(store, name), read_ledger(store, name)
        if current == version == on_record(lines):
            for environment in policy.environments:  # one may be new
                deploy(store, name, version, environment)
            card.keep_gates(store, name, version, gates, candidate.evidence)
            card.update(store, name, version)
            return Decision(decision="already champion", model=name, version=version, previous=None, gates=[*gates], reasons=[])
        gates = [
            *gates,
            _unchanged(candidate.compared_with, current),
            _on_record(on_record(lines), current),
            *_word(lines, candidate, current),
        ]
        reasons = [f"{gate.name}: required {gate.required}, found {gate.found}" for gate in gates if not gate.passed]
        decision = Decision(
            decision="not promoted" if reasons else "awaiting approval" if policy.approval else "promoted",
            model=name,
            version=version,
            previous=current,
            gates=gates,
            reasons=reasons,
        )
        card.keep_gates(store, name, version, gates, candidate.evidence)
        if decision.decision == "promoted":
            enact(store, name, _line(candidate, decision, policy))
        else:
            store.client.set_model_version_tag(name, version, DECISION, decision.decision)
            store.client.set_model_version_tag(name, version, REASONS, "; ".join(decision.reasons)[:MOST])
            card.update(store, name, version)
    return decision


def _changes(root: Path, tracked: MLflowRun) -> tuple[str, ...]:
    """What differs from the commit, now or when the run began; a commit that changed meanwhile is a difference too."""
    commit, changes = git_state(root)
    moved = () if commit == tracked.lineage.commit else (f"the commit itself, during the run ({commit[:8]})",)
    return tuple(sorted({*tracked.lineage.changes, *changes})) + moved


def _validated(validate: StageResult, data: StageResult) -> bool:
    """Was it this dataset that passed the contract? The validation's manifest says what it read."""
    manifest = json.loads((validate.path / MANIFEST).read_text(encoding="utf-8"))
    return manifest["inputs"].get("data") == data.digest


def _known(data: StageResult, root: Path) -> bool:
    """Does a commit or a file of the project name this dataset by DVC's hash?"""
    md5 = read_snapshot(data).md5
    return md5 in pointers(root).values() or any(version.md5 == md5 for version in versions(root))


def _unchanged(compared_with: str | None, current: str | None) -> Gate:
    """Compare and set: somebody else's promotion, since the baseline was chosen, is not undone by ours."""
    return Gate(
        name="champion since the comparison",
        required=_named(compared_with),
        found=_named(current),
        passed=compared_with == current,
    )


def _on_record(recorded: str | None, current: str | None) -> Gate:
    """A champion that was deleted, or an alias that was moved by hand, is for a person to put right: nobody compared with it."""
    return Gate(
        name="champion on record",
        required=f"{_named(recorded)}, as the ledger says",
        found=_named(current) if recorded == current else f"{_named(current)}: deleted, or the alias moved by hand. {WAY_BACK}",
        passed=recorded == current,
    )


def _word(lines: Sequence[LedgerLine], candidate: Candidate, current: str | None) -> Iterator[Gate]:
    """A person's refusal stands as long as there is no new evidence and no other champion."""
    last = next((line for line in reversed(lines) if line.version == candidate.version), None)
    if last and last.action == "refused" and (last.evidence, last.previous) == (candidate.evidence, current):
        yield Gate(name=WORD, required="not refused", found=f"refused by {last.who}: {last.why}", passed=False)


def _named(version: str | None) -> str:
    return f"version {version}" if version else "none"


def _line(candidate: Candidate, decision: Decision, policy: PromotionPolicy) -> LedgerLine:
    return LedgerLine(
        at=now(),
        who=who(),
        action="promoted",
        version=decision.version,
        previous=decision.previous,
        why=f"all {len(decision.gates)} gates passed",
        evidence=candidate.evidence,
        run=candidate.run,
        environments=policy.environments,
    )

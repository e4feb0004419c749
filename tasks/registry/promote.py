"""The decision: does the new policy become champion? Every gate must hold, and the champion must still be the one it beat."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.evaluation.result import Evaluation
from tasks.registry.baseline import Baseline
from tasks.registry.champion import holder
from tasks.registry.decision import DECISION, REASONS, Decision
from tasks.registry.gates import Facts, Gate, check_gates, read_policy
from tasks.registry.ledger import LedgerLine, now, who
from tasks.registry.lineage import git_state
from tasks.registry.register import VERSION
from tasks.registry.store import REGISTRY_LOCK, first_come, talking_to
from tasks.registry.succession import change_champion, mend
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
    evaluation = Evaluation.load(evaluate.path)
    facts = Facts(changes=_changes(run.root, tracked), validated=_validated(validate, data))
    policy = read_policy(run.root / config.promotion)
    gates = check_gates(evaluation, policy, facts)
    with talking_to(tracked.store.uri), first_come(run.root, REGISTRY_LOCK):
        mend(tracked.store, name)
        current = holder(tracked.store, name)
        if current == version:
            run.nothing_to_do = "already champion"
            decision = Decision(decision="already champion", model=name, version=version, previous=None, gates=gates, reasons=[])
        else:
            gates.append(_unchanged(Baseline.load(baseline.path).version, current))
            reasons = [f"{gate.name}: required {gate.required}, found {gate.found}" for gate in gates if not gate.passed]
            decision = Decision(
                decision="not promoted" if reasons else "awaiting approval" if policy.approval else "promoted",
                model=name,
                version=version,
                previous=current,
                gates=gates,
                reasons=reasons,
            )
            if decision.decision == "promoted":
                change_champion(tracked.store, name, _line(tracked, decision, evaluate.digest))
        tracked.store.client.set_model_version_tag(name, version, DECISION, decision.decision)
        tracked.store.client.set_model_version_tag(name, version, REASONS, "; ".join(decision.reasons)[:MOST])
    decision.save(run.out)
    passed = sum(gate.passed for gate in gates)
    return {
        "promoted": float(decision.decision in ("promoted", "already champion")),
        "gates": float(len(gates)),
        "gates_passed": float(passed),
    }


def _changes(root: Path, tracked: MLflowRun) -> tuple[str, ...]:
    """What differs from the commit, now or when the run began; a commit that changed meanwhile is a difference too."""
    commit, changes = git_state(root)
    moved = () if commit == tracked.lineage.commit else (f"the commit itself, during the run ({commit[:8]})",)
    return tuple(sorted({*tracked.lineage.changes, *changes})) + moved


def _validated(validate: StageResult, data: StageResult) -> bool:
    """Was it this dataset that passed the contract? The validation's manifest says what it read."""
    manifest = json.loads((validate.path / MANIFEST).read_text(encoding="utf-8"))
    return manifest["inputs"].get("data") == data.digest


def _unchanged(compared_with: str | None, current: str | None) -> Gate:
    """Compare and set: somebody else's promotion, since the baseline was chosen, is not undone by ours."""

    def named(version: str | None) -> str:
        return f"version {version}" if version else "none"

    return Gate(name="champion since the comparison", required=named(compared_with), found=named(current), passed=compared_with == current)


def _line(tracked: MLflowRun, decision: Decision, evidence: str) -> LedgerLine:
    return LedgerLine(
        at=now(),
        who=who(),
        action="promoted",
        version=decision.version,
        previous=decision.previous,
        why=f"all {len(decision.gates)} gates passed",
        evidence=evidence,
        run=tracked.run_id,
    )

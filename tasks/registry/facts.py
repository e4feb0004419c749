"""What is known of a policy when it is registered, beside its evaluation: card.json, from which its card is made."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from tasks.data.report import STATISTICS
from tasks.data.snapshot import read_snapshot
from tasks.data.statistics import UNKNOWN
from tasks.registry.licences import data_licence, model_licence
from tasks.registry.tracking import MLflowRun, flatten
from tasks.stage import Settings, StageResult
from tasks.training_config import PolicyConfig

READS = ("seed", "model", "max_tokens", "max_new_tokens", "data", "policy", "evaluation", "licences")
"""Sections of the configuration that the facts are taken from."""

ONLINE = ("rounds", "answers", "minibatch", "epochs", "learning_rate", "clip", "kl")
"""Settings of the methods that learn from their own answers."""
NO_EFFECT = ("tokens_at_once", "checkpoint_seconds")
"""Settings of a section that its result does not depend on."""


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Document):
    """What a policy was trained and evaluated on. splits: comparisons by split. languages: those whose rows name one.

    licence: "" where nobody states one. alpha: Krippendorff's, of the annotators, with its interval; None where no pair was
    judged by two.
    """

    md5: str
    licence: str
    comparisons: int
    demonstrations: int
    splits: dict[str, int]
    languages: dict[str, int]
    annotators: int
    alpha: tuple[float, float, float] | None


class Facts(Document):
    """base: as the configuration names it. base_digest, evidence: of the base model's files, and of the evaluation's.

    settings: of the method, by name. max_tokens, max_new_tokens: longest text, and longest answer. run: MLflow's id.
    """

    base: str
    base_digest: str
    base_licence: str
    data: Data
    method: str
    settings: dict[str, str]
    seed: int
    max_tokens: int
    max_new_tokens: int
    temperature: float
    commit: str
    dirty: bool
    configuration: str
    run: str
    evidence: str


def gather(
    config: Settings, tracked: MLflowRun, *, data: StageResult, base: StageResult, validate: StageResult, evaluate: StageResult
) -> Facts:
    """The facts, from the configuration (READS of it), the run and what its stages found."""
    return Facts(
        base=config.model,
        base_digest=base.digest,
        base_licence=model_licence(config.model, config.licences),
        data=_data(config, data, validate),
        method=config.policy.method,
        settings=dict(_settings(config.policy)),
        seed=config.seed,
        max_tokens=config.max_tokens,
        max_new_tokens=config.max_new_tokens,
        temperature=config.evaluation.temperature,
        commit=tracked.lineage.commit,
        dirty=tracked.lineage.dirty,
        configuration=tracked.lineage.config,
        run=tracked.run_id,
        evidence=evaluate.digest,
    )


def _data(config: Settings, data: StageResult, validate: StageResult) -> Data:
    seen, checked = read_snapshot(data), validate.metrics
    statistics = json.loads((validate.path / STATISTICS).read_text(encoding="utf-8"))
    alpha = (checked["agreement"], checked["agreement_low"], checked["agreement_high"]) if "agreement" in checked else None
    return Data(
        md5=seen.md5,
        licence=data_licence(config.data, config.licences),
        comparisons=seen.comparisons,
        demonstrations=seen.demonstrations,
        splits=seen.splits,
        languages={name: rows for name, rows in statistics["comparisons"]["languages"].items() if name != UNKNOWN},
        annotators=int(checked["annotators"]),
        alpha=alpha,
    )


def _settings(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    """The method's own section, and what it shares with others."""
    online = ONLINE if policy.method in ("ppo", "rloo", "grpo") else ()
    chosen = policy.model_dump(mode="json", include={"temperature", "top_p", "choose", *online, policy.method})
    if policy.method in ("rloo", "grpo"):
        chosen["group"] = policy.group
    for name, value in flatten(chosen):
        if name.rpartition(".")[2] not in NO_EFFECT:
            yield name, value if isinstance(value, str) else json.dumps(value)

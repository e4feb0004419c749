"""Whom the new policy must beat: the champion, or the SFT model where there is none; and whom it is compared with besides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks.errors import ConfigError
from tasks.registry.champion import CHAMPION, by_alias, by_version, copy_model
from tasks.registry.store import Store, talking_to
from tasks.registry.tracking import MLflowRun
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POLICY_DIGEST = "prefline.policy_digest"
BASELINE_VERSION = "prefline.baseline_version"
"""Tags of a registered version: what its files hash to, and what it was compared with ("" for its SFT model)."""


AGAINST = "against"
"""The folder of the models that are compared besides, each in one called after its version."""


class Besides(BaseModel):
    """A registered version that the policy is compared with besides. name: as it is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str


class Baseline(BaseModel):
    """What baseline.json holds. version, model_digest: None for the SFT model. against: evaluation.against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "SFT model"
    version: str | None = None
    model_digest: str | None = None
    against: list[Besides] = []

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        return cls.model_validate_json((folder / "baseline.json").read_text(encoding="utf-8"))

    def save(self, folder: Path) -> None:
        (folder / "baseline.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


@stage("baseline", reads=("names", "evaluation"), package="registry", cached=False)
def baseline(config: Settings, *, sft: StageResult, policy: StageResult, run: StageRun) -> Metrics:
    """Write baseline.json, the champion's model where it is the champion, and those of evaluation.against but for it and the policy.

    A policy that already is the champion meets whom it met then, so that a repeated run finds its evaluation done.
    """
    store = MLflowRun.watching(run).store
    with talking_to(store.uri):
        version = opponent(store, config.names.policy, policy.digest)
        against = [
            other
            for other in besides(store, config.names.policy, config.evaluation.against)
            if (version is None or other.version != version.version) and other.tags.get(POLICY_DIGEST) != policy.digest
        ]
        named = [Besides(name=f"version {other.version}", version=str(other.version)) for other in against]
        for other in against:
            copy_model(store, other, run.out / AGAINST / str(other.version))
        if version is None:
            Baseline(against=named).save(run.out)
            return {"champions": 0.0}
        copy_model(store, version, run.out / "model")
        Baseline(
            name=f"champion, version {version.version}",
            version=str(version.version),
            model_digest=version.tags.get(POLICY_DIGEST),
            against=named,
        ).save(run.out)
    return {"champions": 1.0, "version": float(version.version)}


def opponent(store: Store, name: str, policy_digest: str) -> ModelVersion | None:
    """The version to compare with; None for the SFT model."""
    champion = by_alias(store, name, CHAMPION)
    if champion and champion.tags.get(POLICY_DIGEST) == policy_digest:
        then = champion.tags.get(BASELINE_VERSION)
        return by_version(store, name, then) if then else None
    return champion


def besides(store: Store, name: str, against: Sequence[str]) -> list[ModelVersion]:
    """The versions that evaluation.against names, by number or alias, each once. Raises ConfigError where there is none of that name."""
    found: dict[str, ModelVersion] = {}
    for asked in against:
        version = by_version(store, name, asked) if asked.isdecimal() else by_alias(store, name, asked)
        if version is None:
            what = "version" if asked.isdecimal() else "alias"
            raise ConfigError(
                f"evaluation.against: {name} has no {what} {asked}.",
                "prefline history shows its versions; aliases are champion, previous, challenger.",
            )
        found.setdefault(str(version.version), version)
    return list(found.values())

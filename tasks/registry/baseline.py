"""Whom the new policy must beat: the champion, or the SFT model where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks.registry.champion import CHAMPION, by_alias, by_version, copy_model
from tasks.registry.store import Store, talking_to
from tasks.registry.tracking import MLflowRun
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POLICY_DIGEST = "prefline.policy_digest"
BASELINE_VERSION = "prefline.baseline_version"
"""Tags of a registered version: what its files hash to, and what it was compared with ("" for its SFT model)."""


class Baseline(BaseModel):
    """What baseline.json holds. version, model_digest: None for the SFT model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "SFT model"
    version: str | None = None
    model_digest: str | None = None

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        return cls.model_validate_json((folder / "baseline.json").read_text(encoding="utf-8"))

    def save(self, folder: Path) -> None:
        (folder / "baseline.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


@stage("baseline", reads=("names",), package="registry", cached=False)
def baseline(config: Settings, *, sft: StageResult, policy: StageResult, run: StageRun) -> Metrics:
    """Write baseline.json, and the champion's model where it is the champion.

    A policy that already is the champion meets whom it met then, so that a repeated run finds its evaluation done.
    """
    store = MLflowRun.watching(run).store
    with talking_to(store.uri):
        version = opponent(store, config.names.policy, policy.digest)
        if version is None:
            Baseline().save(run.out)
            return {"champions": 0.0}
        copy_model(store, version, run.out / "model")
        Baseline(
            name=f"champion, version {version.version}", version=str(version.version), model_digest=version.tags.get(POLICY_DIGEST)
        ).save(run.out)
    return {"champions": 1.0, "version": float(version.version)}


def opponent(store: Store, name: str, policy_digest: str) -> ModelVersion | None:
    """The version to compare with; None for the SFT model."""
    champion = by_alias(store, name, CHAMPION)
    if champion and champion.tags.get(POLICY_DIGEST) == policy_digest:
        then = champion.tags.get(BASELINE_VERSION)
        return by_version(store, name, then) if then else None
    return champion
